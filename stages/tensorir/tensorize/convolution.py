"""Convolutions of small integers in blocked layout."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compat import tvm
from ...dataflow import Writer, op_name, rx, shape_of
from .. import te_ops
from ..kernel import ceil_div
from .integers import centred, choose, expression, less, shifted, zero_point

if TYPE_CHECKING:
    from ..layout import Blocker

te, tirx = tvm.te, tvm.tirx


def conv_integers(blocker: Blocker, writer: Writer, var: Any, call: Any) -> Any:
    """A blocked convolution of centred integers by an intrinsic; None for another call, for groups,
    and for weights with zero points that no signedness takes away.
    """
    from ..convolutions import pack

    attrs, lanes = call.attrs, blocker.lanes
    plain = (attrs.data_layout, attrs.kernel_layout, int(attrs.groups)) == ("NCHW", "OIHW", 1)
    if op_name(call) != "relax.nn.conv2d" or str(var.ty.dtype) != "int32" or not plain:
        return None
    x, w = (centred(writer, arg, blocker.logical) for arg in call.args)
    if x is None or w is None or not writer.is_weight(w.values):
        return None
    if x.zero is not None and prod(map(_static, shape_of(x.zero))) != 1:
        return None
    sizes, padding = shape_of(w.values), [int(width) for width in attrs.padding]
    strides, dilation = (
        tuple(int(one) for one in values) for values in (attrs.strides, attrs.dilation)
    )
    window = te_ops.Window(strides, (0, 0), (0, 0), dilation)
    build = partial(te_ops.conv, window=window, dtype="int32")
    blocks = [ceil_div(size, lanes) for size in sizes[:2]]
    n, _, *image = shape_of(call.args[0])
    padded = [size + padding[k] + padding[k + 2] for k, size in enumerate(image)]
    shapes = ([n, blocks[1], *padded, lanes], [*blocks, *sizes[2:], lanes, lanes])
    found = choose(writer, blocker.instructions, build, x, w, shapes)
    if found is None:
        return None
    zeros = [zero_point(writer, one, move) for one, move in zip((x, w), found.moved, strict=True)]
    if not isinstance(zeros[1], np.ndarray) or zeros[1].any():
        return None
    source = shifted(writer, blocker.blocked_as(writer, x.values, (2, 3)), found.moved[0])
    source = _padded(writer, source, padding, zeros[0])
    weight = shifted(writer, w.values, found.moved[1])
    packed = pack(writer, weight, [lanes, lanes], sizes[2:], [0, 2, 4, 5, 3, 1])
    y = writer.emit(found.packed.call(writer, source, packed, "conv_int8"))
    wide = writer.emit(rx.op.astype(weight, "int32"))
    sums = writer.emit(rx.op.sum(wide, axis=[1, 2, 3]))
    if extra := blocks[0] * lanes - sizes[0]:
        sums = writer.emit(rx.op.nn.pad(sums, [0, extra]))
    sums = writer.emit(rx.op.reshape(sums, [1, blocks[0], 1, 1, lanes]))
    y = less(writer, y, zeros[0], sums)
    return blocker.hold(var, writer.emit(y, var.name), (2, 3))


def _static(size: Any) -> int:
    return size if isinstance(size, int) else 0


def _padded(writer: Writer, source: Any, padding: list[int], zero: Any) -> Any:
    """A blocked input with borders of what stands for zero."""
    if not any(padding):
        return source
    top, left, bottom, right = padding

    def pad(x: Any, z: Any) -> Any:
        n, c, height, width, lanes = x.shape

        def element(n: Any, c: Any, h: Any, w: Any, v: Any) -> Any:
            inside = tirx.all(h >= top, h < height + top, w >= left, w < width + left)
            border = z(*[0] * len(z.shape)).astype(x.dtype)
            return tirx.if_then_else(inside, x(n, c, h - top, w - left, v), border)

        return te.compute(
            (n, c, height + top + bottom, width + left + right, lanes), element, "pad"
        )

    return writer.emit(writer.call_te(pad, source, expression(zero), hint="pad"))
