"""Equal kernels compiled once: the layers of a network call the same few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm_ffi

from ..compat import tvm
from ..records import bare, workload_hash

relax = tvm.relax


def share_kernels(mod: Any) -> tuple[Any, dict[str, str]]:
    """The module with one PrimFunc of each kind, and which stands in for which.

    Two are equal when they differ in nothing but their names and the region they are for.
    """
    kept: dict[str, list[Any]] = {}  # by hash
    stands_in: dict[str, Any] = {}
    for gvar, func in sorted(mod.functions_items(), key=lambda item: item[0].name_hint):
        if isinstance(func, relax.Function):
            continue
        alike = kept.setdefault(workload_hash(func), [])
        twin = next((one for one in alike if _equal(func, mod[one])), None)
        if twin is None:
            alike.append(gvar)
        else:
            stands_in[gvar.name_hint] = twin
    calls = _Calls(stands_in)
    functions = {}
    for gvar, func in mod.functions_items():
        if gvar.name_hint in stands_in:
            continue
        functions[gvar] = calls.visit_expr(func) if isinstance(func, relax.Function) else func
    out = tvm.IRModule(functions, attrs=mod.attrs)
    return out, {name: twin.name_hint for name, twin in stands_in.items()}


def _equal(one: Any, other: Any) -> bool:
    return tvm_ffi.structural_equal(bare(one), bare(other), map_free_vars=True)


@relax.expr_functor.mutator
class _Calls(relax.PyExprMutator):
    """Calls of a kernel that another stands in for call that one."""

    def __init__(self, stands_in: Mapping[str, Any]) -> None:
        super().__init__()
        self.stands_in = stands_in

    def visit_global_var_(self, op: Any) -> Any:
        return self.stands_in.get(op.name_hint, op)
