"""How the source is run: onnxruntime for ONNX files, the author's NumPy function for operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tapml.errors import StageError
from tapml.stage import PythonFunction

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
    if facts["kind"] == "onnx":
        return OnnxRunner(source / facts["model"], outputs, threads)
    return NumpyRunner(source / facts["module"], facts["function"], outputs, threads)


class OnnxRunner:
    """onnxruntime on the CPU, with `threads` threads."""

    def __init__(self, path: Path, outputs: tuple[str, ...], threads: int) -> None:
        import onnx
        import onnxruntime

        self._model = onnx.load(path)
        self._outputs, self._threads = list(outputs), threads
        self.meta: dict[str, Any] = {
            "kind": "onnx",
            "peer": f"onnxruntime {onnxruntime.__version__}",
            "model": "source_pruned/model.onnx",
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        )
        session = ort.InferenceSession(
            self._with(weights).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            try:
                values = session.run(self._outputs, dict(inputs))
            except (RuntimeError, ValueError) as error:  # onnxruntime's own errors are these
                raise StageError(message=f"onnxruntime fails on the model: {error}") from error
            return {
                name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)
            }

        return run

    def save(self, weights: Arrays, folder: Path) -> None:
        import onnx

        folder.mkdir()
        onnx.save(self._with(weights), folder / "model.onnx")

    def _with(self, weights: Arrays) -> Any:
        """The model with other weights; names that it lacks (lifted constants) are skipped."""
        from onnx import numpy_helper

        for tensor in self._model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], name=tensor.name))
        return self._model


class NumpyRunner:
    """The author's reference: in float64, and "unoptimized" in the dtypes of the program."""

    def __init__(self, path: Path, function: str, outputs: tuple[str, ...], threads: int) -> None:
        from ..compat import tvm  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before theirs

        self._origin = f"{path.name}: reference of {function}()"
        made = PythonFunction(path=str(path), function=function, sha256="source").load()
        self._reference = self._called(made).reference
        self._outputs = outputs
        self.meta: dict[str, Any] = {
            "kind": "operator",
            "peer": None,
            "model": None,
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        def cast(arrays: Arrays) -> dict[str, np.ndarray]:
            wide = {
                n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()
            }
            return wide if optimize else dict(arrays)

        held = cast(weights)

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            outputs = self._called(self._reference, cast(inputs), held)
            if set(outputs) != set(self._outputs):
                message = f"{self._origin} gave {sorted(outputs)}, not {sorted(self._outputs)}"
                raise StageError(message=message)
            return {name: np.asarray(outputs[name]) for name in self._outputs}

        return run

    def save(self, weights: Arrays, folder: Path) -> None:
        """Nothing: no other runtime is timed against an operator."""

    def _called(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:  # the author's code: anything may come out of it
            message = f"{self._origin} raised {type(error).__name__}: {error}"
            raise StageError(message=message) from error
