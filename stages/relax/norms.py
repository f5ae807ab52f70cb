"""RMS norms, which frameworks write as six operators, as one: its row is then read once."""

from __future__ import annotations

from typing import Any

from ..dataflow import Writer, op_name, rewrite, rx, scalar_value, shape_of


def fuse_rms_norm(mod: Any) -> Any:
    """`mod` with `x * rsqrt(mean(x²) + ε) * w` over the last axis as `relax.nn.rms_norm`."""

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        if op_name(value) != "relax.multiply":
            return None
        for weight, normed in (value.args, reversed(value.args)):
            found = _normalized(writer, normed)
            if found is None or not writer.is_weight(weight) or weight.ty.ndim != 1:
                continue
            x, epsilon = found
            if shape_of(weight) == shape_of(x)[-1:] and weight.ty.dtype == x.ty.dtype:
                return rx.op.nn.rms_norm(x, weight, [-1], epsilon)
        return None

    return rewrite(mod, visit)


def _normalized(writer: Writer, expr: Any) -> tuple[Any, float] | None:
    """(x, ε) where `expr` is `x * rsqrt(mean(x²) + ε)`."""
    product = writer.definition(expr, "relax.multiply")
    for x, root in (product.args, reversed(product.args)) if product is not None else ():
        shifted = _argument(writer, root, "relax.rsqrt")
        total = writer.definition(shifted, "relax.add") if shifted is not None else None
        if total is None or (epsilon := scalar_value(total.args[1])) is None:
            continue
        mean = writer.definition(total.args[0], "relax.mean")
        if mean is None or not mean.attrs.keepdims or mean.attrs.axis is None:
            continue
        last = x.ty.ndim - 1
        if [int(axis) % x.ty.ndim for axis in mean.attrs.axis] == [last] and _is_square(
            writer, mean.args[0], x
        ):
            return x, float(epsilon)
    return None


def _argument(writer: Writer, expr: Any, name: str) -> Any | None:
    call = writer.definition(expr, name)
    return call.args[0] if call is not None else None


def _is_square(writer: Writer, expr: Any, x: Any) -> bool:
    call = writer.definition(expr, "relax.power", "relax.square", "relax.multiply")
    if call is None or not call.args[0].same_as(x):
        return False
    match op_name(call):
        case "relax.power":
            return scalar_value(call.args[1]) == 2.0
        case "relax.multiply":
            return call.args[1].same_as(x)
    return True
