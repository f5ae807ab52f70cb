"""Exact-size copies of `main` for the buckets, and the `main` that chooses among them.

A program with states has one more: `decode`, for one token a call, and nothing of what a call need
not bring (a dim that may be 0). The copy for any number of tokens is then called `prefill`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm_ffi

from ..compat import tvm
from ..dataflow import op_name, remove_dead_code, rewrite, rx, shape_of
from ..program import DECODE, DYNAMIC, PREFILL, Io

Clones = Mapping[str, Mapping[str, int]]  # name of each copy of `main` → the sizes it is for


def clone_names(io: Io) -> dict[str, dict[str, int]]:
    """The copies that a program is given, the symbolic one last; `main` alone when there are no
    buckets.
    """
    step = {dim: min(1, io.dims[dim].min) for dim in io.steps}
    buckets = [dict(bucket) for bucket in io.buckets if io.dims]
    if step and not any(step.items() <= bucket.items() for bucket in buckets):
        buckets.insert(0, step)
    if not buckets:
        return {"main": {}}
    dims = sorted({dim for bucket in buckets for dim in bucket})
    initials = [dim[0] for dim in dims]
    label = dict(zip(dims, initials if len(set(initials)) == len(initials) else dims, strict=True))

    def name(bucket: dict[str, int]) -> str:
        decodes = step and step.items() <= bucket.items()
        shown = [dim for dim in sorted(bucket) if not (decodes and dim in step)]
        first = DECODE if decodes else PREFILL if step else "main"
        return "_".join([first, *(f"{label[dim]}{bucket[dim]}" for dim in shown)])

    return {**{name(bucket): bucket for bucket in buckets}, PREFILL if step else DYNAMIC: {}}


def clone_buckets(mod: Any, clones: Clones) -> Any:
    """`mod` with a copy of `main` per clone, bound to its sizes, in place of `main`."""
    if list(clones) == ["main"]:
        return mod
    functions = {gvar: func for gvar, func in mod.functions.items() if gvar.name_hint != "main"}
    out = tvm.IRModule(functions, attrs=mod.attrs)
    for name, sizes in clones.items():
        out[name] = rx.utils.copy_with_new_vars(mod["main"]).with_attr("global_symbol", name)
        if sizes:
            out = rx.transform.BindSymbolicVars(
                {dim: tvm.tirx.IntImm("int64", size) for dim, size in sizes.items()}, name
            )(out)
        if 0 in sizes.values():
            out = rewrite(out, _unwritten, name)
    return remove_dead_code(out, *clones)


def _unwritten(_writer: Any, _var: Any, value: Any) -> Any:
    """The state itself for an update of it by nothing."""
    if op_name(value) != "relax.call_tir_inplace":
        return None
    state, new = value.args[1].fields[:2]
    return state if 0 in shape_of(new) else None


def add_dispatcher(mod: Any, clones: Clones) -> Any:
    """`mod` with a `main` that calls the clone for the sizes of its inputs, or the symbolic one."""
    if list(clones) == ["main"]:
        return mod
    symbolic = list(clones)[-1]
    dynamic = mod[symbolic]
    template = rx.utils.copy_with_new_vars(dynamic)
    params = list(template.params)
    symbols = {var.name: var for var in rx.analysis.defined_symbolic_vars(template)}
    result_type = template.ret_ty
    builder = rx.BlockBuilder(mod)

    def typed(expr: Any) -> Any:
        rx.expr._update_type(expr, result_type)  # visitors refuse an expression without a type
        return expr

    def in_symbols(ty: Any) -> Any:
        """A clone's type in the sizes of `main`."""
        return tvm_ffi.structural_map(ty, (tvm.tirx.Var, lambda var: symbols.get(var.name, var)))

    def call(name: str) -> Any:
        """A branch: the arguments cast to the clone's types, the result to the common one."""
        clone = mod[name]
        bindings, args = [], []
        for param, its in zip(params, clone.params, strict=True):
            wanted = in_symbols(its.ty)
            if tvm_ffi.structural_equal(param.ty, wanted) or name == symbolic:
                args.append(param)
                continue
            cast = rx.Var(f"{param.name}_{name}", wanted)
            bindings.append(rx.MatchCast(cast, param, wanted))
            args.append(cast)
        gvar = mod.get_global_var(name)
        rx.expr._update_type(gvar, clone.ty)  # passes that rename or add functions leave it empty
        value = builder.normalize(rx.Call(gvar, args))
        result = rx.Var(f"result_{name}", value.ty)
        bindings.append(rx.VarBinding(result, value))
        common = rx.Var(f"common_{name}", result_type)
        bindings.append(rx.MatchCast(common, result, result_type))
        return typed(rx.SeqExpr([rx.BindingBlock(bindings)], common))

    body = call(symbolic)
    for name, sizes in reversed([one for one in clones.items() if one[1]]):
        condition = tvm.tirx.all(*(symbols[dim] == size for dim, size in sizes.items()))
        chosen = rx.Var(f"choose_{name}", result_type)
        branch = typed(rx.If(condition, call(name), body))
        body = typed(rx.SeqExpr([rx.BindingBlock([rx.VarBinding(chosen, branch)])], chosen))
    main = rx.Function(params, body, result_type, True, dynamic.attrs).with_attr(
        "global_symbol", "main"
    )
    out = tvm.IRModule(mod.functions, attrs=mod.attrs)
    out["main"] = main
    return out
