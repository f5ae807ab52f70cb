"""Elementwise operators, reductions and new tensors, in the dtypes that torch computes in.

TVM's converters take a number in the tensor's dtype (`i * 0.5` is then 0), and its reductions sum
booleans as booleans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...compat import tvm
from .call import Call, dtype_of

rx = tvm.relax
Op = Callable[..., Any]
Converter = Callable[[Call], Any]


def unary(op: Op) -> Converter:
    """Of integers in the float dtype of the result."""
    return lambda call: call.emit(op(call.cast(call.value("self"), call.dtype)))


def binary(op: Op, *, bools: Op | None = None) -> Converter:
    """Both sides in torch's common dtype. `bools`: what it is on booleans."""

    def convert(call: Call) -> Any:
        dtype = _common(call) if call.out.dtype is torch.bool else call.out.dtype
        left, right = (call.operand(one, dtype_of(dtype)) for one in call.pair)
        if (alpha := call.args.get("alpha", 1)) != 1:
            right = rx.op.multiply(right, rx.const(alpha, dtype_of(dtype)))
        if dtype is torch.bool and bools is not None:
            return call.emit(bools(left, right))
        return call.emit(op(left, right))

    return convert


def logical(op: Op) -> Converter:
    return lambda call: call.emit(op(*(_truth(call, one) for one in call.pair)))


def _common(call: Call) -> torch.dtype:
    """The dtype in which a comparison is made."""

    def of(side: Any) -> Any:
        value = side.meta["val"] if isinstance(side, fx.Node) else side
        return 1 if isinstance(value, torch.SymInt) else value

    left, right = map(of, call.pair)
    return torch.result_type(left, right)


def _truth(call: Call, node: fx.Node) -> Any:
    value = call.of(node)
    if node.meta["val"].dtype is torch.bool:
        return value
    return call.emit(rx.op.not_equal(value, rx.const(0, value.ty.dtype)))


def logical_not(call: Call) -> Any:
    return call.emit(rx.op.logical_not(_truth(call, call["self"])))


def bitwise_not(call: Call) -> Any:
    op = rx.op.logical_not if call.out.dtype is torch.bool else rx.op.bitwise_not
    return call.emit(op(call.value("self")))


def division(call: Call) -> Any:
    """div.Tensor_mode: rounded to zero, or down."""
    left, right = (call.operand(one, call.dtype) for one in call.pair)
    mode, floats = call["rounding_mode"], call.out.is_floating_point()
    if mode == "floor":
        if floats:
            return call.emit(rx.op.floor(rx.op.divide(left, right)))
        return call.emit(rx.op.floor_divide(left, right))
    quotient = rx.op.divide(left, right)
    return call.emit(rx.op.trunc(quotient) if mode == "trunc" and floats else quotient)


def power(call: Call) -> Any:
    """Whole exponents as products: `pow` of a library call costs tens of them."""
    base, exponent = call.pair
    if isinstance(exponent, int | float) and float(exponent).is_integer() and 0 < exponent <= 8:
        x = call.operand(base, call.dtype)
        square, result, left = x, None, int(exponent)
        while left:
            if left % 2:
                result = square if result is None else call.emit(rx.op.multiply(result, square))
            left //= 2
            square = call.emit(rx.op.multiply(square, square)) if left else square
        return result
    if exponent == 0.5:
        return call.emit(rx.op.sqrt(call.operand(base, call.dtype)))
    if exponent == -0.5:
        return call.emit(rx.op.rsqrt(call.operand(base, call.dtype)))
    if call.out.is_floating_point():
        return call.emit(rx.op.power(*(call.operand(one, call.dtype) for one in call.pair)))
    exact = rx.op.power(*(call.operand(one, "float64") for one in call.pair))
    return call.emit(rx.op.astype(rx.op.round(exact), call.dtype))


def ignoring_nan(op: Op) -> Converter:
    """fmax and fmin: of a number and NaN, the number."""

    def convert(call: Call) -> Any:
        left, right = (call.operand(one, call.dtype) for one in call.pair)
        value = rx.op.where(rx.op.isnan(right), left, op(left, right))
        return call.emit(rx.op.where(rx.op.isnan(left), right, value))

    return convert


def hypotenuse(call: Call) -> Any:
    squares = (rx.op.multiply(one, one) for one in map(call.of, call.pair))
    return call.emit(rx.op.sqrt(rx.op.add(*squares)))


def clamp(call: Call) -> Any:
    x = call.cast(call.value("self"), call.dtype)
    low, high = call.args.get("min"), call.args.get("max")
    if isinstance(low, int | float) and isinstance(high, int | float):
        return call.emit(rx.op.clip(x, low, high))
    if low is not None:
        x = call.emit(rx.op.maximum(x, call.operand(low, call.dtype)))
    return x if high is None else call.emit(rx.op.minimum(x, call.operand(high, call.dtype)))


def where(call: Call) -> Any:
    sides = (call.operand(call[name], call.dtype) for name in ("self", "other"))
    return call.emit(rx.op.where(call.value("condition"), *sides))


def is_nan(call: Call) -> Any:
    return call.emit(rx.op.isnan(call.value("self")))


def is_inf(call: Call) -> Any:
    return call.emit(rx.op.equal(rx.op.abs(call.value("self")), _infinity(call)))


def is_finite(call: Call) -> Any:
    return call.emit(rx.op.less(rx.op.abs(call.value("self")), _infinity(call)))


def _infinity(call: Call) -> Any:
    return rx.const(math.inf, dtype_of(call.meta("self").dtype))


def erfc(call: Call) -> Any:
    one = rx.const(1.0, call.dtype)
    return call.emit(rx.op.subtract(one, rx.op.erf(call.cast(call.value("self"), call.dtype))))


def exp2(call: Call) -> Any:
    two = rx.const(2.0, call.dtype)
    return call.emit(rx.op.power(two, call.cast(call.value("self"), call.dtype)))


def to_copy(call: Call) -> Any:
    return call.cast(call.value("self"), call.dtype)


# --- reductions


def reduction(op: Op) -> Converter:
    """Over `dim`, or all; summed in the dtype of the result."""

    def convert(call: Call) -> Any:
        x = call.cast(call.value("self"), call.dtype)
        return call.emit(op(x, _axes(call), bool(call.args.get("keepdim"))))

    return convert


def _axes(call: Call) -> list[int] | None:
    dims = call.args.get("dim")
    if dims is None or dims == []:
        return None
    rank = max(call.meta("self").dim(), 1)
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def any_(call: Call) -> Any:
    flags = rx.op.astype(_truth(call, call["self"]), "int8")
    found = rx.op.max(flags, _axes(call), bool(call.args.get("keepdim")))
    return call.emit(rx.op.astype(found, "bool"))


def extreme(value: Op, place: Op) -> Converter:
    """max.dim and min.dim: the value and the first place of it."""

    def convert(call: Call) -> tuple[Any, Any]:
        x, axis, keep = call.value("self"), call.axis(), bool(call["keepdim"])
        return call.emit(value(x, axis, keep)), call.emit(place(x, axis, keep))

    return convert


def variance(call: Call) -> Any:
    return _variance(call, call.dtype)


def variance_and_mean(call: Call) -> tuple[Any, Any]:
    dtype = dtype_of(call.node.meta["val"][0].dtype)
    x = call.cast(call.value("self"), dtype)
    mean = call.emit(rx.op.mean(x, _axes(call), bool(call["keepdim"])))
    return _variance(call, dtype), mean


def _variance(call: Call, dtype: str) -> Any:
    """Around the mean, divided by count - correction."""
    x, axes = call.cast(call.value("self"), dtype), _axes(call)
    shape, count = call.meta("self").shape, 1
    for axis in range(len(shape)) if axes is None else axes:
        count = count * shape[axis]
    correction = 1 if call["correction"] is None else call["correction"]
    apart = call.emit(rx.op.subtract(x, rx.op.mean(x, axes, True)))
    total = rx.op.sum(rx.op.multiply(apart, apart), axes, bool(call["keepdim"]))
    return call.emit(rx.op.divide(total, call.scalar(count - correction, dtype)))


def scan(op: Op) -> Converter:
    """cumsum and cumprod."""

    def convert(call: Call) -> Any:
        x = call.cast(call.value("self"), call.dtype)
        return call.emit(op(x, call.axis(), call.dtype)) if call.out.dim() else x

    return convert


# --- new tensors


def full(value: float | None = None) -> Converter:
    """A tensor of one value, its `fill_value` if none is given here."""

    def convert(call: Call) -> Any:
        fill = call["fill_value"] if value is None else value
        scalar = call.operand(fill, call.dtype)
        if not call.shape:
            return scalar
        if isinstance(fill, float) and not math.isfinite(fill):  # TVM's own lowering fails on it
            return call.emit(rx.op.broadcast_to(scalar, call.shape))
        return call.emit(rx.op.full(call.shape, scalar, call.dtype))

    return convert


def scalar_tensor(call: Call) -> Any:
    return call.operand(call["s"], call.dtype)


def arange(call: Call) -> Any:
    start, end, step = call.args.get("start", 0), call["end"], call.args.get("step", 1)
    numbers = [call.plain(one) for one in (start, end, step)]
    if any(isinstance(one, float) for one in numbers):
        length = call.size(call.out.shape[0])
        if not isinstance(length, int):
            raise NotImplementedError("steps that are no integers, to an end that is a dim")
        values = torch.arange(*numbers, dtype=call.out.dtype)[:length]
        return rx.const(values.numpy(), call.dtype)
    whole = call.emit(rx.op.arange(*map(call.size, numbers), dtype="int64"))
    return call.cast(whole, call.dtype)
