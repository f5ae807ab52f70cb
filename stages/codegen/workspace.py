"""Workspaces of kernels, lifted: what a kernel would allocate at every call is planned with the
activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi

from ..compat import tvm
from ..dataflow import op_name

relax, tirx = tvm.relax, tvm.tirx


def lift_workspaces(mod: Any) -> Any:
    """`mod` whose kernels get the buffers that outlive one of their loop nests as further outputs.

    Scratch that a single nest fills and reads stays where it is: it is bounded by a tile or a row.
    A kernel that is called in another way than by a plain call_tir is left alone.
    Source: workspace lifting of Relax (arXiv 2311.02103 §4.4), there for library calls.
    """
    lifted: dict[str, _Lifted] = {}
    out, plain = tvm.IRModule({}, attrs=mod.attrs), _plainly_called(mod)
    for gvar, func in mod.functions_items():
        if not isinstance(func, tirx.PrimFunc):
            continue
        if gvar.name_hint in plain and (buffers := shared_buffers(func)):
            params, func = func.params, _with_parameters(func, buffers)
            gvar = tvm.ir.GlobalVar(gvar.name_hint)
            relax.expr._update_type(gvar, func.ty)  # call_tir wants a typed callee
            lifted[gvar.name_hint] = _Lifted(gvar, params, buffers)
        out.update_func(gvar, func)
    if not lifted:
        return mod
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            out.update_func(gvar, _Calls(lifted).visit_expr(func))
    return relax.transform.Normalize()(out)


@dataclass(frozen=True)
class _Lifted:
    """A kernel's new global, the parameters that it had, and those that it takes besides."""

    gvar: Any
    params: Sequence[Any]
    buffers: Sequence[Any]


def _plainly_called(mod: Any) -> set[str]:
    """Kernels whose every call is a call_tir, its sizes among the arguments where it has any."""
    found: dict[str, bool] = {}

    def visit(node: Any) -> None:
        if isinstance(node, relax.Call):
            plain = op_name(node) == "relax.call_tir" and len(node.args) == 2
            for arg in node.args:
                if isinstance(arg, tvm.ir.GlobalVar):
                    found[arg.name_hint] = found.get(arg.name_hint, True) and plain

    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, visit)
    return {name for name, plain in found.items() if plain}


def shared_buffers(func: Any) -> list[Any]:
    """Buffers that a kernel allocates, and that more than one of its loop nests use."""
    root = func.body
    if not isinstance(root, tvm.s_tir.SBlockRealize) or not root.block.alloc_buffers:
        return []
    body = root.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    users = [_accessed(nest) for nest in nests]
    several = [key for key in set().union(*users) if sum(key in one for one in users) > 1]
    return [one for one in root.block.alloc_buffers if _key(one) in several]


def _accessed(nest: Any) -> set[int]:
    loads: list[Any] = []
    stores: list[Any] = []
    tvm_ffi.structural_walk(nest, (tvm.ir.TensorLoad, loads.append))
    tvm_ffi.structural_walk(nest, (tirx.BufferStore, stores.append))
    return {_key(one.source) for one in loads} | {_key(one.buffer) for one in stores}


def _key(node: Any) -> int:
    return int(node.__chandle__())


def _with_parameters(func: Any, buffers: Sequence[Any]) -> Any:
    block, lifted = func.body.block, {_key(buffer) for buffer in buffers}
    kept = [one for one in block.alloc_buffers if _key(one) not in lifted]
    root = tvm.s_tir.SBlock([], [], [], block.name_hint, block.body, alloc_buffers=kept)
    body = tvm.s_tir.SBlockRealize([], True, root)
    return tirx.PrimFunc([*func.params, *buffers], body, func.ret_type, func.attrs)


@relax.expr_functor.mutator
class _Calls(relax.PyExprMutator):
    """Calls of lifted kernels with the workspaces as further outputs, which nobody reads."""

    def __init__(self, lifted: Mapping[str, _Lifted]) -> None:
        super().__init__()
        self.lifted = lifted

    def visit_call_(self, call: Any) -> Any:
        if op_name(call) != "relax.call_tir" or call.args[0].name_hint not in self.lifted:
            return super().visit_call_(call)
        kernel = self.lifted[call.args[0].name_hint]
        args, (made,) = list(call.args[1].fields), call.ty_args
        outputs = list(made.fields) if isinstance(made, relax.TupleType) else [made]
        at = _sizes(kernel.params, [*args, *outputs])
        workspaces = [
            relax.TensorType(
                [tvm_ffi.structural_map(n, (tirx.Var, at.__getitem__)) for n in buffer.ty.shape],
                str(buffer.ty.dtype),
            )
            for buffer in kernel.buffers
        ]
        both = self.builder_.emit(relax.call_tir(kernel.gvar, args, out_ty=[*outputs, *workspaces]))
        results = [relax.TupleGetItem(both, index) for index in range(len(outputs))]
        return results[0] if len(results) == 1 else relax.Tuple(results)


def _sizes(params: Sequence[Any], given: Sequence[Any]) -> dict[Any, Any]:
    """Symbol of a kernel → the size that its caller gives it, by arguments and types of outputs."""
    found: dict[Any, Any] = {}
    for param, one in zip(params, given, strict=True):
        if not hasattr(param.ty, "shape"):
            found.setdefault(param, one)
            continue
        shape = (one.ty if isinstance(one, relax.Expr) else one).shape
        for own, size in zip(param.ty.shape, shape.values, strict=True):
            if isinstance(own, tirx.Var):
                found.setdefault(own, size)
    return found
