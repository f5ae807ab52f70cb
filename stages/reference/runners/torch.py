"""torch modules, run by torch itself, eager; not by what was exported of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import PythonFunction

from .runner import Arrays, Run


class TorchRunner:
    """The recipe's module on the CPU with `threads` threads; "unoptimized" computes in float64."""

    def __init__(
        self,
        path: Path,
        function: str,
        every: tuple[str, ...],
        outputs: tuple[str, ...],
        threads: int,
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._origin = f"{path.name}: {function}()"
        made = PythonFunction(path=str(path), function=function, sha256="source").load()
        self._module, self._examples = made()
        self._module = self._module.eval()
        self._every, self._outputs = every, outputs
        self.meta: dict[str, Any] = {
            "kind": "torch",
            "peer": f"torch {torch.__version__}",
            "model": None,
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        import torch
        from torch.utils import _pytree as pytree

        self._fill(weights)
        wide = torch.float64 if not optimize else torch.float32
        module = self._module.to(wide)

        def run(inputs: Arrays) -> dict[str, np.ndarray]:
            tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
            tensors = {n: t.to(wide) if t.is_floating_point() else t for n, t in tensors.items()}
            with torch.inference_mode():
                try:
                    leaves = pytree.tree_leaves(module(**tensors))
                except Exception as error:  # the author's code: anything may come out of it
                    message = f"{self._origin} raised {type(error).__name__}: {error}"
                    raise StageError(message=message) from error
            values = dict(zip(self._every, leaves, strict=True))
            return {name: values[name].to(torch.float32).numpy() for name in self._outputs}

        return run

    def save(self, weights: Arrays, folder: Path) -> None:
        """Nothing: torch is not timed yet."""

    def _fill(self, weights: Arrays) -> None:
        import torch

        state = self._module.state_dict()
        with torch.no_grad():
            for name, value in weights.items():
                if name in state:
                    state[name].copy_(torch.from_numpy(np.array(value)))
