"""Tuples of tensors opened: one that is kept would keep every tensor in it to the end of a call."""

from __future__ import annotations

from typing import Any

from ..compat import tvm
from ..dataflow import operands

relax = tvm.relax


def open_tuples(mod: Any) -> Any:
    """`mod` whose fields of tuples are the variables that these were made of, and whose tuples that
    nobody reads then are gone.

    In: after CallTIRRewrite, where a kernel with several outputs gives a tuple of its tensors.
    """
    out = tvm.IRModule(mod.functions, attrs=mod.attrs)
    for gvar, func in mod.functions_items():
        if isinstance(func, relax.Function):
            opened = _Fields().visit_expr(func)
            out.update_func(gvar, _without_unread(opened))
    return out


@relax.expr_functor.mutator
class _Fields(relax.PyExprMutator):
    """Reads of a field become reads of what the tuple was made of."""

    def visit_tuple_getitem_(self, item: Any) -> Any:
        source = self.visit_expr(item.tuple_value)
        made = self.lookup_binding(source) if isinstance(source, relax.Var) else source
        if isinstance(made, relax.Tuple):
            return made.fields[item.index]
        return relax.TupleGetItem(source, item.index)


def _without_unread(func: Any) -> Any:
    """The function without bindings of tuples that nothing reads; branches are left as they are."""
    read = set(operands(func.body.body))
    for block in func.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.If):
                read.update(relax.analysis.free_vars(value))
            read.update(operands(value))
    blocks = [
        type(block)(
            [b for b in block.bindings if not isinstance(b.value, relax.Tuple) or b.var in read]
        )
        for block in func.body.blocks
    ]
    body = relax.SeqExpr(blocks, func.body.body)
    relax.expr._update_type(body, func.ret_ty)
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)
