"""Converters of ours, before TVM's: where TVM's are wrong, or lose shapes that torch knows.

A converter takes a call and gives a Relax expression. Sizes are torch's own (`node.meta`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...compat import tvm
from .call import Call

rx = tvm.relax

DATA_DEPENDENT = (
    "its size depends on data: use a mask or a fixed size, or run this part on the host"
)
_RANDOM = "a library gives the same for the same inputs: take the random numbers as an input"
REFUSED: dict[str, str] = {  # converters of TVM's that give something else without saying so
    "bernoulli.p": _RANDOM,
    "exponential.default": _RANDOM,
    "masked_select.default": DATA_DEPENDENT,
    "rand_like.default": _RANDOM,
    "randn.default": _RANDOM,
    "randn_like.default": _RANDOM,
}


def _reshape(call: Call) -> Any:
    return call.emit(rx.op.reshape(call.value("self"), call.shape))


def _expand(call: Call) -> Any:
    return call.emit(rx.op.broadcast_to(call.value("self"), call.shape))


def _select(call: Call) -> Any:
    """One of an axis. TVM's reads out of bounds at a negative index."""
    axis, index = call.axis(), call.number("index")
    if isinstance(index, int) and index < 0:
        index = index + call.meta("self").shape[axis]
    position = rx.prim_value(call.size(index))
    return call.emit(rx.op.take(call.value("self"), position, axis))


def _slice(call: Call) -> Any:
    """A slice with bounds inside the axis, so that its size is the one that torch tells."""
    axis, step = call.axis(), call["step"]
    size, length = call.meta("self").shape[axis], call.out.shape[axis]
    begin = 0 if (start := call.number("start")) is None else start
    if isinstance(begin, int) and begin < 0:
        begin = torch.sym_max(begin + size, 0)
    begin = torch.sym_min(begin, size)
    if step == 1 and call.same(length, size):
        return call.value("self")
    end = begin + (length - 1) * step + 1
    bounds = [call.size(begin)], [call.size(end)], [step]
    return call.emit(rx.op.strided_slice(call.value("self"), [axis], *bounds, assume_inbound=True))


def _embedding(call: Call) -> Any:
    """Rows by index; one that is out of range gives NaN, where torch raises."""
    return call.emit(rx.op.take(call.value("weight"), call.value("indices"), axis=0, mode="nan"))


def _index(call: Call) -> Any:
    """Indexing by tensors: the indexed axes become one, and are taken by one index.

    TVM's own reads out of bounds at negative indices, and takes every pair where torch zips.
    """
    indices = list(call["indices"])
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    x, extents = call.value("self"), list(call.meta("self").shape)
    if axes != list(range(axes[0], axes[-1] + 1)):  # then torch puts the index's axes first
        order = axes + [axis for axis in range(len(extents)) if axis not in axes]
        x, extents = call.emit(rx.op.permute_dims(x, order)), [extents[axis] for axis in order]
        indices, axes = [indices[axis] for axis in axes], list(range(len(axes)))
    first, *others = axes
    position, merged = call.from_start(indices[first], extents[first]), extents[first]
    for axis in others:
        extent = extents[axis]
        position = call.emit(rx.op.multiply(position, call.scalar(extent, "int64")))
        position = call.emit(rx.op.add(position, call.from_start(indices[axis], extent)))
        merged = merged * extent
    if others:
        shape = [*extents[:first], merged, *extents[axes[-1] + 1 :]]
        x = call.emit(rx.op.reshape(x, call.sizes(shape)))
    return call.emit(rx.op.take(x, position, axis=first))


def _linear(call: Call) -> Any:
    weight = call.emit(rx.op.permute_dims(call.value("weight")))
    product = call.emit(rx.op.matmul(call.value("input"), weight))
    bias = call.value("bias")
    return product if bias is None else call.emit(rx.op.add(product, bias))


def _matmul(right: str) -> Converter:
    """In the operands' own dtype; TVM's gives float32 always."""
    return lambda call: call.emit(rx.op.matmul(call.value("self"), call.value(right)))


def _attention(call: Call) -> Any:
    """scaled_dot_product_attention as matmul, mask, softmax, matmul."""
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
    if (mask := call.value("attn_mask")) is not None:
        if call.meta("attn_mask").dtype is torch.bool:
            scores = call.emit(rx.op.where(mask, scores, lowest))
        else:
            scores = call.emit(rx.op.add(scores, mask))
    return call.emit(rx.op.matmul(call.emit(rx.op.nn.softmax(scores, axis=-1)), value))


Converter = Callable[[Call], Any]
CONVERTERS: dict[str, Converter] = {
    "_unsafe_view.default": _reshape,
    "bmm.default": _matmul("mat2"),
    "embedding.default": _embedding,
    "expand.default": _expand,
    "index.Tensor": _index,
    "linear.default": _linear,
    "matmul.default": _matmul("other"),
    "mm.default": _matmul("mat2"),
    "reshape.default": _reshape,
    "scaled_dot_product_attention.default": _attention,
    "select.int": _select,
    "slice.Tensor": _slice,
    "view.default": _reshape,
}
