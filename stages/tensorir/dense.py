"""Matrix products with packed weights; a region becomes one function, fused into one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dataflow import Writer, bindings, op_name, parameters, rewrite, rx, same_dtype, shape_of
from ..program import CLONE, LOOKUP, QUANTIZED, REGION
from ..quantization import Scheme, scheme
from .kernel import ceil_div
from .quantized import call_dense, call_rows, pack_integers
from .te_ops import OUT_EWISE_FUSABLE, PANEL, dense
from .tensorize.integers import multiply_integers
from .tensorize.packing import NONE, Instructions


def pack_dense(mod: Any, name: str = "main", instructions: Instructions = NONE) -> Any:
    """`mod` whose function `name` reads 2-D weights packed: [ceil(N / PANEL), K, PANEL].

    So are those that lookups take rows of.

    A call of the composite `region_<k>` becomes a call of `region_<k>__<name>`, which has the same
    parameters but for the weight, and the attributes `tapml.region` and `tapml.clone`.
    """
    regions = {
        gvar.name_hint: func
        for gvar, func in mod.functions.items()
        if func.attrs and REGION in func.attrs
    }

    lookups = {
        gvar.name_hint: func
        for gvar, func in mod.functions.items()
        if func.attrs and LOOKUP in func.attrs
    }

    def visit(writer: Writer, var: Any, value: Any) -> Any:
        if op_name(value) in lookups:
            return _call_lookup(writer, lookups[op_name(value)], value)
        if op_name(value) in regions:
            return _call_packed(writer, regions[op_name(value)], value, op_name(value), name)
        integers = multiply_integers(writer, var, value, instructions)
        if integers is not None:
            return integers
        if (
            op_name(value) == "relax.matmul"
            and same_dtype(var, *value.args)
            and _multiplies_weight(writer, value)
        ):
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
    read = _read_weight(region, product.args[1])
    at = [list(region.params).index(param) for param in read.params]
    args = [writer.emit(arg) for arg in call.args]
    columns = shape_of(product)[1]
    for k in at:
        args[k] = _pack(writer, args[k], read.transposed)
    if read.how is not None:
        args[at[0]] = pack_integers(writer, args[at[0]], read.how)
    params = parameters([param.name for param in region.params], args)
    inner = writer.nested(params)
    inner.values.update(zip(region.params, params, strict=True))
    last = region.body.body
    for var, value in bindings(region):
        if value.same_as(product):
            x, weight = inner.substitute(product.args[0]), [params[k] for k in at]
            if read.how is None:
                y = _dense(inner, x, weight[0], columns)
            else:
                y = call_dense(inner, x, weight[0], weight[1:], columns, read.how)
            inner.bind(var, y, result=var.same_as(last))
        elif var not in read.values:
            inner.bind(var, value, result=var.same_as(last))
    func = inner.function(params, inner.substitute(last)).with_attrs({REGION: name, CLONE: clone})
    return rx.Call(writer.add_function(func, f"{name}__{clone}"), args)


def _call_lookup(writer: Writer, lookup: Any, call: Any) -> Any:
    """Rows read out of the panels that regions read too."""
    how = scheme(str(lookup.attrs[LOOKUP]))
    indices, integers, *scaling = (writer.emit(arg) for arg in call.args)
    packed = pack_integers(writer, _pack(writer, integers, True), how)
    panels = [_pack(writer, one, True) for one in scaling]
    return call_rows(writer, indices, packed, panels, shape_of(integers), how)


@dataclass(frozen=True)
class _Read:
    """How a region comes to the matrix that it multiplies by.

    params: the weight, or the integers, scales and minima that it is decoded from
    values: variables of the region that are only there for it
    """

    params: tuple[Any, ...]
    values: tuple[Any, ...]
    transposed: bool
    how: Scheme | None


def _read_weight(region: Any, matrix: Any) -> _Read:
    values, passed = dict(bindings(region)), []
    transposed = op_name(values.get(matrix)) == "relax.permute_dims"
    if transposed:
        passed.append(matrix)
        matrix = values[matrix].args[0]
    if QUANTIZED not in region.attrs:
        return _Read((matrix,), tuple(passed), transposed, None)
    decode = values[matrix]
    how = scheme(str(region.attrs[QUANTIZED]))
    return _Read(tuple(decode.args[1].fields), (*passed, matrix), transposed, how)
