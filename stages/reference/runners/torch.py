"""torch models, run by torch itself: the recipe's module eager, a `.pt2` as it was exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import PythonFunction

from ...torch_model import call, load
from .runner import Arrays, Run

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.export import ExportedProgram

Forward = Callable[[dict[str, "Tensor"]], Any]


class TorchRunner:
    """The source on the CPU with `threads` threads; "unoptimized" computes in float64, or where the
    model fixes float32 itself, without oneDNN's kernels.
    """

    def __init__(
        self, facts: Mapping[str, Any], source: Path, outputs: tuple[str, ...], threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._facts, self._source, self._outputs = facts, source, outputs
        self._origin = facts.get("function") or facts["model"]
        self.meta: dict[str, Any] = {
            "kind": "torch",
            "peer": f"torch {torch.__version__}",
            "model": None,
            "threads": threads,
        }

    def __call__(self, weights: Arrays, *, optimize: bool) -> Run:
        import torch

        run = self._runnable(weights)
        if optimize:
            return lambda inputs: self._outputs_of(run, _tensors(inputs))
        wide = self._runnable(weights, torch.float64)

        def unoptimized(inputs: Arrays) -> dict[str, np.ndarray]:
            tensors = _tensors(inputs)
            doubles = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
            try:
                return self._outputs_of(wide, doubles)
            except StageError:
                with torch.backends.mkldnn.flags(enabled=False):
                    return self._outputs_of(run, tensors)

        return unoptimized

    def save(self, weights: Arrays, folder: Path) -> None:
        """Nothing: torch is not timed."""

    def _runnable(self, weights: Arrays, dtype: torch.dtype | None = None) -> Forward:
        """The model with these weights, as a function of its inputs by name."""
        if self._facts["kind"] == "pt2":
            return _program(load(self._source / self._facts["model"]), weights, dtype)
        path, name = str(self._source / self._facts["module"]), self._facts["function"]
        module, arguments = call(PythonFunction(path=path, function=name, sha256="source"))
        _fill({**dict(module.named_buffers()), **module.state_dict()}, weights)
        module = module.to(dtype)
        fixed = {n: value for n, value in arguments.items() if n not in self._facts["inputs"]}
        return lambda inputs: module(**inputs, **fixed)

    def _outputs_of(self, forward: Forward, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        import torch
        from torch.utils import _pytree as pytree

        with torch.inference_mode():
            try:
                leaves = pytree.tree_leaves(forward(tensors))
            except Exception as error:  # the author's code: anything may come out of it
                message = f"{self._origin} raised {type(error).__name__}: {error}"
                raise StageError(message=message) from error
        values = dict(zip(self._facts["outputs"], leaves, strict=True))
        return {name: _array(values[name]) for name in self._outputs}


def _program(exported: ExportedProgram, weights: Arrays, dtype: torch.dtype | None) -> Forward:
    """An exported program as a function of its inputs by name."""
    from torch.export.graph_signature import ConstantArgument, InputKind
    from torch.utils import _pytree as pytree

    _fill({**exported.state_dict, **exported.constants}, weights)
    module, spec = exported.module().to(dtype), exported.call_spec.in_spec
    assert spec is not None
    users = [
        one.arg for one in exported.graph_signature.input_specs if one.kind is InputKind.USER_INPUT
    ]

    def forward(inputs: dict[str, Tensor]) -> Any:
        leaves = [
            one.value if isinstance(one, ConstantArgument) else inputs[one.name] for one in users
        ]
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        return module(*args, **kwargs)

    return forward


def _fill(held: Mapping[str, Any], weights: Arrays) -> None:
    """Writes weights over those of a model; what the importer lifted has no name in it."""
    import torch

    with torch.no_grad():
        for name, value in weights.items():
            if name in held:
                held[name].copy_(_tensor(value))


def _tensors(inputs: Arrays) -> dict[str, Tensor]:
    return {name: _tensor(value) for name, value in inputs.items()}


def _tensor(array: np.ndarray) -> Tensor:
    """A copy of an array; bfloat16, which NumPy does not know, by its bits."""
    import torch

    array = np.array(array)
    if str(array.dtype) == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Tensor) -> np.ndarray:
    """As NumPy, floats in float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
