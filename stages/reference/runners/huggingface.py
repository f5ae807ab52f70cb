"""transformers' models, run by torch as transformers runs them; not by what was exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError

from ...pretrained import build, fill, find_class, read_config, reason
from .runner import Arrays, Run


class HuggingFaceRunner:
    """The class of the source on the CPU with `threads` threads; "unoptimized" attends step by step
    in float64.
    """

    def __init__(
        self, folder: Path, architecture: str, outputs: tuple[str, ...], threads: int
    ) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._class, self._folder = find_class(folder, architecture), folder
        self._outputs = outputs
        self.meta: dict[str, Any] = {
            "kind": "huggingface",
            "peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "model": None,
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        import torch

        options = {} if optimize else {"attn_implementation": "eager"}
        model = build(self._class, read_config(self._folder), **options)
        fill(model, {name: torch.from_numpy(np.asarray(one)) for name, one in weights.items()})
        wide = torch.float32 if optimize else torch.float64
        model = model.to(wide)

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            tensors = {
                name: torch.from_numpy(np.array(one))
                for name, one in _named(inputs, model.main_input_name).items()
            }
            floats = {n: one.to(wide) for n, one in tensors.items() if one.is_floating_point()}
            try:
                with torch.inference_mode():
                    answer = model(**tensors | floats)
            except Exception as error:  # the model's own code
                raise StageError(message=f"{self._class.__name__}: {reason(error)}") from error
            values = {name: _at(answer, name) for name in self._outputs}
            return {
                name: (one.float() if one.is_floating_point() else one).numpy()
                for name, one in values.items()
            }

        return run

    def save(self, weights: Arrays, folder: Path) -> None:
        """Nothing: torch is not timed."""


def _named(inputs: Arrays, first: str) -> Arrays:
    """Inputs by the model's own names. With a source, that is what it reads first, and `input_ids`
    are the decoder's.
    """
    if "source" not in inputs:
        return inputs
    named = {first: inputs["source"], "decoder_input_ids": inputs["input_ids"]}
    if (length := inputs.get("source_length")) is not None:
        there = np.arange(inputs["source"].shape[1]) < length[:, None]
        named["attention_mask"] = there.astype(np.int64)
    return named


def _at(answer: Any, name: str) -> Any:
    """The tensor of a dotted name: `logits`, `hidden_states.0`."""
    for part in name.split("."):
        answer = answer[int(part) if part.isdigit() else part]
    return answer
