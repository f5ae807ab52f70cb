"""Lookups: a product with one-hot rows is a `take`, and what follows row by row is looked up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from ..dataflow import (
    ELEMENTWISE,
    Writer,
    is_constant,
    op_name,
    operands,
    rewrite,
    rx,
    same_shape,
    shape_of,
)


def one_hot_to_take(mod: Any) -> Any:
    """`mod` with `matmul(astype(equal(ids, [0..n)), float), W)` as a `take` of W's rows.

    An id outside [0, n) is a row of zeros in both: W gets a zero row at each end, ids are clipped
    to [-1, n] and moved up. Ids of other dtypes than int32 and int64 may not hold these, and stay.
    """

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        if (
            op_name(value) != "relax.matmul"
            or value.args[1].ty.ndim != 2
            or not writer.is_weight(value.args[1])
        ):
            return None
        cast = writer.definition(value.args[0], "relax.astype")
        equal = writer.definition(cast.args[0], "relax.equal") if cast is not None else None
        if equal is None:
            return None
        for ids, classes in (equal.args, reversed(equal.args)):
            if (
                _counts_up(classes)
                and shape_of(ids)[-1] == 1
                and ids.ty.ndim == value.args[0].ty.ndim
                and str(ids.ty.dtype) in ("int32", "int64")
            ):
                return _take_rows(writer, value.args[1], ids)
        return None

    return rewrite(mod, visit)


def elementwise_before_take(mod: Any, kept: Collection[str] = ()) -> Any:
    """`mod` whose elementwise operators on looked-up rows of a weight work on the weight itself.

    `gelu(take(W, ids) + b)` is `take(gelu(W + b), ids)`: once per row when weights are packed, not
    once per lookup. Not of the weights `kept`, which would be there once more, as floats.
    """

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        if op_name(value) not in ELEMENTWISE:
            return None
        takes = [take for arg in value.args if (take := _row_lookup(writer, arg)) is not None]
        if not takes or any(not _looks_up_alike(take, takes[0]) for take in takes):
            return None
        tables = [leaf for take in takes for leaf in operands(take.args[0])]
        if any(isinstance(leaf, rx.Var) and leaf.name in kept for leaf in tables):
            return None
        if not same_shape(shape_of(writer.typed(value)), shape_of(takes[0])):
            return None
        width = shape_of(takes[0])[-1]
        args = [_per_row(writer, arg, width) for arg in value.args]
        if any(arg is None for arg in args):
            return None
        table = writer.emit(rx.Call(value.op, args, value.attrs, value.ty_args))
        return rx.op.take(table, takes[0].args[1], axis=0, mode=takes[0].attrs.mode)

    return rewrite(mod, visit)


def _looks_up_alike(take: Any, other: Any) -> bool:
    """Whether two lookups, of tables of as many rows, take the same ones."""
    return (
        take.args[1].same_as(other.args[1])
        and shape_of(take.args[0])[0] == shape_of(other.args[0])[0]
        and take.attrs.mode == other.attrs.mode
    )


def _counts_up(expr: Any) -> bool:
    if not is_constant(expr):
        return False
    data = expr.value.numpy()
    return (
        data.ndim > 0
        and data.shape[-1] == data.size
        and np.array_equal(data.ravel(), np.arange(data.size))
    )


def _take_rows(writer: Writer, weight: Any, ids: Any) -> Any:
    rows = shape_of(weight)[0]
    table = writer.emit(rx.op.nn.pad(weight, [1, 1, 0, 0]))
    flat = writer.emit(rx.op.reshape(ids, shape_of(ids)[:-1]))
    inside = writer.emit(rx.op.clip(flat, -1, rows))
    row = writer.emit(rx.op.add(inside, rx.const(1, ids.ty.dtype)))
    return rx.op.take(table, row, axis=0, mode="fast")


def _row_lookup(writer: Writer, expr: Any) -> Any | None:
    take = writer.definition(expr, "relax.take")
    if take is None or not writer.is_weight(take.args[0]) or take.args[0].ty.ndim != 2:
        return None
    return writer.typed(take) if take.attrs.axis is not None and int(take.attrs.axis) == 0 else None


def _per_row(writer: Writer, arg: Any, width: int) -> Any | None:
    """What an operand is when rows are computed instead of lookups; None when nothing can be."""
    if (take := _row_lookup(writer, arg)) is not None:
        return take.args[0]
    if not isinstance(arg, rx.Var) and not is_constant(arg):
        return arg  # an attribute in operand's clothing, as the bounds of clip
    if not writer.is_weight(arg):
        return None
    if arg.ty.ndim == 0:
        return arg
    sizes = shape_of(arg)
    if any(size != 1 for size in sizes[:-1]) or sizes[-1] not in (1, width):
        return None
    return writer.emit(rx.op.reshape(arg, [sizes[-1]]))
