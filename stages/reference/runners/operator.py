"""Operators, run by their author's NumPy function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import PythonFunction

from .runner import Arrays, Run


class NumpyRunner:
    """The author's reference: in float64, and "unoptimized" in the dtypes of the program."""

    def __init__(self, path: Path, function: str, outputs: tuple[str, ...], threads: int) -> None:
        from ...compat import tvm  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before theirs

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
