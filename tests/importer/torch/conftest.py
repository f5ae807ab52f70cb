"""torch modules, imported, compiled plainly, and compared with torch on fresh inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Program

if TYPE_CHECKING:  # a fixture imports it: pytest reads this file for plain runs too
    import torch
    from torch import nn

Shapes = Mapping[str, tuple[int | str, ...]]
Imports = Callable[..., tuple[Program, dict[str, np.ndarray]]]


@pytest.fixture
def imported() -> Imports:
    """Program and weights of a module; `shapes` has the recipe's dims by input name."""
    import torch

    from tapml_stages.importer.torch import convert, export

    def run(
        module: nn.Module,
        arguments: dict[str, Any],
        shapes: Shapes | None = None,
        dims: Mapping[str, tuple[int, int]] | None = None,
        **options: Any,
    ) -> tuple[Program, dict[str, np.ndarray]]:
        bounds = {name: Bounds(low, high) for name, (low, high) in (dims or {}).items()}
        wanted = {
            name: export.Wanted(
                (shapes or {}).get(name, tuple(value.shape)), str(value.dtype).split(".")[1]
            )
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor)
        }
        exported = export.export(module, arguments, wanted, bounds, "the module")
        return convert.convert(
            exported,
            inputs={name: want.shape for name, want in wanted.items()},
            outputs=export.output_names(exported),
            dims=bounds,
            **options,
        )

    return run


@pytest.fixture
def compiled() -> Callable[..., Callable[..., list[np.ndarray]]]:
    """A function from arrays to arrays of a program, built without any schedule of ours."""

    def run(program: Program, weights: Mapping[str, np.ndarray]) -> Callable[..., list[np.ndarray]]:
        target = tvm.target.Target({"kind": "llvm", "opt-level": 1})
        built = tvm.compile(program.mod, target)
        machine = tvm.relax.VirtualMachine(built, tvm.cpu())
        held = [tvm.runtime.tensor(np.array(weights[one.name])) for one in program.io.params]

        def call(*inputs: np.ndarray) -> list[np.ndarray]:
            out = machine["main"](*map(tvm.runtime.tensor, inputs), *held)
            return [one.numpy() for one in (out if len(program.io.outputs) > 1 else [out])]

        return call

    return run


@pytest.fixture
def same_as_torch(imported: Imports, compiled: Any) -> Callable[..., Program]:
    """Compares with torch in float64 at every one of `sizes` (dims → size), on fresh values."""
    import torch
    from torch.utils import _pytree as pytree

    def run(
        module: nn.Module,
        arguments: dict[str, torch.Tensor],
        shapes: Shapes | None = None,
        dims: Mapping[str, tuple[int, int]] | None = None,
        sizes: tuple[dict[str, int], ...] = ({},),
        tolerance: float = 1e-5,
    ) -> Program:
        program, weights = imported(module, arguments, shapes, dims)
        call = compiled(program, weights)
        for at in sizes:
            fresh = {
                name: _fresh(
                    value, [at.get(str(d), d) for d in (shapes or {}).get(name, value.shape)]
                )
                for name, value in arguments.items()
            }
            got = call(*(value.numpy() for value in fresh.values()))
            with torch.no_grad():
                wide = module.double()(**{n: _wide(v) for n, v in fresh.items()})
            module.float()
            leaves = pytree.tree_leaves(wide)
            for one, spec, leaf in zip(got, program.io.outputs, leaves, strict=True):
                want = leaf.numpy()
                assert one.shape == want.shape, spec.name
                assert (one.dtype.kind, str(one.dtype)) == (want.dtype.kind, spec.dtype), spec.name
                scale = max(1.0, float(np.abs(want).max())) if want.dtype.kind == "f" else 1.0
                np.testing.assert_allclose(
                    one, want, rtol=0, atol=tolerance * scale, err_msg=f"{spec.name} at {at}"
                )
        return program

    return run


def _fresh(example: torch.Tensor, shape: list[Any]) -> torch.Tensor:
    """Random values in the range of the example's."""
    import torch

    if example.dtype is torch.bool:
        return torch.rand(shape) < 0.5
    if example.is_floating_point():
        return torch.randn(shape, dtype=example.dtype)
    low, high = int(example.min()), int(example.max()) + 1
    return torch.randint(low, high, shape, dtype=example.dtype)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value
