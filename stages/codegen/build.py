"""From an applied module to machine code, and what its memory plan costs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from ..compat import tvm

relax = tvm.relax


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
