"""From Relax operators to call_tir of unscheduled PrimFuncs, one per group of fused operators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tapml.errors import StageError
from tapml.stage import Target

from ..compat import tvm
from ..dataflow import (
    KERNEL_CALLS,
    bindings,
    is_operator_call,
    kernel_of,
    op_name,
    remove_dead_code,
    rx,
)
from ..legalize import legalize_operators
from ..noops import remove_noops
from ..program import CLONE, REGION, TRANSFORM, Program
from ..views import Watch
from .attention import fuse_attention
from .clones import add_dispatcher, clone_buckets, clone_names
from .dense import pack_dense
from .group_norm import lower_group_norm
from .groups import Imported, groups
from .layout import block_lanes, block_layout
from .lifting import lift_packing
from .ordering import lower_ordering
from .orders import channels_first
from .pairs import pair_convolutions
from .tensorize.integers import expose_integers
from .tensorize.packing import Instructions

TRANSFORM_ONLY = "tapml.transform"


@dataclass(eq=False, kw_only=True)
class UnloweredOpError(StageError):
    """Operators that have no TensorIR implementation in this TVM."""

    ops: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"no lowering to TensorIR for: {', '.join(self.ops)}"


def lower(program: Program, target: Target, watch: Watch = lambda name, mod: None) -> Program:
    """The lowered program, with its groups; `watch` is shown what each pass makes. Products of
    integers are written for the intrinsics that `target` has.

    Raises: UnloweredOpError, naming each operator without a legalization.
    Source: TVM's `zero` pipeline without FoldConstant, after our layout pass and with packing
            lifted out of `main`.
    """

    def shown(name: str, mod: Any) -> Any:
        watch(name, mod)
        return mod

    clones = clone_names(program.io)
    first = shown("channels_first", channels_first(program.mod))
    lanes = block_lanes(first["main"], target)
    mod = shown("clone_buckets", clone_buckets(first, clones))
    needed = {name: {var.name for var, _ in bindings(mod[name])} for name in clones}
    instructions = Instructions.of(target)
    for name in clones:
        mod = shown(f"expose_integers_{name}", expose_integers(mod, instructions, name))
        mod = shown(f"fuse_attention_{name}", fuse_attention(mod, name))
        mod = shown(f"lower_group_norm_{name}", lower_group_norm(mod, name))
        mod = shown(f"block_layout_{name}", block_layout(mod, lanes, name, instructions))
        mod = shown(f"pack_dense_{name}", pack_dense(mod, name, instructions))
        mod = shown(f"lower_ordering_{name}", remove_noops(lower_ordering(mod, name), name))
    mod = remove_dead_code(mod, *clones)
    mod = shown("lift_packing", lift_packing(mod, tuple(clones)))
    legalized = shown("legalize", legalize_operators()(mod))
    if left := unlowered_ops(mod, legalized):
        raise UnloweredOpError(stage="tensorir", ops=left)
    mod = _mark_primitive(legalized)
    entries = [*clones, TRANSFORM]
    before = remove_dead_code(rx.transform.AnnotateTIROpPattern()(mod), *entries)
    shown("annotate_patterns", before)
    fused = rx.transform.FuseOps(2)(before)
    for name in clones:
        fused = pair_convolutions(fused, target, name)
    fused = shown("fuse_operators", remove_dead_code(fused, *entries))
    mod = rx.transform.RewriteDataflowReshape()(rx.transform.FuseTIR()(fused))
    mod = _annotate(remove_dead_code(mod, *entries), tuple(clones), _regions(fused))
    mod = shown("fuse_kernels", mod)
    calls = {name: _calls(mod[name]) for name in clones}
    table = groups(Imported(program.mod, program.provenance), before, fused, calls, needed)
    return replace(program, mod=shown("dispatch", add_dispatcher(mod, clones)), groups=table)


def unlowered_ops(before: Any, after: Any) -> tuple[str, ...]:
    """Names of operators that LegalizeOps left as they are, or made calls of Python."""

    def calls(mod: Any) -> dict[tuple[str, str], str]:
        return {
            (gvar.name_hint, var.name): op_name(value)
            for gvar, func in mod.functions.items()
            if isinstance(func, rx.Function)
            for var, value in bindings(func)
            if is_operator_call(value)
        }

    sources = calls(before)
    left = {where for where, name in calls(after).items() if name not in KERNEL_CALLS}
    return tuple(sorted({sources[where] for where in left}))


def _calls(func: Any) -> list[str | None]:
    """The kernel of every call of a lowered function, in order; None for a reshape (a view)."""
    return [kernel_of(value) or None for _, value in bindings(func) if isinstance(value, rx.Call)]


def _mark_primitive(mod: Any) -> Any:
    """`mod` in which each region's function is one group for FuseTIR."""
    out = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gvar, func in mod.functions.items():
        if func.attrs and REGION in func.attrs:
            out.update_func(gvar, func.with_attr("Primitive", 1))
    return out


def _regions(mod: Any) -> dict[str, dict[str, str]]:
    """Region and clone of every function that is a packed region's, by its name."""
    return {
        gvar.name_hint: {REGION: str(func.attrs[REGION]), CLONE: str(func.attrs[CLONE])}
        for gvar, func in mod.functions.items()
        if func.attrs and CLONE in func.attrs
    }


def _annotate(mod: Any, clones: tuple[str, ...], regions: dict[str, dict[str, str]]) -> Any:
    """`mod` whose PrimFuncs say of which region and clone they are, or that they pack weights."""
    running = {kernel for name in clones for kernel in _calls(mod[name])}
    out = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gvar, func in mod.functions.items():
        if not isinstance(func, tvm.tirx.PrimFunc):
            continue
        name = str(gvar.name_hint)
        marks = regions.get(name, {}) if name in running else {TRANSFORM_ONLY: 1}
        out.update_func(gvar, func.with_attrs(marks) if marks else func)
    return out
