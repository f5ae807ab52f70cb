"""ONNX files, run by onnxruntime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError

from .runner import Arrays, Run


class OnnxRunner:
    """onnxruntime on the CPU, with `threads` threads."""

    def __init__(self, path: Path, outputs: tuple[str, ...], threads: int) -> None:
        import onnxruntime

        from ... import onnx_file

        self._model = onnx_file.read(path)
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
        with tempfile.TemporaryDirectory() as folder:  # weights of any size pass by files alone
            path = self._write(weights, Path(folder) / "model")
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

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
        self._write(weights, folder)

    def _write(self, weights: Arrays, folder: Path) -> Path:
        """The model with other weights; names that it lacks (lifted constants) are skipped."""
        from ... import onnx_file

        return onnx_file.write(self._model, folder, weights)
