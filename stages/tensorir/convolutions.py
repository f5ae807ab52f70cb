"""Convolutions in the blocked layout: how weights are packed, how a plain input is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ..dataflow import Writer, op_name, rx, same_dtype, same_shape, shape_of
from . import te_ops
from .kernel import ceil_div
from .orders import has_channels_first
from .te_ops import OUT_EWISE_FUSABLE
from .tensorize.convolution import conv_integers

if TYPE_CHECKING:
    from .layout import Blocker

CONVOLUTIONS = frozenset(f"relax.nn.conv{rank}d" for rank in (1, 2, 3))


def conv(blocker: Blocker, writer: Writer, var: Any, call: Any) -> Any:
    """A blocked convolution; None for other layouts and a result of another dtype."""
    if (integers := conv_integers(blocker, writer, var, call)) is not None:
        return integers
    weight, attrs, lanes = call.args[1], call.attrs, blocker.lanes
    sizes = shape_of(weight)
    out, inner, groups = sizes[0], sizes[1], int(attrs.groups)
    if (
        not has_channels_first(call)
        or not writer.is_weight(weight)
        or not same_dtype(var, *call.args)
    ):
        return None
    depthwise = 1 < groups == inner * groups == out
    source, spatial, view = _input(blocker, writer, call, plain=groups == 1)
    padding = [int(width) for width in attrs.padding]
    half = len(padding) // 2
    per_axis = (attrs.strides, padding[:half], padding[half:], attrs.dilation)
    window = te_ops.Window(
        *(tuple(int(values[axis - 2]) for axis in spatial) for values in per_axis)
    )
    taps = [sizes[axis] for axis in spatial]
    band = te_ops.Band(groups, inner, out // groups, lanes) if groups > 1 else None
    if depthwise:
        packed = pack(writer, weight, [lanes], taps, [0, *range(2, half + 2), 1])
        y = writer.call_te(
            lambda a, w: te_ops.depthwise(a, w, window),
            source,
            packed,
            hint="depthwise",
            attrs=OUT_EWISE_FUSABLE,
        )
    elif band is not None and band.is_within:
        order = [0, *range(4, len(taps) + 4), 2, 3, 1]
        packed = pack(writer, weight, [lanes, inner], taps, order)
        packed = writer.emit(rx.op.squeeze(packed, [-3]))
        y = writer.call_te(
            lambda a, w: te_ops.grouped(a, w, window, band),
            source,
            packed,
            hint="grouped",
            attrs=OUT_EWISE_FUSABLE,
        )
    else:
        if band is None or (inner % lanes == 0 and out // groups % lanes == 0):
            block = view.block if view else lanes
            order = [0, 2, *range(4, len(taps) + 4), 3, 1]
            packed = pack(writer, weight, [lanes, block], taps, order)
        else:
            squeezed = writer.emit(rx.op.reshape(weight, [out, inner, *taps]))
            packed = writer.emit(writer.call_te(band.weight, squeezed, hint="band"))
        y = writer.call_te(
            lambda a, w: te_ops.conv(a, w, window, view, band),
            source,
            packed,
            hint="conv",
            attrs=OUT_EWISE_FUSABLE,
        )
    return blocker.hold(var, writer.emit(y, var.name), spatial)


def conv_transpose(blocker: Blocker, writer: Writer, var: Any, call: Any) -> Any:
    """A blocked transposed convolution; None for one with groups, dilation or another dtype.

    It makes whole strides of pixels, of which the padding is then cut off. With one output channel
    and windows that do not overlap, the lanes are the R × S pixels that one input pixel makes.
    """
    x, weight = call.args
    attrs, lanes, sizes = call.attrs, blocker.lanes, shape_of(weight)
    window, strides = sizes[2:], [int(stride) for stride in attrs.strides]
    if (
        not has_channels_first(call)
        or any(int(step) != 1 for step in attrs.dilation)
        or int(attrs.groups) != 1
        or not writer.is_weight(weight)
        or not same_dtype(var, x, weight)
    ):
        return None
    source = blocker.blocked_as(writer, x, (2, 3))
    cut = any(int(width) for width in [*attrs.padding, *attrs.output_padding])
    if sizes[1] == 1 and strides == window and not cut:
        point = te_ops.Window((1, 1), (0, 0), (0, 0), (1, 1))
        packed = _padded(writer, weight, [ceil_div(sizes[0], lanes) * lanes, 1])
        shape = [1, ceil_div(sizes[0], lanes), 1, 1, lanes, prod(window)]
        y = writer.call_te(
            lambda a, w: te_ops.conv(a, w, point),
            source,
            writer.emit(rx.op.reshape(packed, shape)),
            hint="conv",
            attrs=OUT_EWISE_FUSABLE,
        )
        return blocker.hold(var, writer.emit(y, var.name), (2, 3), (window[0], window[1]))
    far = [ceil_div(size, stride) for size, stride in zip(window, strides, strict=True)]
    taps = [count * stride for count, stride in zip(far, strides, strict=True)]
    packed = pack(
        writer,
        _padded(writer, weight, [*sizes[:2], *taps]),
        [lanes, lanes],
        taps,
        [2, 0, 4, 5, 1, 3],
    )
    if any(count > 1 for count in far):
        around = [width for count in far for width in (count - 1, count - 1)]
        source = writer.emit(rx.op.nn.pad(source, [0] * 4 + around + [0] * 2))
    y = writer.call_te(
        lambda a, w: te_ops.conv_transpose(a, w, strides),
        source,
        packed,
        hint="conv_transpose",
        attrs=OUT_EWISE_FUSABLE,
    )
    y = writer.emit(y, var.name)
    first, wanted = [int(width) for width in attrs.padding[:2]], shape_of(var)[2:]
    if not same_shape(shape_of(y)[2:4], wanted):
        last = [begin + size for begin, size in zip(first, wanted, strict=True)]
        have = shape_of(y)[2:4]
        missing = [width for end, size in zip(last, have, strict=True) for width in (0, end - size)]
        if not all(isinstance(width, int) for width in missing):
            return None
        if any(width > 0 for width in missing):  # output_padding beyond the last window
            widths = [max(width, 0) for width in missing]
            y = writer.emit(rx.op.nn.pad(y, [0] * 4 + widths + [0] * 2))
        y = writer.emit(rx.op.strided_slice(y, [2, 3], first, last))
    return blocker.hold(var, y, (2, 3))


def _input(
    blocker: Blocker, writer: Writer, call: Any, *, plain: bool
) -> tuple[Any, tuple[int, ...], te_ops.View | None]:
    """What a convolution reads, its spatial axes, and the view when it reads a plain tensor.

    A convolution takes inputs one by one and broadcasts them over lanes of output channels, so a
    plain tensor will do as it lies, as long as its channels lie together or are few.
    """
    x, sizes = call.args[0], shape_of(call.args[1])
    held = blocker.blocked.get(x)
    if held is not None and all(
        size == 1 or axis + 2 in held.spatial for axis, size in enumerate(sizes[2:])
    ):
        return blocker.blocked_as(writer, x, held.spatial), held.spatial, None
    logical = shape_of(x)
    spatial = _spatial(logical, sizes, call.attrs)
    if held is None and plain:
        source, axes = _source(writer, x)
        behind = shape_of(source)[axes.index(1) + 1 :] if 1 in axes else []
        if all(isinstance(size, int) and size == 1 for size in behind) or sizes[1] < blocker.lanes:
            kept = [k for k, axis in enumerate(axes) if axis < 2 or axis in spatial]
            if len(kept) < len(axes):
                source_sizes = shape_of(source)
                source = writer.emit(rx.op.reshape(source, [source_sizes[k] for k in kept]))
            axes = tuple(axes[k] if axes[k] < 2 else 2 + spatial.index(axes[k]) for k in kept)
            return source, spatial, te_ops.View(axes, _block(sizes[1], blocker.lanes))
    return blocker.blocked_as(writer, x, spatial), spatial, None


def _block(channels: int, lanes: int) -> int:
    """The largest number of input channels ≤ `lanes` that divides them; nothing is padded."""
    return max(size for size in range(1, lanes + 1) if channels % size == 0)


def _spatial(logical: Sequence[Any], sizes: Sequence[int], attrs: Any) -> tuple[int, ...]:
    """The spatial axes of a convolution but those of one pixel and one tap, if others are left."""
    half = len(attrs.padding) // 2

    def matters(axis: int) -> bool:
        padded = int(attrs.padding[axis - 2]) or int(attrs.padding[half + axis - 2])
        one = isinstance(logical[axis], int) and logical[axis] == 1
        return bool(padded) or not one or sizes[axis] != 1

    axes = tuple(range(2, len(logical)))
    return tuple(axis for axis in axes if matters(axis)) or axes


def _source(writer: Writer, x: Any) -> tuple[Any, tuple[int, ...]]:
    """The tensor behind transposes and unit axes, and per axis of it the axis of `x` it holds."""
    axes: list[int] = list(range(x.ty.ndim))
    while (call := writer.definition(x, "relax.permute_dims", "relax.expand_dims")) is not None:
        rank = call.args[0].ty.ndim
        if op_name(call) == "relax.permute_dims":
            reverse = list(reversed(range(rank)))
            order = reverse if call.attrs.axes is None else [int(a) % rank for a in call.attrs.axes]
            axes = [axes[order.index(k)] for k in range(rank)]
        else:
            added = {int(axis) % len(axes) for axis in call.attrs.axis}
            axes = [axis for k, axis in enumerate(axes) if k not in added]
        x = call.args[0]
    return x, tuple(axes)


def _padded(writer: Writer, weight: Any, to: Sequence[int]) -> Any:
    """A weight whose first axes are grown by zeros to the sizes `to`."""
    sizes = shape_of(weight)
    grown = [*to, *sizes[len(to) :]]
    widths = [width for size, new in zip(sizes, grown, strict=True) for width in (0, new - size)]
    return writer.emit(rx.op.nn.pad(weight, widths)) if any(widths) else weight


def pack(
    writer: Writer, weight: Any, blocks: Sequence[int], taps: Sequence[int], order: Sequence[int]
) -> Any:
    """A weight whose axis k is cut in blocks of `blocks[k]`, padded, axes then put in `order`."""
    counts = [ceil_div(size, block) for size, block in zip(shape_of(weight), blocks, strict=False)]
    cut = [size for pair in zip(counts, blocks, strict=True) for size in pair]
    weight = _padded(writer, weight, [n * block for n, block in zip(counts, blocks, strict=True)])
    weight = writer.emit(rx.op.reshape(weight, [*cut, *taps]))
    return writer.emit(rx.op.permute_dims(weight, list(order)))
