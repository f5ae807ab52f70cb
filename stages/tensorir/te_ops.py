"""Tensor expressions of what the layout pass lowers itself: blocked convolutions, packed dense.

Layouts (L = lanes of the layout, a power of two; every size but the batch is usually static):
  activation   X [N, ceil(C/L), *spatial, L]      spatial = 1 to 3 axes; unit axes may have been
  dropped conv weight  W [ceil(O/L), C/I, *window, I, L]  I = L for a blocked input, else the block
  a plain input is read in depthwise    W [C/L, *window, L]
  dense        X [M, K], W [ceil(N/P), K, P]      P = PANEL

The block that multiplies and adds is named as the function (`conv`, `grouped`, `depthwise`,
`conv_transpose`, `dense`); zero padding, if any, is a block `pad` before it. Schedule rules rely
on the order of loops:
  conv            n, o, *out, v | c, *window, i
  depthwise       n, c, *out, v | *window
  grouped         n, o, *out, v | *window, i
  conv_transpose  n, o, h, w, v | c, r, q, i  reads X at h // stride: tile w by multiples of it
  dense           m, j, p | k                 followed by the injective block
  `unpack`: Y[m, n] = acc[m, n // P, n % P]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..compat import tvm

te = tvm.te
PANEL = (
    16  # columns of a packed dense weight that lie side by side: two AVX2 registers, one of AVX-512
)
OUT_EWISE_FUSABLE = {"op_pattern": 4}  # FuseOps puts elementwise consumers into such a function


@dataclass(frozen=True)
class Window:
    """How a convolution slides: one entry per spatial axis."""

    strides: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]

    def out(self, sizes: Sequence[Any], kernel: Sequence[int]) -> list[Any]:
        """Output sizes for input `sizes`."""
        return [
            (size + before + after - dilation * (k - 1) - 1) // stride + 1
            for size, k, stride, before, after, dilation in zip(
                sizes, kernel, self.strides, self.before, self.after, self.dilation, strict=True
            )
        ]


@dataclass(frozen=True)
class View:
    """How a plain tensor is read as (n, c, *spatial): `axes[i]` is the one its i-th axis holds."""

    axes: tuple[int, ...]
    block: int  # input channels per block of the weight

    def read(self, x: Any, n: Any, c: Any, spatial: Sequence[Any], i: Any) -> Any:
        logical = [n, c * self.block + i, *spatial]
        return x(*(logical[axis] for axis in self.axes))


@dataclass(frozen=True)
class Band:
    """Which blocks of input channels a block of output channels reads when there are groups; where
    these cut the blocks, what it does not multiply by has weights of zero.

    inner, outer: channels of a group, `groups` of them
    """

    groups: int
    inner: int
    outer: int
    lanes: int

    def _reads(self, block: int) -> tuple[int, int]:
        """The first input block that an output block needs, and one past the last."""
        last = min((block + 1) * self.lanes, self.groups * self.outer) - 1
        begin, end = block * self.lanes // self.outer, last // self.outer + 1
        return begin * self.inner // self.lanes, -(-end * self.inner // self.lanes)

    @cached_property
    def blocks(self) -> int:
        """How many blocks of input are read, the most that any output needs."""
        spans = map(self._reads, range(-(-self.groups * self.outer // self.lanes)))
        return max(end - begin for begin, end in spans)

    def first(self, block: Any) -> Any:
        """The first block of input that is read."""
        last = -(-self.groups * self.inner // self.lanes) - self.blocks
        begin = block * self.lanes // self.outer * self.inner // self.lanes
        if self._reads(-(-self.groups * self.outer // self.lanes) - 1)[0] > last:
            begin = tvm.tirx.min(begin, last)
        return begin if isinstance(begin, int) else tvm.sym.Analyzer().simplify(begin)

    @property
    def is_within(self) -> bool:
        """Whether the lanes of an output block read few neighbours of one input block."""
        own = self.lanes // self.outer * self.inner
        fits = self.lanes % self.outer == 0 and self.lanes % own == 0
        return fits and self.outer < self.lanes

    @property
    def depth(self) -> int:
        """How many input channels an output is summed over, zeros included."""
        return self.inner if self.is_within else self.blocks * self.lanes

    def weight(self, w: Any) -> Any:
        """[O, C/groups, *window] → [O/L, blocks, *window, L, L]."""
        lanes = self.lanes
        taps, size = w.shape[2:], -(-self.groups * self.outer // lanes)

        def value(o: Any, c: Any, *rest: Any) -> Any:
            *at, i, v = rest
            out = o * lanes + v
            own = (self.first(o) + c) * lanes + i - out // self.outer * self.inner
            there = tvm.tirx.all(out < self.groups * self.outer, own >= 0, own < self.inner)
            zero = tvm.tirx.const(0, w.dtype)
            return tvm.tirx.if_then_else(there, w(out, own, *at), zero)

        return te.compute((size, self.blocks, *taps, lanes, lanes), value, name="band")


def _taps(kernel: Sequence[int]) -> list[Any]:
    names = "drq"[-len(kernel) :]
    return [te.reduce_axis((0, size), name) for size, name in zip(kernel, names, strict=True)]


def _zero_padded(
    read: Callable[..., Any], shape: Sequence[Any], sizes: Sequence[Any], window: Window
) -> Any:
    """The padded input as a stage of its own, `shape` being (n, c, *sizes, i) before padding."""
    rank = len(sizes)
    padded = [size + b + a for size, b, a in zip(sizes, window.before, window.after, strict=True)]

    def value(n: Any, c: Any, *rest: Any) -> Any:
        spatial, i = rest[:rank], rest[rank]
        inside = [p - b for p, b in zip(spatial, window.before, strict=True)]
        tests = [
            test
            for at, size, b, a in zip(inside, sizes, window.before, window.after, strict=True)
            for test in ([at >= 0] if b else []) + ([at < size] if a else [])
        ]
        element = read(n, c, inside, i)
        zero = tvm.tirx.const(0, element.ty.dtype)
        return tvm.tirx.if_then_else(tvm.tirx.all(*tests), element, zero)

    return te.compute((*shape[:2], *padded, shape[-1]), value, name="pad")


def _reader(
    x: Any, shape: Sequence[Any], sizes: Sequence[Any], window: Window, view: View | None
) -> Callable[..., Any]:
    """A function (n, c, spatial, i) → element of the zero-padded input."""

    def direct(n: Any, c: Any, spatial: Sequence[Any], i: Any) -> Any:
        return view.read(x, n, c, spatial, i) if view else x(n, c, *spatial, i)

    if not any(window.before) and not any(window.after):
        return direct
    padded = _zero_padded(direct, shape, sizes, window)
    return lambda n, c, spatial, i: padded(n, c, *spatial, i)


def conv(
    x: Any,
    w: Any,
    window: Window,
    view: View | None = None,
    band: Band | None = None,
    dtype: str | None = None,
) -> Any:
    """Convolution in blocked layout, from a blocked input or from a plain one read through `view`.

    In:  X blocked, or plain with `view`; W [O/L, C/I, *window, I, L], with groups [O/L,
         band.blocks, …]
    Out: [N, O/L, *out, L], of `dtype` when that is given: it is what is multiplied too
    """
    kernel = [int(size) for size in w.shape[2:-2]]
    rank, (inner, lanes) = len(kernel), w.shape[-2:]
    if view:
        sizes = [x.shape[view.axes.index(2 + axis)] for axis in range(rank)]
        batch = x.shape[view.axes.index(0)]
    else:
        sizes, batch = list(x.shape[2:-1]), x.shape[0]
    blocks_in, blocks_out = w.shape[1] if view else x.shape[1], w.shape[0]
    read = _reader(x, (batch, blocks_in, *sizes, inner), sizes, window, view)
    c = te.reduce_axis((0, w.shape[1]), "c")
    taps = _taps(kernel)
    i = te.reduce_axis((0, inner), "i")

    def value(n: Any, o: Any, *rest: Any) -> Any:
        out, v = rest[:rank], rest[rank]
        at = [
            p * s + t * d
            for p, s, t, d in zip(out, window.strides, taps, window.dilation, strict=True)
        ]
        first = band.first(o) if band else 0
        pair = (read(n, first + c, at, i), w(o, c, *taps, i, v))
        left, right = (one.astype(dtype) for one in pair) if dtype else pair
        return te.sum(left * right, axis=[c, *taps, i])

    return te.compute((batch, blocks_out, *window.out(sizes, kernel), lanes), value, name="conv")


def grouped(x: Any, w: Any, window: Window, band: Band) -> Any:
    """Convolution of small groups, `band.is_within`: X [N, C/L, *spatial, L], W [O/L, *window,
    C/groups, L] → [N, O/L, *out, L]. Every lane reads the channels of its own group.
    """
    kernel = [int(size) for size in w.shape[1:-2]]
    rank, sizes, lanes = len(kernel), list(x.shape[2:-1]), band.lanes
    read = _reader(x, x.shape, sizes, window, None)
    taps, i = _taps(kernel), te.reduce_axis((0, band.inner), "i")
    own = lanes // band.outer * band.inner  # channels that a block of outputs reads

    def value(n: Any, o: Any, *rest: Any) -> Any:
        out, v = rest[:rank], rest[rank]
        at = [
            p * s + t * d
            for p, s, t, d in zip(out, window.strides, taps, window.dilation, strict=True)
        ]
        channel = o * own % lanes + v // band.outer * band.inner + i
        return te.sum(read(n, o * own // lanes, at, channel) * w(o, *taps, i, v), axis=[*taps, i])

    shape = (x.shape[0], w.shape[0], *window.out(sizes, kernel), lanes)
    return te.compute(shape, value, name="grouped")


def depthwise(x: Any, w: Any, window: Window) -> Any:
    """Depthwise convolution: X [N, C/L, *spatial, L], W [C/L, *window, L] → [N, C/L, *out, L]."""
    kernel = [int(size) for size in w.shape[1:-1]]
    rank, sizes = len(kernel), list(x.shape[2:-1])
    read = _reader(x, x.shape, sizes, window, None)
    taps = _taps(kernel)

    def value(n: Any, c: Any, *rest: Any) -> Any:
        out, v = rest[:rank], rest[rank]
        at = [
            p * s + t * d
            for p, s, t, d in zip(out, window.strides, taps, window.dilation, strict=True)
        ]
        return te.sum(read(n, c, at, v) * w(c, *taps, v), axis=taps)

    shape = (x.shape[0], x.shape[1], *window.out(sizes, kernel), x.shape[-1])
    return te.compute(shape, value, name="depthwise")


def conv_transpose(x: Any, w: Any, strides: Sequence[int]) -> Any:
    """Transposed convolution without padding of the output.

    In:  X [N, C/I, H, W, I], zero padded by T-1 pixels where the window is T strides long;
         W [O/L, C/I, R, S, I, L], R and S being multiples of the stride
    Out: [N, O/L, (H-T+1) * stride, …, L]
    """
    down, right = strides
    far, wide = int(w.shape[2]) // down, int(w.shape[3]) // right
    c, i = te.reduce_axis((0, w.shape[1]), "c"), te.reduce_axis((0, w.shape[4]), "i")
    r, q = te.reduce_axis((0, far), "r"), te.reduce_axis((0, wide), "q")

    def value(n: Any, o: Any, h: Any, p: Any, v: Any) -> Any:
        data = x(n, c, h // down + (far - 1) - r, p // right + (wide - 1) - q, i)
        weight = w(o, c, h % down + r * down, p % right + q * right, i, v)
        return te.sum(data * weight, axis=[c, r, q, i])

    height, width = (x.shape[2] - far + 1) * down, (x.shape[3] - wide + 1) * right
    return te.compute(
        (x.shape[0], w.shape[0], height, width, w.shape[5]), value, name="conv_transpose"
    )


def dense(x: Any, w: Any, columns: int) -> Any:
    """Product with a packed weight: X [M, K], W [ceil(N/P), K, P] → Y [M, N], N = `columns`. K may
    be cut into several axes of W.
    """
    panels, *depth, panel = w.shape
    axes = [te.reduce_axis((0, size), f"k{n or ''}") for n, size in enumerate(depth)]
    k = axes[0]
    for axis, size in zip(axes[1:], depth[1:], strict=True):
        k = k * size + axis
    acc = te.compute(
        (x.shape[0], panels, panel),
        lambda m, j, p: te.sum(x(m, k) * w(j, *axes, p), axis=axes),
        name="dense",
    )
    return te.compute(
        (x.shape[0], columns), lambda m, n: acc(m, n // panel, n % panel), name="unpack"
    )
