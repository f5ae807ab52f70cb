"""Matrix products with packed weights; a region becomes one function, fused into one kernel."""

from __future__ import annotations

from typing import Any

from ..dataflow import Writer, bindings, op_name, parameters, rewrite, rx, shape_of
from ..program import CLONE, REGION
from .te_ops import OUT_EWISE_FUSABLE, PANEL, ceil_div, dense


def pack_dense(mod: Any, name: str = "main") -> Any:
    """`mod` whose function `name` reads 2-D weights packed: [ceil(N / PANEL), K, PANEL].

    A call of the composite `region_<k>` becomes a call of `region_<k>__<name>`, which has the same
    parameters but for the weight, and the attributes `tapml.region` and `tapml.clone`.
    """
    regions = {
        gvar.name_hint: func
        for gvar, func in mod.functions.items()
        if func.attrs and REGION in func.attrs
    }

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        if op_name(value) in regions:
            return _call_packed(writer, regions[op_name(value)], value, op_name(value), name)
        if op_name(value) == "relax.matmul" and _multiplies_weight(writer, value):
            weight = value.args[1]
            return _dense(writer, value.args[0], _pack(writer, weight, False), shape_of(weight)[1])
        return None

    return rewrite(mod, visit, name)


def _multiplies_weight(writer: Writer, value: Any) -> bool:
    x, weight = value.args
    return (
        weight.ty.ndim == 2
        and x.ty.ndim == 2
        and writer.is_weight(weight)
        and not writer.is_weight(x)
    )


def _dense(writer: Writer, x: Any, packed: Any, columns: int) -> Any:
    return writer.call_te(
        lambda a, w: dense(a, w, columns), x, packed, hint="dense", attrs=OUT_EWISE_FUSABLE
    )


def _pack(writer: Writer, weight: Any, transposed: bool) -> Any:
    """The packed form of W [K, N], or [N, K] when `transposed`."""
    emit = writer.emit
    columns, rows = shape_of(weight) if transposed else reversed(shape_of(weight))
    panels = ceil_div(columns, PANEL)
    if extra := panels * PANEL - columns:
        weight = emit(rx.op.nn.pad(weight, [0, extra, 0, 0] if transposed else [0, 0, 0, extra]))
    if transposed:
        return emit(
            rx.op.permute_dims(emit(rx.op.reshape(weight, [panels, PANEL, rows])), [0, 2, 1])
        )
    return emit(rx.op.permute_dims(emit(rx.op.reshape(weight, [rows, panels, PANEL])), [1, 0, 2]))


def _call_packed(writer: Writer, region: Any, call: Any, name: str, clone: str) -> Any:
    """The call of a region written anew over a packed weight, with the types its arguments have."""
    product = next(value for _, value in bindings(region) if op_name(value) == "relax.matmul")
    values = dict(bindings(region))
    transposed = product.args[1] in values
    source = values[product.args[1]].args[0] if transposed else product.args[1]
    at = list(region.params).index(source)
    args = [writer.emit(arg) for arg in call.args]
    columns = shape_of(product)[1]
    args[at] = _pack(writer, args[at], transposed)
    params = parameters([param.name for param in region.params], args)
    inner = writer.nested(params)
    inner.values.update(zip(region.params, params, strict=True))
    last = region.body.body
    for var, value in bindings(region):
        if value.same_as(product):
            x = inner.substitute(product.args[0])
            inner.bind(var, _dense(inner, x, params[at], columns), result=var.same_as(last))
        elif not (transposed and var.same_as(product.args[1])):
            inner.bind(var, value, result=var.same_as(last))
    func = inner.function(params, inner.substitute(last)).with_attrs({REGION: name, CLONE: clone})
    return rx.Call(writer.add_function(func, f"{name}__{clone}"), args)
