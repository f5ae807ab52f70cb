"""Operators of ONNX that TVM's importer lacks, gets wrong, or writes badly for a compiler.

Each converter takes (builder, inputs, attributes, opset) and returns a value, or None to leave the
node to TVM's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ...compat import tvm
from .recurrent import recurrent
from .resize import resize, static_size, upsample

rx = tvm.relax
Converter = Callable[[Any, Any, Mapping[str, Any], int], Any]


def _clip(_bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """Clip with constant bounds as `relax.clip`; TVM emits isnan, where and opaque TE calls.

    Before opset 11 the bounds are attributes; one that is missing bounds nothing.
    """
    bounds = [inputs[1], inputs[2]]
    if any(not isinstance(b, tvm.ir.GenericConst) for b in bounds if b is not None):
        return None
    low, high = (
        attrs.get(name) if bound is None else bound.value.numpy().item()
        for name, bound in zip(("min", "max"), bounds, strict=True)
    )
    x = inputs[0]
    if low is not None and high is not None:
        return rx.op.clip(x, low, high)
    if low is not None:
        return rx.op.maximum(x, rx.const(low, x.ty.dtype))
    return x if high is None else rx.op.minimum(x, rx.const(high, x.ty.dtype))


def _pairwise(op: Any) -> Converter:
    """Variadic Max and Min as a chain of binary ops; TVM broadcasts, stacks and reduces."""
    return lambda bb, inputs, _attrs, _opset: functools.reduce(
        lambda left, right: bb.emit(op(left, right)), inputs
    )


def _dropout(_bb: Any, inputs: Any, _attrs: Mapping[str, Any], _opset: int) -> Any:
    """Nothing is dropped in inference; the mask, where something reads it, is all true."""
    x, _, training = ([*inputs, None, None])[:3]
    known = isinstance(training, tvm.ir.GenericConst)
    if training is not None and not (known and not training.value.numpy().any()):
        raise ValueError("training_mode: it would drop at random")
    return rx.Tuple([x, rx.op.ones_like(x, "bool")])


def _is_inf(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """TVM's asks for either sign whatever the attributes say."""
    x = inputs[0]
    signs = [bool(attrs.get(f"detect_{sign}", 1)) for sign in ("negative", "positive")]
    if all(signs):
        return None
    infinite = bb.emit(rx.op.isinf(x))
    if not any(signs):
        return rx.op.zeros_like(infinite)
    zero = rx.const(0, x.ty.dtype)
    side = rx.op.less(x, zero) if signs[0] else rx.op.greater(x, zero)
    return rx.op.logical_and(infinite, bb.emit(side))


def _axes_from(x: Any, axis: int) -> list[int]:
    rank = len(x.ty.shape)
    return list(range(axis % rank, rank))


def _layer_norm(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """The mean and the inverse deviation too, where they are asked for."""
    if attrs["tvm_custom"]["num_outputs"] == 1:
        return None
    x, scale, bias = ([*inputs, None])[:3]
    axes = _axes_from(x, attrs.get("axis", -1))
    mean = bb.emit(rx.op.mean(x, axes, keepdims=True))
    centred = bb.emit(rx.op.subtract(x, mean))
    variance = bb.emit(rx.op.mean(bb.emit(rx.op.multiply(centred, centred)), axes, keepdims=True))
    epsilon = rx.const(attrs.get("epsilon", 1e-5), x.ty.dtype)
    inverse = bb.emit(rx.op.rsqrt(bb.emit(rx.op.add(variance, epsilon))))
    y = bb.emit(rx.op.multiply(bb.emit(rx.op.multiply(centred, inverse)), scale))
    y = y if bias is None else bb.emit(rx.op.add(y, bias))
    return rx.Tuple([y, mean, inverse])


def _rms_norm(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """Over more than the last axis by its definition; TVM's reads the scale out of bounds."""
    x, scale = inputs[:2]
    axes = _axes_from(x, attrs.get("axis", -1))
    if len(axes) == 1 and len(x.ty.shape) > 1:
        return None
    square = bb.emit(rx.op.mean(bb.emit(rx.op.multiply(x, x)), axes, keepdims=True))
    epsilon = rx.const(attrs.get("epsilon", 1e-5), x.ty.dtype)
    inverse = bb.emit(rx.op.rsqrt(bb.emit(rx.op.add(square, epsilon))))
    return rx.op.multiply(bb.emit(rx.op.multiply(x, inverse)), scale)


def _pow(bb: Any, inputs: Any, _attrs: Mapping[str, Any], _opset: int) -> Any:
    """Integers and mixed types in double precision; TVM's takes floats of one type."""
    x, y = inputs
    if x.ty.dtype == y.ty.dtype and str(x.ty.dtype).startswith("float"):
        return None
    wide = [bb.emit(rx.op.astype(one, "float64")) for one in (x, y)]
    result = bb.emit(rx.op.power(*wide))
    if not str(x.ty.dtype).startswith("float"):
        result = bb.emit(rx.op.trunc(result))
    return rx.op.astype(result, x.ty.dtype)


def _reduce_bool(op: Any) -> Converter:
    """Max and Min of booleans by way of bytes; TVM knows no smallest boolean."""

    def convert(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
        x = inputs[0]
        if str(x.ty.dtype) != "bool":
            return None
        axes = inputs[1] if len(inputs) > 1 else None
        if axes is not None and not isinstance(axes, tvm.ir.GenericConst):
            raise ValueError("its axes are computed from data")
        over = attrs.get("axes") if axes is None else axes.value.numpy().tolist()
        if not over and attrs.get("noop_with_empty_axes", 0):
            return x
        whole = bb.emit(rx.op.astype(x, "int8"))
        reduced = bb.emit(op(whole, list(over) if over else None, bool(attrs.get("keepdims", 1))))
        return rx.op.astype(reduced, "bool")

    return convert


def _conv_transpose(_bb: Any, inputs: Any, attrs: Any, _opset: int) -> Any:
    """`output_shape` as the pads that it means; then TVM's own."""
    wanted = attrs.get("output_shape")
    if not wanted:
        return None
    x, w = inputs[:2]
    rank = len(wanted)
    dims = [static_size(dim) for dim in x.ty.shape.values[2:]]
    if any(dim is None for dim in dims):
        raise ValueError("output_shape needs fixed sizes of the input")
    kernel = attrs.get("kernel_shape") or [int(one) for one in w.ty.shape.values[2:]]
    one = [1] * rank
    begin, end = [], []
    for axis, size in enumerate(dims):
        reach = (kernel[axis] - 1) * attrs.get("dilations", one)[axis] + 1
        full = attrs.get("strides", one)[axis] * ((size or 0) - 1) + reach
        total = max(full + attrs.get("output_padding", [0] * rank)[axis] - wanted[axis], 0)
        upper = attrs.get("auto_pad", b"NOTSET") == b"SAME_UPPER"
        first = total // 2 if upper else total - total // 2
        begin.append(first)
        end.append(total - first)
        short = wanted[axis] - full - attrs.get("output_padding", [0] * rank)[axis]
        if short > 0:  # more is asked for than there is
            padding = list(attrs.get("output_padding", [0] * rank))
            padding[axis] += short
            attrs["output_padding"] = tuple(padding)
    attrs.pop("auto_pad", None)
    attrs["pads"] = tuple(begin + end)
    return None


def _centred(bb: Any, x: Any, zero: Any, shape: list[int] | None = None) -> Any:
    """Quantised values as int32, less their zero point (of `shape`, where it has an axis)."""
    wide = bb.emit(rx.op.astype(x, "int32"))
    if zero is None:
        return wide
    zero = bb.emit(rx.op.astype(zero, "int32"))
    return bb.emit(rx.op.subtract(wide, _shaped(bb, zero, shape)))


def _shaped(bb: Any, value: Any, shape: list[int] | None) -> Any:
    is_vector = len(value.ty.shape) == 1
    return bb.emit(rx.op.reshape(value, shape)) if shape and is_vector else value


def _requantized(bb: Any, total: Any, scales: list[Any], scale: Any, zero: Any) -> Any:
    """int32 sums times `scales`, quantised again."""
    value = bb.emit(rx.op.astype(total, scale.ty.dtype))
    for one in scales:
        value = bb.emit(rx.op.multiply(value, one))
    return rx.op.quantize(value, scale, zero, axis=0, out_dtype=str(zero.ty.dtype))


def _qlinear_matmul(bb: Any, inputs: Any, _attrs: Mapping[str, Any], _opset: int) -> Any:
    """Exact sums of integers, then one rounding. Per row of a, per column of b."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    left = _centred(bb, a, a_zero, [-1, 1])
    total = bb.emit(rx.op.matmul(left, _centred(bb, b, b_zero), out_dtype="int32"))
    return _requantized(bb, total, [_shaped(bb, a_scale, [-1, 1]), b_scale], scale, zero)


def _integer_conv(bb: Any, x: Any, w: Any, bias: Any, attrs: Mapping[str, Any]) -> Any:
    from tvm.relax.frontend.onnx.onnx_frontend import Conv

    return bb.emit(bb.normalize(Conv._impl_v11(bb, [x, w, bias], attrs, [{}, {}])))


def _qlinear_conv(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """As QLinearMatMul; weights may have a scale for each channel."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, bias = ([*inputs, None])[:9]
    rank = len(x.ty.shape)
    weight = _centred(bb, w, w_zero, [-1] + [1] * (rank - 1))
    total = _integer_conv(bb, _centred(bb, x, x_zero), weight, bias, attrs)
    per_channel = _shaped(bb, w_scale, [-1] + [1] * (rank - 2))
    return _requantized(bb, total, [x_scale, per_channel], scale, zero)


def _conv_integer(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    x, w, x_zero, w_zero = ([*inputs, None, None])[:4]
    weight = _centred(bb, w, w_zero, [-1] + [1] * (len(x.ty.shape) - 1))
    return _integer_conv(bb, _centred(bb, x, x_zero), weight, None, attrs)


def axis_extent(bb: Any, data: Any, axis: int, dtype: str) -> Any:
    """The size of an axis as a scalar, to bring negative indices into range; TVM's importer asks
    for the shape at run time, which nothing lowers.
    """
    dim = data.ty.shape.values[axis]
    if (static := static_size(dim)) is not None:
        return rx.const(static, dtype)
    one = bb.emit(rx.op.arange(dim, dim + 1, 1, dtype="int64"))
    return bb.emit(rx.op.astype(bb.emit(rx.op.reshape(one, [])), dtype))


def axis_extents(bb: Any, data: Any, indices: Any, start_axis: int) -> Any:
    """As `axis_extent`, for the axes that the coordinates of GatherND and ScatterND count."""
    count, dtype = int(indices.ty.shape.values[-1]), str(indices.ty.dtype)
    dims = [axis_extent(bb, data, start_axis + axis, dtype) for axis in range(count)]
    rows = [bb.emit(rx.op.reshape(one, [1])) for one in dims]
    return rows[0] if count == 1 else bb.emit(rx.op.concat(rows, 0))


def _gather(_bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """Constant indices are brought into range here."""
    data, indices = inputs
    axis = attrs.get("axis", 0)
    known = isinstance(indices, tvm.ir.GenericConst) and isinstance(data, rx.Var)
    if not known or not isinstance(data.ty.shape, rx.ShapeExpr):
        return None
    at, dim = indices.value.numpy(), static_size(data.ty.shape.values[axis])
    if (at < 0).any() and dim is None:
        return None
    return rx.op.take(data, rx.const(at + (at < 0) * (dim or 0), str(at.dtype)), axis)


def _mod(_bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    if str(inputs[0].ty.dtype).startswith("float") and not attrs.get("fmod", 0):
        raise ValueError("fmod 0 of floats is not supported")
    return None


def _shift(bb: Any, inputs: Any, attrs: Mapping[str, Any], opset: int) -> Any:
    if opset >= 28 and str(inputs[0].ty.dtype).startswith("int"):
        raise ValueError("of signed integers it is not supported")
    return None


CONVERTERS: dict[str, Converter] = {
    "BitShift": _shift,
    "Clip": _clip,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Gather": _gather,
    "IsInf": _is_inf,
    "LayerNormalization": _layer_norm,
    "Max": _pairwise(rx.op.maximum),
    "Min": _pairwise(rx.op.minimum),
    "Mod": _mod,
    "Pow": _pow,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "RMSNormalization": _rms_norm,
    "ReduceMax": _reduce_bool(rx.op.max),
    "ReduceMin": _reduce_bool(rx.op.min),
    "Resize": resize,
    "Upsample": upsample,
    **{kind: recurrent(kind) for kind in ("LSTM", "GRU", "RNN")},
}
