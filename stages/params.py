"""Packed parameters: what `main_transform_params` makes of the source weights, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .compat import tvm
from .program import TRANSFORM, Program


def pack(program: Program, weights: Mapping[str, np.ndarray], target: Any) -> list[np.ndarray]:
    """The packed weights, in the order in which `main` takes them after its inputs.

    In: a program as tensorir leaves it; weights under source names; the target, best unoptimised:
        these kernels run once and would take as long to compile as the rest of a network.
    """
    raw = [np.array(weights[spec.name], order="C") for spec in program.io.params]
    if not any(gv.name_hint == TRANSFORM for gv in program.mod.get_global_vars()):
        return raw
    relax = tvm.relax
    alone = relax.transform.DeadCodeElimination([TRANSFORM])(program.mod)
    machine = relax.VirtualMachine(relax.build(alone, target), tvm.cpu())
    packed = machine[TRANSFORM]([tvm.runtime.tensor(weight) for weight in raw])
    return [tensor.numpy() for tensor in packed]
