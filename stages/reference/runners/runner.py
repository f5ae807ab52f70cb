"""What runs a source: one file for each kind that an importer writes into source.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], dict[str, np.ndarray]]


class Runner(Protocol):
    """Gives a function from inputs to outputs for given weights. `meta` says what it is.

    `optimize=False` computes the same in another way: the difference shows how far rounding goes.
    """

    @property
    def meta(self) -> dict[str, Any]: ...

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run: ...

    def save(self, weights: Arrays, folder: Path) -> None:
        """Writes what a latency comparison runs, if there is anything."""
        ...


def make(facts: Mapping[str, Any], source: Path, threads: int) -> Runner:
    """The runner of a `source` folder."""
    outputs = tuple(one["name"] for one in facts["io"]["outputs"])
    match facts["kind"]:
        case "onnx":
            from .onnx import OnnxRunner

            return OnnxRunner(source / facts["model"], outputs, threads)
        case "relax":
            from .relax import RelaxRunner

            module, params = source / facts["module"], tuple(facts["params"])
            return RelaxRunner(module, params, outputs, threads)
        case "operator":
            from .operator import NumpyRunner

            return NumpyRunner(source / facts["module"], facts["function"], outputs, threads)
        case "torch" | "pt2":
            from .torch import TorchRunner

            return TorchRunner(facts, source, outputs, threads)
        case "huggingface":
            from .huggingface import HuggingFaceRunner

            return HuggingFaceRunner(source, facts["architecture"], outputs, threads)
        case kind:
            raise AssertionError(f"no runner for {kind!r}")
