"""Packed parameters: what `main_transform_params` makes of the source weights, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tapml.errors import StageError

from .compat import tvm
from .program import TRANSFORM, Program


def pack(program: Program, weights: Mapping[str, np.ndarray], target: Any) -> list[np.ndarray]:
    """The packed weights, in the order in which `main` takes them after its inputs.

    In:     a program as tensorir leaves it; weights under source names; the target, best
            unoptimised: these kernels run once, and would take as long to build as all others.
    Raises: StageError for a weight of another type than the program's.
    """
    raw = [np.array(weights[spec.name], order="C") for spec in program.io.params]
    for array, spec in zip(raw, program.io.params, strict=True):
        if array.shape != tuple(spec.shape) or str(array.dtype) != spec.dtype:
            found = f"{array.dtype} {list(array.shape)}"
            raise StageError(
                message=f"weight {spec.name}: {found}, the program has {spec.dtype} {[*spec.shape]}"
            )
    if not any(gv.name_hint == TRANSFORM for gv in program.mod.get_global_vars()):
        return raw
    relax = tvm.relax
    alone = relax.transform.DeadCodeElimination([TRANSFORM])(program.mod)
    # nobody else calls these kernels: without tests of arguments they build in a third of the time
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
        built = relax.build(alone, target)
    machine = relax.VirtualMachine(built, tvm.cpu())
    packed = machine[TRANSFORM]([tvm.runtime.tensor(weight) for weight in raw])
    return [tensor.numpy() for tensor in packed]
