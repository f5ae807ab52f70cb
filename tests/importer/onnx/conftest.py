"""An imported model, built with stock schedules, beside onnxruntime on the file itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto

from tapml.stage import Outputs
from tapml_stages import codec, program
from tapml_stages.compat import tvm

Difference = Callable[..., float]


@pytest.fixture
def difference(import_model: Callable[..., Outputs], tmp_path: Path) -> Difference:
    """Largest difference to onnxruntime over calls, relative to the output's largest value."""

    def run(
        model: ModelProto,
        calls: Sequence[dict[str, np.ndarray]],
        inputs: dict[str, tuple[tuple[int | str, ...], str]] | None = None,
        **dims: tuple[int, int],
    ) -> float:
        paths = import_model(model, inputs, **dims).artifacts
        mine, weights = program.load(paths["program"]), codec.read_weights(paths["weights"])
        rx, target = tvm.relax, tvm.target.Target("llvm")
        with target:
            built = tvm.compile(rx.get_pipeline("zero")(mine.mod), target)
        machine = rx.VirtualMachine(built, tvm.cpu())
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        worst = 0.0
        for call in calls:
            arrays = [call[one.name] for one in mine.io.inputs]
            arrays += [weights[one.name] for one in mine.io.params]
            result = machine["main"](*[tvm.runtime.tensor(one) for one in arrays])
            ours = [result] if hasattr(result, "numpy") else list(result)
            for one, expected in zip(ours, session.run(None, call), strict=True):
                value, wanted = one.numpy().astype(float), np.asarray(expected).astype(float)
                assert value.shape == wanted.shape
                assert np.isfinite(value).all()
                scale = max(float(np.abs(wanted).max()), 1e-6)
                worst = max(worst, float(np.abs(value - wanted).max()) / scale)
        return worst

    return run
