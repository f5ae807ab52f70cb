"""Arithmetic in one canonical form: constants, Clip, Max, division by constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm_ffi

from ..compat import tvm
from ..dataflow import Writer, op_name, rewrite, rx, same_shape, scalar_value, shape_of

topi = tvm.topi
_FLOATS = ("float16", "float32", "float64")
LIMITS = {"relax.maximum": -math.inf, "relax.minimum": math.inf}


def canonicalize(mod: Any, *, reciprocal: bool = True) -> Any:
    """`mod` in canonical arithmetic.

    - ONNX's Clip (isnan, where and call_tir of a maximum or minimum) → `relax.clip`, `maximum`,
      `minimum`
    - ONNX's Max and Min (broadcast_to, stack, reduce) → `relax.maximum`, `minimum`
    - `reciprocal`: x / c → x * (1 / c) for a number c; differs by at most one unit in the last
      place
    """

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        name = op_name(value)
        if name in ("relax.isnan", "relax.where"):
            return _fold_constant(value)
        if name == "relax.divide":
            return _reciprocal(value) if reciprocal else None
        new = None
        if name == "relax.call_tir":
            new = _extremum(writer, _from_tensorir(writer, value))
        elif name in LIMITS:
            new = _extremum(writer, value)
        elif name in ("relax.max", "relax.min"):
            new = _from_stack(writer, value)
        if new is None or new is value:
            return None
        before, after = (shape_of(writer.typed(one)) for one in (value, new))
        return new if same_shape(before, after) else None  # an operand alone gave it its shape

    return rewrite(mod, visit)


def _fold_constant(value: Any) -> Any:
    first = scalar_value(value.args[0])
    if first is None or value.args[0].ty.ndim:
        return None
    if op_name(value) == "relax.isnan":
        return rx.const(math.isnan(first), "bool")
    chosen = value.args[1] if first else value.args[2]
    return chosen if chosen.ty.ndim == 0 and value.args[1].ty == value.args[2].ty else None


def _from_tensorir(writer: Writer, value: Any) -> Any:
    """maximum or minimum for a call_tir of TOPI's, as ONNX's Clip has it, else the call itself."""
    func, args, result = writer.mod[value.args[0]], value.args[1].fields, writer.typed(value)
    if len(args) != 2 or not isinstance(result.ty, rx.TensorType):
        return value
    if any(arg.ty.ndim and not same_shape(shape_of(arg), shape_of(result)) for arg in args):
        return value
    for kernel, op in ((topi.maximum, rx.op.maximum), (topi.minimum, rx.op.minimum)):
        builder = rx.BlockBuilder()
        call = builder.call_te(kernel, *args)
        if tvm_ffi.structural_equal(func, builder.get()[call.args[0]], map_free_vars=True):
            return op(*(_defined_constant(writer, arg) for arg in args))
    return value


def _extremum(writer: Writer, value: Any) -> Any:
    """A bound that is infinite is none; an upper and a lower one, nested, are one clip."""
    name = op_name(value)
    if name not in LIMITS:
        return value
    args = [_defined_constant(writer, arg) for arg in value.args]
    value = rx.Call(value.op, args, value.attrs, value.ty_args)
    x, bound = _split(value)
    if bound is None:
        return value
    if bound == LIMITS[name]:
        return x
    inner = writer.definition(x, *(LIMITS.keys() - {name}))
    if inner is not None:
        y, other = _split(inner)
        if other is not None:
            low, high = (bound, other) if name == "relax.maximum" else (other, bound)
            if low <= high:
                return rx.op.clip(y, low, high)
    return value


def _split(value: Any) -> tuple[Any, float | None]:
    """(x, bound) of a maximum or minimum with a 0-d constant, (x, None) of any other."""
    for x, bound in (value.args, reversed(value.args)):
        if bound.ty.ndim == 0 and (number := scalar_value(bound)) is not None:
            return x, number
    return value.args[0], None


def _defined_constant(writer: Writer, expr: Any) -> Any:
    """The constant that a variable stands for (also behind a broadcast), else `expr`."""
    value = writer.definitions.get(expr) if isinstance(expr, rx.Var) else None
    if value is None:
        return expr
    if op_name(value) == "relax.broadcast_to" and scalar_value(value.args[0]) is not None:
        return value.args[0]
    return value if scalar_value(value) is not None else expr


def _from_stack(writer: Writer, value: Any) -> Any:
    """maximum(a, b) for max(stack((a, b)), axis=0)."""
    stack = writer.definition(value.args[0], "relax.stack")
    if (
        stack is None
        or [int(axis) for axis in value.attrs.axis or []] != [0]
        or value.attrs.keepdims
    ):
        return None
    if int(stack.attrs.axis) != 0:
        return None
    fields = stack.args[0].fields if isinstance(stack.args[0], rx.Tuple) else None
    if fields is None or len(fields) != 2:
        return None
    op = rx.op.maximum if op_name(value) == "relax.max" else rx.op.minimum
    left, right = (_defined_constant(writer, field) for field in fields)
    if scalar_value(left) is not None and scalar_value(right) is not None:
        return None
    return _extremum(writer, op(left, right))


def _reciprocal(value: Any) -> Any:
    numerator, divisor = value.args
    number, dtype = scalar_value(divisor), str(divisor.ty.dtype)
    if not isinstance(number, float) or divisor.ty.ndim or not number or dtype not in _FLOATS:
        return None
    inverse, kind = 1.0 / number, np.finfo(dtype)
    if not float(kind.tiny) <= abs(inverse) <= float(kind.max):  # it would lose digits
        return None
    return rx.op.multiply(numerator, rx.const(inverse, dtype))
