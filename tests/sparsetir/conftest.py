"""Targets, and a way to run a kernel on weights with zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tapml.stage import Device, Target

Multiply = Callable[..., np.ndarray]


def cpu(bits: int, registers: int, cores: int = 2) -> Target:
    """Code for x86-64-v3 whatever the tiles are: it runs on every machine that tests run on."""
    return Target(
        kind="llvm",
        mcpu="x86-64-v3",
        features=("avx2", "fma"),
        cores=cores,
        vector_bits=bits,
        vector_registers=registers,
        device=Device(threads=2),
    )


@pytest.fixture(scope="session")
def target() -> Target:
    return cpu(256, 16)


@pytest.fixture(scope="session")
def wide_target() -> Target:
    return cpu(512, 32)


@pytest.fixture(scope="session")
def multiply() -> Multiply:
    """`multiply(form, weight [N, K], x [M, K], target, rows=(low, high))`: the kernel's X @ Wᵀ."""
    from tapml_stages.compat import tvm
    from tapml_stages.packing import pack_values
    from tapml_stages.sparsetir.formats import Format, structure_of
    from tapml_stages.sparsetir.kernels import make_kernel
    from tapml_stages.target import tvm_target

    def run(
        form: Format,
        weight: np.ndarray,
        x: np.ndarray,
        target: Target,
        rows: tuple[int, int] | None = None,
    ) -> np.ndarray:
        structure = structure_of(weight != 0, form)
        kernel = make_kernel(structure, rows or (len(x), len(x)), target)
        arrays = structure.arrays(kernel.chunks)
        spec = {"packer": form.kind, "block": form.block, "transpose": False}
        args = [x, *(arrays[name] for name in kernel.arrays), pack_values(weight, arrays, spec)]
        library = tvm.compile(tvm.IRModule({"main": kernel.func}), tvm_target(target))
        y = tvm.runtime.tensor(np.full((len(x), len(weight)), np.nan, np.float32))
        library["main"](*(tvm.runtime.tensor(arg) for arg in args), y)
        return y.numpy()

    return run
