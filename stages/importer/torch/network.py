"""Operators of neural networks: matrix products, attention, norms, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...compat import tvm
from .call import Call

rx = tvm.relax
Converter = Callable[[Call], Any]


def linear(call: Call) -> Any:
    weight = call.emit(rx.op.permute_dims(call.value("weight")))
    product = call.emit(rx.op.matmul(call.value("input"), weight))
    bias = call.value("bias")
    return product if bias is None else call.emit(rx.op.add(product, bias))


def matmul(right: str) -> Converter:
    """In the operands' own dtype; TVM's gives float32 always."""
    return lambda call: call.emit(rx.op.matmul(call.value("self"), call.value(right)))


def add_product(left: str, right: str) -> Converter:
    """addmm and baddbmm: beta * self + alpha * (left @ right)."""

    def convert(call: Call) -> Any:
        product = call.emit(rx.op.matmul(call.value(left), call.value(right)))
        if call["alpha"] != 1:
            product = call.emit(rx.op.multiply(product, rx.const(call["alpha"], call.dtype)))
        if call["beta"] == 0:
            return product
        added = call.value("self")
        if call["beta"] != 1:
            added = call.emit(rx.op.multiply(added, rx.const(call["beta"], call.dtype)))
        return call.emit(rx.op.add(product, added))

    return convert


def attention(call: Call) -> Any:
    """scaled_dot_product_attention as matmul, mask, softmax, matmul; 0 where a row sees nothing."""
    query, key, value = (call.value(name) for name in ("query", "key", "value"))
    rank, width = call.meta("query").dim(), int(call.meta("query").shape[-1])
    if call["enable_gqa"]:
        groups = int(call.meta("query").shape[-3]) // int(call.meta("key").shape[-3])
        key, value = (call.emit(rx.op.repeat(x, groups, axis=rank - 3)) for x in (key, value))
    transposed = call.emit(rx.op.permute_dims(key, [*range(rank - 2), rank - 1, rank - 2]))
    scale = 1 / math.sqrt(width) if call["scale"] is None else call["scale"]
    scores = call.emit(rx.op.matmul(query, transposed))
    scores = call.emit(rx.op.multiply(scores, rx.const(scale, call.dtype)))
    lowest = rx.const(-math.inf, call.dtype)
    if call["is_causal"]:
        rows, columns = (
            call.emit(rx.op.arange(call.size(call.meta(name).shape[-2]), dtype="int64"))
            for name in ("query", "key")
        )
        seen = call.emit(rx.op.greater_equal(call.emit(rx.op.expand_dims(rows, 1)), columns))
        scores = call.emit(rx.op.where(seen, scores, lowest))
    if (mask := call.value("attn_mask")) is None:
        return call.emit(rx.op.matmul(call.emit(rx.op.nn.softmax(scores, axis=-1)), value))
    if call.meta("attn_mask").dtype is torch.bool:
        seen, scores = mask, call.emit(rx.op.where(mask, scores, lowest))
    else:
        seen = call.emit(rx.op.greater(mask, lowest))
        scores = call.emit(rx.op.add(scores, mask))
    attended = call.emit(rx.op.matmul(call.emit(rx.op.nn.softmax(scores, axis=-1)), value))
    count = call.emit(rx.op.sum(call.cast(seen, "int32"), -1, keepdims=True))
    sees = call.emit(rx.op.greater(count, rx.const(0, "int32")))
    return call.emit(rx.op.where(sees, attended, rx.const(0.0, call.dtype)))


def softmax(op: Callable[..., Any]) -> Converter:
    def convert(call: Call) -> Any:
        x = call.cast(call.value("self"), call.dtype)
        return call.emit(op(x, axis=call.axis())) if call.out.dim() else call.emit(op(x, axis=0))

    return convert


def distances(call: Call) -> Any:
    """cdist: between every two rows, by their differences."""
    if call["p"] != 2:
        raise NotImplementedError(f"cdist with p={call['p']}")
    left, right = rx.op.expand_dims(call.value("x1"), -2), rx.op.expand_dims(call.value("x2"), -3)
    apart = call.emit(rx.op.subtract(left, right))
    return call.emit(rx.op.sqrt(rx.op.sum(rx.op.multiply(apart, apart), -1)))


def elu(call: Call) -> Any:
    """elu, and by its scales selu and celu; TVM's leaves the scales out."""
    x = call.value("self")
    factor, scale, inner = (call[name] for name in ("alpha", "scale", "input_scale"))
    one = rx.const(1.0, call.dtype)
    below = rx.op.subtract(rx.op.exp(rx.op.multiply(x, rx.const(inner, call.dtype))), one)
    below = rx.op.multiply(below, rx.const(factor * scale, call.dtype))
    above = rx.op.multiply(x, rx.const(scale, call.dtype))
    return call.emit(rx.op.where(rx.op.greater(x, rx.const(0.0, call.dtype)), above, below))


def topk(call: Call) -> Any:
    """Sorted also where torch leaves the order open."""
    found = rx.op.topk(
        call.value("self"),
        k=call["k"],
        axis=call["dim"],
        ret_type="both",
        largest=call["largest"],
        dtype="int64",
    )
    return call.emit(found)


def layer_norm(call: Call) -> Any:
    return _layer_norm(call)


def native_layer_norm(call: Call) -> tuple[Any, None, None]:
    return _layer_norm(call), None, None


def _layer_norm(call: Call) -> Any:
    shape = call.sizes(call["normalized_shape"])
    dtype = str(call.value("input").ty.dtype)
    weight = call.value("weight") if call["weight"] else _filled(call, shape, 1, dtype)
    bias = call.value("bias") if call["bias"] else _filled(call, shape, 0, dtype)
    axes = list(range(-len(shape), 0))
    value = rx.op.nn.layer_norm(
        call.value("input"),
        weight,
        bias,
        axes=axes,
        epsilon=call["eps"],
        center=call["bias"] is not None,
        scale=call["weight"] is not None,
    )
    return call.emit(value)


def native_group_norm(call: Call) -> tuple[Any, None, None]:
    """Normalised in one group norm, then scaled, by channel."""
    x, channels = call.value("input"), call.meta("input").shape[1]
    dtype, rank = str(x.ty.dtype), call.meta("input").dim()
    weight = call.value("weight") if call["weight"] else _filled(call, [channels], 1, dtype)
    bias = call.value("bias") if call["bias"] else _filled(call, [channels], 0, dtype)
    value = rx.op.nn.group_norm(
        x,
        weight,
        bias,
        num_groups=call["group"],
        channel_axis=1,
        axes=list(range(2, rank)),
        epsilon=call["eps"],
    )
    return call.emit(value), None, None


def batch_norm(call: Call) -> tuple[Any, None, None]:
    """With the statistics that were learnt."""
    x = call.value("input")
    mean, variance = call.value("running_mean"), call.value("running_var")
    shape, dtype = call.sizes(call.meta("running_mean").shape), str(x.ty.dtype)
    weight = call.value("weight") if call["weight"] else _filled(call, shape, 1, dtype)
    bias = call.value("bias") if call["bias"] else _filled(call, shape, 0, dtype)
    value = rx.op.nn.batch_norm(
        x, weight, bias, mean, variance, axis=1, epsilon=call["eps"], training=False
    )
    return call.emit(rx.TupleGetItem(call.emit(value), 0)), None, None


def batch_statistics_norm(call: Call) -> tuple[Any, None, None]:
    """_native_batch_norm_legit.no_stats: by the mean and variance of the input itself."""
    x, shape = call.value("input"), call.meta("input").shape
    axes, dtype = [axis for axis in range(len(shape)) if axis != 1], str(x.ty.dtype)
    apart = call.emit(rx.op.subtract(x, rx.op.mean(x, axes, True)))
    variance = rx.op.mean(rx.op.multiply(apart, apart), axes, True)
    value = rx.op.multiply(apart, rx.op.rsqrt(rx.op.add(variance, rx.const(call["eps"], dtype))))
    channels = call.sizes([1, shape[1], *[1] * (len(shape) - 2)])
    if call["weight"] is not None:
        value = rx.op.multiply(value, rx.op.reshape(call.value("weight"), channels))
    if call["bias"] is not None:
        value = rx.op.add(value, rx.op.reshape(call.value("bias"), channels))
    return call.emit(value), None, None


def _filled(call: Call, shape: list[Any], value: float, dtype: str) -> Any:
    return call.emit(rx.op.full(shape, rx.const(value, dtype), dtype))


_PLAIN = {1: rx.op.nn.conv1d, 2: rx.op.nn.conv2d, 3: rx.op.nn.conv3d}
_TRANSPOSED = {1: rx.op.nn.conv1d_transpose, 2: rx.op.nn.conv2d_transpose}
_AXES = {1: "W", 2: "HW", 3: "DHW"}


def convolution(call: Call) -> Any:
    """In the dtype of its operands; TVM's gives float32 always."""
    rank = call.meta("input").dim() - 2
    settings: dict[str, Any] = {
        "strides": call["stride"],
        "padding": call["padding"],
        "dilation": call["dilation"],
        "groups": call["groups"],
        "data_layout": f"NC{_AXES[rank]}",
    }
    if not call["transposed"]:
        op, settings["kernel_layout"] = _PLAIN[rank], f"OI{_AXES[rank]}"
    elif rank in _TRANSPOSED:
        op, settings["kernel_layout"] = _TRANSPOSED[rank], f"IO{_AXES[rank]}"
        settings["output_padding"] = call["output_padding"]
    else:
        raise NotImplementedError("a transposed convolution of three axes")
    value = call.emit(op(call.value("input"), call.value("weight"), **settings))
    if call["bias"] is None:
        return value
    bias = rx.op.reshape(call.value("bias"), [1, call.size(call.out.shape[1]), *[1] * rank])
    return call.emit(rx.op.add(value, bias))


def largest(name: str) -> Converter:
    """max_pool*d_with_indices without the indices, for which TVM gives zeros."""

    def convert(call: Call) -> tuple[Any, None]:
        value = call.importer.convert_map[name](call.node)
        return call.emit(rx.TupleGetItem(value, 0)), None

    return convert


def average_pool(call: Call) -> Any:
    """avg_pool2d; TVM's divides by the count of elements whatever `divisor_override` says."""
    pooled = call.importer.convert_map["avg_pool2d.default"](call.node)
    if (divisor := call["divisor_override"]) is None:
        return pooled
    if call["ceil_mode"] or not call["count_include_pad"]:
        other = "ceil_mode=True" if call["ceil_mode"] else "count_include_pad=False"
        raise NotImplementedError(f"divisor_override together with {other}")
    kernel = list(call["kernel_size"])
    count = math.prod(kernel) if len(kernel) == 2 else kernel[0] ** 2
    return call.emit(rx.op.multiply(pooled, rx.const(count / divisor, call.dtype)))


def resize(method: str) -> Converter:
    """upsample_*2d.vec: to torch's size; coordinates by the ratio of the sizes."""

    def convert(call: Call) -> Any:
        before, after = call.meta("input").shape[-2:], call.out.shape[-2:]
        for scale, size, length in zip(call["scale_factors"] or (), before, after, strict=False):
            if call["output_size"] is None and not _is_ratio(call, scale, size, length):
                raise NotImplementedError(
                    f"scale {scale} of size {size} is no whole size: give `size`, or "
                    "recompute_scale_factor=True"
                )
        mode = "align_corners" if call.args.get("align_corners") else "half_pixel"
        value = rx.op.image.resize2d(
            call.value("input"),
            rx.ShapeExpr(call.sizes(after)),
            layout="NCHW",
            method=method,
            coordinate_transformation_mode="asymmetric" if method == "nearest_neighbor" else mode,
            rounding_method="floor" if method == "nearest_neighbor" else "",
        )
        return call.emit(value)

    return convert


def _is_ratio(call: Call, scale: float, size: Any, length: Any) -> bool:
    if float(scale).is_integer():
        return call.same(size * int(scale), length)
    return isinstance(size, int) and size * scale == length


_METHODS, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


def grid_sample(call: Call) -> Any:
    """grid_sampler_2d; TVM's operator has the coordinates in axis 1, its converter in the last."""
    padding, corners = _PADDINGS[call["padding_mode"]], call["align_corners"]
    if padding == "reflection" and corners and 1 in call.meta("input").shape[-2:]:
        raise NotImplementedError("reflection between the corners of an axis of size 1")
    value = rx.op.image.grid_sample(
        call.value("input"),
        call.emit(rx.op.permute_dims(call.value("grid"), [0, 3, 1, 2])),
        method=_METHODS[call["interpolation_mode"]],
        padding_mode=padding,
        align_corners=corners,
    )
    return call.emit(value)


def getitem(call: Call) -> Any:
    """One of several results; of an operator of which TVM computes the first alone, that."""
    args: tuple[Any, ...] = call.node.args
    source, index = args
    value = call.of(source)
    if not isinstance(value, list | tuple):
        if isinstance(value.ty, rx.TupleType):
            return call.emit(rx.TupleGetItem(value, index))
        value = [value] + [None] * index
    if value[index] is None:
        raise NotImplementedError(f"result {index} of {source} is not computed")
    return value[index]
