"""Quantised products as products of small integers.

Models say them in int32 (an integer less its zero point, as MatMulInteger and QLinearConv are
imported) or in floats (DequantizeLinear before and QuantizeLinear after a product). Both are the
sum of (a - za) * (b - zb), which is that of a * b and terms that a row or a column has of its own:
the weight's are computed once, with its packing. An intrinsic that wants the other signedness gets
a ± 128, with the zero point moved as far. All of it is exact, modulo 2**32 as sums in int32 are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product as pairs
from types import MappingProxyType
from typing import Any

import numpy as np

from ...dataflow import Writer, is_constant, op_name, rewrite, rx, same_dtype, shape_of
from .packing import Build, Instructions, Packed

PRODUCTS = ("relax.matmul", "relax.nn.conv2d")
SMALL = ("int8", "uint8")
OTHER = {"int8": ("uint8", 128), "uint8": ("int8", -128)}  # and what is added to get there


@dataclass(frozen=True)
class Integers:
    """`values - zero`: small integers, and their zero point as Relax has it (None: zero)."""

    values: Any
    zero: Any = None

    @property
    def dtype(self) -> str:
        return str(self.values.ty.dtype)


@dataclass(frozen=True)
class Choice:
    """A product by an intrinsic, of operands moved to the other signedness or not."""

    packed: Packed
    moved: tuple[bool, bool]


def centred(
    writer: Writer, expr: Any, logical: Mapping[Any, Any] = MappingProxyType({})
) -> Integers | None:
    """The small integers behind an int32 value, if it is made of them; `logical`: calls that some
    values stand for, which are then only followed through arithmetic.
    """
    call = logical[expr] if expr in logical else writer.definition(expr)
    if call is None:
        return None
    name = op_name(call)
    if name == "relax.astype":
        source = call.args[0]
        return Integers(source) if str(source.ty.dtype) in SMALL else None
    if name == "relax.subtract":
        inner = centred(writer, call.args[0], logical)
        zero = call.args[1]
        if inner is None or inner.zero is not None or zero.ty.ndim > inner.values.ty.ndim:
            return None
        return replace(inner, zero=zero)
    if name in ("relax.reshape", "relax.permute_dims") and not logical:
        inner = centred(writer, call.args[0])
        if inner is None or (inner.zero is not None and not _is_scalar(inner.zero)):
            return None
        args = [inner.values, *call.args[1:]]
        return replace(inner, values=writer.emit(rx.Call(call.op, args, call.attrs, call.ty_args)))
    return None


def choose(
    writer: Writer,
    instructions: Instructions,
    build: Build,
    x: Integers,
    w: Integers,
    shapes: Sequence[Sequence[Any]],
) -> Choice | None:
    """The cheapest way to multiply tensors of `shapes`; of equal ones that which leaves the fewest
    terms to add.
    """

    def found() -> Iterator[tuple[tuple[float, bool, bool], Choice]]:
        for moved in pairs((False, True), (False, True)):
            types = [
                (shape, OTHER[one.dtype][0] if move else one.dtype)
                for shape, one, move in zip(shapes, (x, w), moved, strict=True)
            ]
            packed = instructions.find(build, *types)
            if packed is not None:
                zero = zero_point(writer, w, moved[1])
                rank = (packed.over.cost, not _is_zero(zero), moved[0])
                yield rank, Choice(packed, moved)

    return min(found(), key=lambda one: one[0], default=(None, None))[1]


def shifted(writer: Writer, values: Any, moved: bool) -> Any:
    """Integers as the other signedness, when they are moved."""
    if not moved:
        return values
    dtype, by = OTHER[str(values.ty.dtype)]
    wide = writer.emit(rx.op.astype(values, "int32"))
    return writer.emit(rx.op.astype(writer.emit(rx.op.add(wide, rx.const(by, "int32"))), dtype))


def zero_point(writer: Writer, one: Integers, moved: bool) -> Any:
    """The int32 zero point of moved integers: an array where it is known, else an expression."""
    by = OTHER[one.dtype][1] if moved else 0
    known = np.zeros((), "int32") if one.zero is None else _known(writer, one.zero)
    if known is not None:
        return np.asarray(known.astype("int32") + np.int32(by))
    return writer.emit(rx.op.add(one.zero, rx.const(by, "int32"))) if by else one.zero


def _known(writer: Writer, expr: Any) -> np.ndarray | None:
    """The value of a constant, behind casts and unit axes."""
    if is_constant(expr):
        return expr.value.numpy()
    call = writer.definition(expr, "relax.astype", "relax.reshape", "relax.expand_dims")
    inner = _known(writer, call.args[0]) if call is not None else None
    if call is None or inner is None:
        return None
    return inner.astype(str(call.ty.dtype)).reshape(tuple(map(int, shape_of(call))))


def _is_zero(zero: Any) -> bool:
    return isinstance(zero, np.ndarray) and not zero.any()


def _is_scalar(expr: Any) -> bool:
    return all(isinstance(size, int) and size == 1 for size in shape_of(expr))


def expression(zero: Any) -> Any:
    """A zero point as Relax has it."""
    if not isinstance(zero, np.ndarray):
        return zero
    return rx.const(zero.reshape(()) if zero.size == 1 else zero, "int32")


def less(writer: Writer, y: Any, zero: Any, sums: Any) -> Any:
    """`y` less a zero point times sums."""
    if _is_zero(zero):
        return y
    term = writer.emit(rx.op.multiply(sums, expression(zero)))
    return writer.emit(rx.op.subtract(y, term))


def multiply_integers(writer: Writer, var: Any, call: Any, instructions: Instructions) -> Any:
    """A product of centred integers with a weight by an intrinsic; None for another call."""
    if op_name(call) != "relax.matmul" or str(var.ty.dtype) != "int32":
        return None
    x, w = (centred(writer, arg) for arg in call.args)
    if x is None or w is None or not _fits(writer, x, w):
        return None
    depth = shape_of(w.values)[0]
    shapes = [shape_of(one.values) for one in (x, w)]
    found = choose(writer, instructions, _dense, x, w, shapes)
    if found is None:
        return None
    zeros = [zero_point(writer, one, move) for one, move in zip((x, w), found.moved, strict=True)]
    left, right = (
        shifted(writer, one.values, move) for one, move in zip((x, w), found.moved, strict=True)
    )
    y = writer.emit(found.packed.call(writer, left, right, "dense_int8"))
    wide = writer.emit(rx.op.astype(right, "int32"))
    sums = writer.emit(rx.op.sum(wide, axis=[0]))
    y = less(writer, y, zeros[0], sums)
    if not _is_zero(zeros[1]):
        rows = writer.emit(rx.op.sum(writer.emit(rx.op.astype(left, "int32")), [1], keepdims=True))
        rows = less(writer, rows, zeros[0], rx.const(np.array([depth]), "int32"))
        y = less(writer, y, zeros[1], rows)
    return y


def _fits(writer: Writer, x: Integers, w: Integers) -> bool:
    """Rows times a weight, zero points by row and by column at most."""
    if x.values.ty.ndim != 2 or w.values.ty.ndim != 2:
        return False
    if not writer.is_weight(w.values) or writer.is_weight(x.values):
        return False
    by_row = x.zero is None or shape_of(x.zero)[-1:] in ([], [1])
    by_column = w.zero is None or shape_of(w.zero)[-2:-1] in ([], [1])
    return by_row and by_column


def _dense(x: Any, w: Any) -> Any:
    from ..te_ops import te

    k = te.reduce_axis((0, x.shape[1]), "k")

    def element(m: Any, n: Any) -> Any:
        return te.sum(x(m, k).astype("int32") * w(k, n).astype("int32"), axis=k)

    return te.compute((x.shape[0], w.shape[1]), element, "dense")


def expose_integers(mod: Any, instructions: Instructions, name: str = "main") -> Any:
    """`mod` whose function `name` quantises and dequantises by arithmetic and, where there are
    instructions for it, multiplies integers where it multiplied what they stand for.
    """

    def visit(writer: Writer, var: Any, call: Any) -> Any:
        if op_name(call) == "relax.quantize":
            return _quantized(writer, call, str(var.ty.dtype))
        if op_name(call) in PRODUCTS and str(var.ty.dtype) == "float32" and instructions.known:
            return _product(writer, call)
        return None

    def left(writer: Writer, _var: Any, call: Any) -> Any:
        if op_name(call) != "relax.dequantize" or writer.is_weight(call):
            return None
        found = _scaled(writer, call, None)
        if found is None or not _is_scalar(found.scale):
            return None
        value = writer.emit(rx.op.astype(_wide(writer, found.integers), "float32"))
        return rx.op.multiply(value, found.scale)

    return rewrite(rewrite(mod, visit, name), left, name)


@dataclass(frozen=True)
class _Scaled:
    """`scale * (values - zero)`; the scale has one element, or one for each output of a weight."""

    integers: Integers
    scale: Any


def _product(writer: Writer, call: Any) -> Any:
    """A product of dequantised operands as one of integers, which is then scaled."""
    conv = op_name(call) != "relax.matmul"
    x = _dequantized(writer, call.args[0], None)
    w = _dequantized(writer, call.args[1], 0 if conv else call.args[1].ty.ndim - 1)
    if x is None or w is None:
        return None
    wide = [_wide(writer, one.integers) for one in (x, w)]
    if conv:
        names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout")
        how = {name: getattr(call.attrs, name) for name in names}
        total = rx.op.nn.conv2d(*wide, **how, out_dtype="int32")
    else:
        total = rx.op.matmul(*wide, out_dtype="int32")
    value = writer.emit(rx.op.astype(writer.emit(total), "float32"))
    scale = w.scale
    if conv and not _is_scalar(scale):
        scale = writer.emit(rx.op.reshape(scale, [1, shape_of(scale)[0], 1, 1]))
    return rx.op.multiply(value, writer.emit(rx.op.multiply(scale, x.scale)))


def _wide(writer: Writer, one: Integers) -> Any:
    wide = writer.emit(rx.op.astype(one.values, "int32"))
    if one.zero is None:
        return wide
    zero = _known(writer, one.zero)
    if zero is not None and not zero.any():
        return wide
    zero = writer.emit(rx.op.astype(one.zero, "int32")) if zero is None else expression(zero)
    return writer.emit(rx.op.subtract(wide, zero))


def _dequantized(writer: Writer, expr: Any, outputs: int | None) -> _Scaled | None:
    """What `relax.dequantize` made of small integers, moved since perhaps; `outputs`: the axis
    that may have scales of its own.
    """
    call = writer.definition(
        expr, "relax.dequantize", "relax.reshape", "relax.permute_dims", "relax.nn.pad"
    )
    if call is None or op_name(call) == "relax.nn.pad":
        return None
    if op_name(call) != "relax.dequantize":
        if outputs is not None and op_name(call) == "relax.reshape":
            return None
        order = [int(axis) for axis in call.attrs.axes or ()] if outputs is not None else []
        rank = call.ty.ndim
        where = (order or list(reversed(range(rank))))[outputs] if outputs is not None else None
        inner = _dequantized(writer, call.args[0], where)
        if inner is None:
            return None
        args = [inner.integers.values, *call.args[1:]]
        moved = writer.emit(rx.Call(call.op, args, call.attrs, call.ty_args))
        return replace(inner, integers=replace(inner.integers, values=moved))
    return _scaled(writer, call, outputs)


def _scaled(writer: Writer, call: Any, outputs: int | None) -> _Scaled | None:
    """What a call of `relax.dequantize` says, if its scales and zero points fit."""
    values, scale, zero = call.args
    if str(values.ty.dtype) not in SMALL or str(scale.ty.dtype) != "float32":
        return None
    known = _known(writer, zero)
    by_tensor = _is_scalar(scale) and (_is_scalar(zero) or (known is not None and not known.any()))
    by_output = outputs is not None and int(call.attrs.axis) % values.ty.ndim == outputs
    by_output = by_output and known is not None and not known.any()
    if not by_tensor and not by_output:
        return None
    if known is not None and not known.any():
        return _Scaled(Integers(values), scale)
    return _Scaled(Integers(values, zero), scale)


def _quantized(writer: Writer, call: Any, dtype: str) -> Any:
    """round(x / scale) + zero, within the integers of its dtype; by tensor."""
    x, scale, zero = call.args
    if (
        dtype not in SMALL
        or not same_dtype(x, scale)
        or not (_is_scalar(scale) and _is_scalar(zero))
    ):
        return None
    bounds = np.iinfo(dtype)
    value = writer.emit(rx.op.round(writer.emit(rx.op.divide(x, scale))))
    known = _known(writer, zero)
    if known is None:
        value = writer.emit(rx.op.add(value, writer.emit(rx.op.astype(zero, str(x.ty.dtype)))))
    elif known.any():
        value = writer.emit(rx.op.add(value, rx.const(float(known.item()), str(x.ty.dtype))))
    value = writer.emit(rx.op.clip(value, int(bounds.min), int(bounds.max)))
    return rx.op.astype(value, dtype)
