"""From an applied module to machine code: the packing functions run once, the rest becomes a
library.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..compat import tvm
from .apply import TRANSFORM

relax = tvm.relax


def pack_weights(mod: Any, weights: Sequence[np.ndarray], target: Any) -> list[np.ndarray]:
    """What `main_transform_params` returns for the weights, in its order.

    In:  the tensorir program; weights in the order of io.params; a target without optimisation.
    The packing kernels run once, so they are a module of their own that LLVM does not optimise:
    they would take
    as long to compile as the rest of a network.
    """
    if not any(gv.name_hint == TRANSFORM for gv in mod.get_global_vars()):
        return [np.asarray(weight) for weight in weights]
    alone = relax.transform.DeadCodeElimination([TRANSFORM])(mod)
    machine = relax.VirtualMachine(tvm.compile(alone, target), tvm.cpu())
    tensors = [tvm.runtime.tensor(np.array(weight, order="C")) for weight in weights]
    packed = machine[TRANSFORM](tensors)
    return [tensor.numpy() for tensor in packed]


def build_library(mod: Any, target: Any, path: Path, compiler: str | None) -> None:
    """Builds the applied module and links it as a shared library at `path`.

    Source: `relax.pipeline.default_build_pipeline`.
    """
    from tvm.support import cc

    executable = relax.build(mod, target)
    executable.export_library(str(path), fcompile=functools.partial(cc.create_shared, cc=compiler))


def planned_bytes(mod: Any, target: Any) -> int:
    """Bytes of the storages that the memory plan allocates for one call, at the dims' upper bounds.

    Source: StaticPlanBlockMemory; storages of clones are counted once each, and one clone runs at
            a time,
    so the largest function counts.
    """
    with target:
        planned = tvm.transform.Sequential(
            [
                relax.transform.RewriteDataflowReshape(),
                relax.transform.ToNonDataflow(),
                relax.transform.RemovePurityChecking(),
                relax.transform.CallTIRRewrite(),
                relax.transform.StaticPlanBlockMemory(),
            ]
        )(mod)
    largest = 0
    for _, func in planned.functions_items():
        if isinstance(func, relax.Function):
            largest = max(largest, _storage_bytes(func))
    return largest


def _storage_bytes(func: Any) -> int:
    total = 0

    def visit(node: Any) -> None:
        nonlocal total
        if (
            isinstance(node, relax.Call)
            and getattr(node.op, "name", "") == "relax.memory.alloc_storage"
        ):
            sizes = [value for value in node.args[0].values if isinstance(value, tvm.tirx.IntImm)]
            total += int(np.prod([int(size) for size in sizes]))

    relax.analysis.post_order_visit(func.body, visit)
    return total
