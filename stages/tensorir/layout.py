"""The one layout pass: activations in channel blocks of `lanes`, weights packed by plain Relax operators.

A walk over the bindings keeps, per value, how it lies in memory. Convolutions read and write blocks, or read a plain
tensor as it lies; elementwise operators, reductions over pixels and concatenations follow their operands. Only where an
operator needs the plain tensor is it put back, once per value. Source: notes on NCHWc in Liu et al. 2019 (NeoCPU);
TVM's ConvertLayout cannot do it, because a channel count need not be a multiple of the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from ..compat import tvm
from ..dataflow import (
    ELEMENTWISE,
    Writer,
    is_constant,
    op_name,
    rewrite,
    rx,
    same_shape,
    shape_of,
)
from . import te_ops

OUT_EWISE_FUSABLE = {"op_pattern": 4}  # FuseOps puts elementwise consumers into such a function
REDUCTIONS = frozenset(f"relax.{name}" for name in ("mean", "sum", "max", "min"))
# Zero in, finite out: the padded lanes of a channel count that is no multiple of the lanes stay harmless.
ZERO_SAFE = frozenset(
    f"relax.{name}"
    for name in """abs add subtract multiply maximum minimum clip tanh sigmoid erf exp sqrt square negative floor ceil
    round sin cos nn.relu nn.gelu nn.gelu_tanh nn.silu nn.leakyrelu nn.softplus astype""".split()
)


@dataclass(frozen=True)
class Blocked:
    """How a value of logical shape (N, C, …) lies in memory as `var`.

    spatial:  logical axes held between the block and the lane axis; the others (≥ 2) have one element
    subpixel: (R, S) when the lanes are R × S neighbouring pixels of the only channel, else None
    """

    var: Any
    shape: tuple[Any, ...]
    spatial: tuple[int, ...]
    subpixel: tuple[int, int] | None = None


def block_layout(mod: Any, lanes: int, name: str = "main") -> Any:
    """`mod` in which the convolutions of function `name`, and what lies between, work on blocks of `lanes` channels."""
    return rewrite(mod, _Blocker(lanes).visit, name)


class _Blocker:
    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.blocked: dict[Any, Blocked] = {}  # stand-in variable of the logical type → where the value lies
        self.plain: dict[Any, Any] = {}
        self.rules: dict[str, Callable[[Writer, Any, Any], Any]] = {
            "relax.nn.conv1d": self._conv,
            "relax.nn.conv2d": self._conv,
            "relax.nn.conv2d_transpose": self._conv_transpose,
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.image.resize2d": self._resize,
            "relax.concat": self._concat,
            "relax.squeeze": self._squeeze,
            "relax.nn.pad": self._pad,
            **dict.fromkeys(REDUCTIONS, self._reduce),
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
        }

    def visit(self, writer: Writer, var: Any, value: Any) -> Any:
        if writer.is_weight(value):
            return None
        rule = self.rules.get(op_name(value))
        result = rule(writer, var, value) if rule else None
        if result is None:
            return self._over_plain(writer, value)
        return self._to_plain(writer, result) if isinstance(var, rx.Var) and not isinstance(var, rx.DataflowVar) else result

    # -- where values lie -------------------------------------------------------------------------------------------

    def _hold(self, var: Any, at: Any, spatial: Sequence[int], subpixel: tuple[int, int] | None = None) -> Any:
        """A stand-in for the logical value of `var`, which lies in memory as `at`."""
        if not spatial and shape_of(var)[1] % self.lanes == 0:
            return rx.op.reshape(at, shape_of(var))  # without pixels between them, blocks lie as in the plain tensor
        stand_in = rx.DataflowVar(var.name, var.ty)
        self.blocked[stand_in] = Blocked(at, tuple(shape_of(var)), tuple(spatial), subpixel)
        return stand_in

    def _over_plain(self, writer: Writer, value: Any) -> Any:
        """`value` with every blocked operand put back into plain layout."""

        def plain(expr: Any) -> Any:
            if isinstance(expr, rx.Tuple):
                return rx.Tuple([plain(field) for field in expr.fields])
            return self._to_plain(writer, expr) if isinstance(expr, rx.Var) else expr

        if isinstance(value, rx.Call):
            return rx.Call(value.op, [plain(arg) for arg in value.args], value.attrs, value.ty_args)
        return rx.TupleGetItem(plain(value.tuple_value), value.index) if isinstance(value, rx.TupleGetItem) else plain(value)

    def _to_plain(self, writer: Writer, var: Any) -> Any:
        held = self.blocked.get(var)
        if held is None:
            return var
        if var not in self.plain:
            self.plain[var] = self._unblock(writer, held)
        return self.plain[var]

    def _unblock(self, writer: Writer, held: Blocked) -> Any:
        emit, shape = writer.emit, held.shape
        if held.subpixel:
            (n, _, height, width), (r, s) = shape, held.subpixel
            y = emit(rx.op.reshape(held.var, [n, height // r, width // s, r, s]))
            return emit(rx.op.reshape(emit(rx.op.permute_dims(y, [0, 1, 3, 2, 4])), shape))
        inner = [shape[axis] for axis in held.spatial]
        blocks = _ceil(shape[1], self.lanes)
        y = held.var
        if any(size != 1 for size in inner):
            rank = len(inner)
            y = emit(rx.op.permute_dims(y, [0, 1, rank + 2, *range(2, rank + 2)]))
        if blocks * self.lanes != shape[1]:
            y = emit(rx.op.reshape(y, [shape[0], blocks * self.lanes, *inner]))
            y = emit(rx.op.strided_slice(y, [1], [0], [shape[1]]))
        return emit(rx.op.reshape(y, shape))

    def _to_blocked(self, writer: Writer, x: Any, rank: int, spatial: Sequence[int]) -> Any:
        """A plain tensor, broadcast to `rank` axes from the right, in the blocked layout with axes `spatial`."""
        emit = writer.emit
        sizes = [1] * (rank - x.ty.ndim) + shape_of(x)
        if all(isinstance(size, int) and size == 1 for size in sizes):
            return x if x.ty.ndim == 0 else emit(rx.op.reshape(x, [1]))
        channels, inner = sizes[1], [sizes[axis] for axis in spatial]
        if isinstance(channels, int) and channels == 1:
            return emit(rx.op.reshape(x, [sizes[0], 1, *inner, 1]))
        blocks = _ceil(channels, self.lanes)
        y = emit(rx.op.reshape(x, [sizes[0], channels, *inner]))
        if blocks * self.lanes != channels:
            y = emit(rx.op.nn.pad(y, [0, 0, 0, blocks * self.lanes - channels] + [0, 0] * len(inner)))
        if all(isinstance(size, int) and size == 1 for size in inner):
            return emit(rx.op.reshape(y, [sizes[0], blocks, *inner, self.lanes]))
        y = emit(rx.op.reshape(y, [sizes[0], blocks, self.lanes, *inner]))
        return emit(rx.op.permute_dims(y, [0, 1, *range(3, len(inner) + 3), 2]))

    # -- convolutions -----------------------------------------------------------------------------------------------

    def _conv(self, writer: Writer, var: Any, call: Any) -> Any:
        x, weight = call.args
        attrs, lanes, emit = call.attrs, self.lanes, writer.emit
        layouts = {"relax.nn.conv1d": ("NCW", "OIW"), "relax.nn.conv2d": ("NCHW", "OIHW")}[op_name(call)]
        sizes = shape_of(weight)
        if (attrs.data_layout, attrs.kernel_layout) != layouts or not writer.is_weight(weight):
            return None
        out, inner, groups = sizes[0], sizes[1], int(attrs.groups)
        depthwise = groups == inner * groups == out and groups > 1
        if groups > 1 and not depthwise and (inner % lanes or out // groups % lanes):
            return None
        held, channels = self.blocked.get(x), inner * groups
        logical = shape_of(x)
        if held is None and not depthwise:
            view = _view(writer, x)
            if groups > 1 or not (_channels_last(view) or channels < lanes):
                view = None
        else:
            view = None
        if held is not None and (held.subpixel or any(size != 1 for k, size in enumerate(sizes[2:]) if k + 2 not in held.spatial)):
            held, x = None, self._to_plain(writer, x)
        spatial = held.spatial if held else tuple(_non_unit(logical, sizes, attrs))
        window = te_ops.Window(
            *(
                tuple(int(value) for k, value in enumerate(values) if k + 2 in spatial)
                for values in (attrs.strides, *_halves(attrs.padding), attrs.dilation)
            )
        )
        taps = [sizes[axis] for axis in spatial]
        blocks_out = _ceil(out, lanes)
        if view is not None:
            source, axes = view
            axes = tuple(axis if axis < 2 else 2 + spatial.index(axis) if axis in spatial else -1 for axis in axes)
            source, axes = _without_unit_axes(writer, source, axes)
            block = max(k for k in range(1, lanes + 1) if inner % k == 0) if inner > lanes else inner
            reading = te_ops.View(axes, block)
        else:
            source = held.var if held else self._to_blocked(writer, x, x.ty.ndim, spatial)
            block, reading = lanes, None
        if depthwise:
            packed = self._padded(writer, weight, {0: blocks_out * lanes})
            packed = emit(rx.op.reshape(packed, [blocks_out, lanes, *taps]))
            packed = emit(rx.op.permute_dims(packed, [0, *range(2, len(taps) + 2), 1]))
            y = writer.call_te(lambda a, b: te_ops.depthwise(a, b, window), source, packed, hint="depthwise", attrs=OUT_EWISE_FUSABLE)
        else:
            blocks_in = _ceil(inner, block)
            packed = self._padded(writer, weight, {0: blocks_out * lanes, 1: blocks_in * block})
            packed = emit(rx.op.reshape(packed, [blocks_out, lanes, blocks_in, block, *taps]))
            packed = emit(rx.op.permute_dims(packed, [0, 2, *range(4, len(taps) + 4), 3, 1]))
            y = writer.call_te(
                lambda a, b: te_ops.conv(a, b, window, reading, groups), source, packed, hint="conv", attrs=OUT_EWISE_FUSABLE
            )
        return self._hold(var, emit(y, var.name), spatial)

    def _conv_transpose(self, writer: Writer, var: Any, call: Any) -> Any:
        x, weight = call.args
        attrs, lanes, emit = call.attrs, self.lanes, writer.emit
        sizes = shape_of(weight)
        window = sizes[2:]
        simple = (
            (attrs.data_layout, attrs.kernel_layout) == ("NCHW", "IOHW")
            and [int(s) for s in attrs.strides] == window
            and not any(int(p) for p in [*attrs.padding, *attrs.output_padding])
            and all(int(d) == 1 for d in attrs.dilation)
            and int(attrs.groups) == 1
            and writer.is_weight(weight)
        )
        if not simple:
            return None
        held = self.blocked.get(x)
        if held is None or held.subpixel or held.spatial != (2, 3):
            source = self._to_blocked(writer, self._to_plain(writer, x), 4, (2, 3))
        else:
            source = held.var
        blocks_in, blocks_out = _ceil(sizes[0], lanes), _ceil(sizes[1], lanes)
        if sizes[1] == 1:  # the lanes are the R x S pixels that one input pixel makes
            packed = self._padded(writer, weight, {0: blocks_in * lanes})
            packed = emit(rx.op.reshape(packed, [1, blocks_in, 1, 1, lanes, prod(window)]))
            point = te_ops.Window((1, 1), (0, 0), (0, 0), (1, 1))
            y = writer.call_te(lambda a, b: te_ops.conv(a, b, point), source, packed, hint="conv", attrs=OUT_EWISE_FUSABLE)
            return self._hold(var, emit(y, var.name), (2, 3), (window[0], window[1]))
        packed = self._padded(writer, weight, {0: blocks_in * lanes, 1: blocks_out * lanes})
        packed = emit(rx.op.reshape(packed, [blocks_in, lanes, blocks_out, lanes, *window]))
        packed = emit(rx.op.permute_dims(packed, [2, 0, 4, 5, 1, 3]))
        y = writer.call_te(te_ops.conv_transpose, source, packed, hint="conv_transpose", attrs=OUT_EWISE_FUSABLE)
        return self._hold(var, emit(y, var.name), (2, 3))

    def _padded(self, writer: Writer, weight: Any, to: dict[int, int]) -> Any:
        """A weight with axes grown to the given sizes by zeros at the end."""
        sizes = shape_of(weight)
        widths = [width for axis, size in enumerate(sizes) for width in (0, to.get(axis, size) - size)]
        return writer.emit(rx.op.nn.pad(weight, widths)) if any(widths) else weight

    # -- what follows its operands ------------------------------------------------------------------------------------

    def _elementwise(self, writer: Writer, var: Any, call: Any) -> Any:
        shape = shape_of(var)
        held = [self.blocked[arg] for arg in call.args if isinstance(arg, rx.Var) and arg in self.blocked]
        lead = next((one for one in held if same_shape(one.shape, shape)), None)
        if lead is None:
            return None
        if lead.subpixel:
            args = [self._scalar_or_subpixel(writer, arg, lead) for arg in call.args]
        else:
            padded = shape[1] % self.lanes != 0 if isinstance(shape[1], int) else True
            if padded and op_name(call) not in ZERO_SAFE:
                return None
            args = [self._like(writer, arg, lead) for arg in call.args]
        if any(arg is None for arg in args):
            return None
        y = writer.emit(rx.Call(call.op, args, call.attrs, call.ty_args), var.name)
        return self._hold(var, y, lead.spatial, lead.subpixel)

    def _like(self, writer: Writer, arg: Any, lead: Blocked) -> Any:
        """An operand of an elementwise operator, laid out so that it broadcasts against `lead`."""
        held = self.blocked.get(arg) if isinstance(arg, rx.Var) else None
        if held is not None and not held.subpixel and held.spatial == lead.spatial and same_shape(held.shape[1:2], lead.shape[1:2]):
            return held.var
        if not isinstance(arg, rx.Var) and not is_constant(arg):
            return arg
        return self._to_blocked(writer, self._to_plain(writer, arg), len(lead.shape), lead.spatial)

    def _scalar_or_subpixel(self, writer: Writer, arg: Any, lead: Blocked) -> Any | None:
        held = self.blocked.get(arg) if isinstance(arg, rx.Var) else None
        if held is not None:
            return held.var if held.subpixel == lead.subpixel and same_shape(held.shape, lead.shape) else None
        if not isinstance(arg, rx.Var) or arg.ty.ndim == 0:
            return arg
        if all(size == 1 for size in shape_of(arg)):
            return writer.emit(rx.op.reshape(arg, [1]))
        return None

    def _reduce(self, writer: Writer, var: Any, call: Any) -> Any:
        held = self.blocked.get(call.args[0])
        if held is None or held.subpixel or call.attrs.axis is None:
            return None
        rank = len(held.shape)
        axes = {int(axis) % rank for axis in call.attrs.axis}
        if axes & {0, 1} or not (call.attrs.keepdims or axes == set(range(2, rank))):
            return None
        at = [2 + held.spatial.index(axis) for axis in sorted(axes) if axis in held.spatial]
        fn = getattr(rx.op, op_name(call).removeprefix("relax."))
        y = writer.emit(fn(held.var, at, keepdims=bool(call.attrs.keepdims)), var.name) if at else held.var
        return self._hold(var, y, held.spatial if call.attrs.keepdims else ())

    def _squeeze(self, writer: Writer, var: Any, call: Any) -> Any:
        held = self.blocked.get(call.args[0])
        if held is None or held.subpixel:
            return None
        rank = len(held.shape)
        axes = {axis for axis, size in enumerate(held.shape) if isinstance(size, int) and size == 1}
        if call.attrs.axis is not None:
            axes = {int(axis) % rank for axis in call.attrs.axis}
        if axes & {0, 1}:
            return None
        kept = [axis for axis in range(rank) if axis not in axes]
        spatial = tuple(kept.index(axis) for axis in held.spatial if axis in kept)
        y = held.var
        if len(spatial) != len(held.spatial):
            sizes = [held.shape[kept[axis]] for axis in spatial]
            y = writer.emit(rx.op.reshape(y, [held.shape[0], _ceil(held.shape[1], self.lanes), *sizes, self.lanes]))
        return self._hold(var, y, spatial)

    def _concat(self, writer: Writer, var: Any, call: Any) -> Any:
        fields = call.args[0].fields if isinstance(call.args[0], rx.Tuple) else []
        held = [self.blocked.get(field) for field in fields]
        if not held or any(one is None or one.subpixel or one.spatial != held[0].spatial for one in held):
            return None
        whole = all(one.shape[1] % self.lanes == 0 for one in held)
        if call.attrs.axis is None or int(call.attrs.axis) % len(held[0].shape) != 1 or not whole:
            return None
        y = writer.emit(rx.op.concat([one.var for one in held], axis=1), var.name)
        return self._hold(var, y, held[0].spatial)

    def _pad(self, writer: Writer, var: Any, call: Any) -> Any:
        held = self.blocked.get(call.args[0])
        widths = [int(width) for width in call.attrs.pad_width]
        pairs = list(zip(widths[::2], widths[1::2], strict=True))
        if held is None or held.subpixel or any(any(pair) for axis, pair in enumerate(pairs) if axis not in held.spatial):
            return None
        inner = [width for axis in held.spatial for width in pairs[axis]]
        args = [held.var, *call.args[1:]]
        fresh = rx.op.nn.pad(held.var, [0] * 4 + inner + [0] * 2, call.attrs.pad_value, call.attrs.pad_mode)
        y = writer.emit(fresh if len(args) == 1 else rx.Call(fresh.op, args, fresh.attrs, fresh.ty_args), var.name)
        return self._hold(var, y, held.spatial)

    def _pool(self, writer: Writer, var: Any, call: Any) -> Any:
        held, attrs = self.blocked.get(call.args[0]), call.attrs
        if held is None or held.subpixel or held.spatial != (2, 3) or attrs.layout != "NCHW":
            return None
        kind = "max" if op_name(call) == "relax.nn.max_pool2d" else "avg"
        ints = [[int(value) for value in values] for values in (attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding)]
        y = writer.call_te(
            lambda a: tvm.topi.nn.pool2d(
                a, *ints, kind, bool(attrs.ceil_mode), f"NCHW{self.lanes}c", bool(attrs.count_include_pad)
            ),
            held.var,
            hint=f"{kind}_pool2d",
        )
        return self._hold(var, writer.emit(y, var.name), held.spatial)

    def _resize(self, writer: Writer, var: Any, call: Any) -> Any:
        held, attrs = self.blocked.get(call.args[0]), call.attrs
        if held is None or held.subpixel or held.spatial != (2, 3) or attrs.layout != "NCHW":
            return None
        size, roi = list(call.args[1].values), [float(value) for value in attrs.roi]
        y = writer.call_te(
            lambda a: tvm.topi.image.resize2d(
                a,
                roi,
                size,
                layout=f"NCHW{self.lanes}c",
                method=attrs.method,
                coordinate_transformation_mode=attrs.coordinate_transformation_mode,
                rounding_method=attrs.rounding_method,
                bicubic_alpha=attrs.cubic_alpha,
                bicubic_exclude=attrs.cubic_exclude,
                extrapolation_value=attrs.extrapolation_value,
            ),
            held.var,
            hint="resize2d",
        )
        return self._hold(var, writer.emit(y, var.name), held.spatial)


def _ceil(size: int, lanes: int) -> int:
    return -(-size // lanes)


def _halves(padding: Any) -> tuple[list[Any], list[Any]]:
    return list(padding[: len(padding) // 2]), list(padding[len(padding) // 2 :])


def _non_unit(logical: Sequence[Any], sizes: Sequence[int], attrs: Any) -> list[int]:
    """The spatial axes that matter to a convolution of a plain input; all of them when none does."""
    before, after = _halves(attrs.padding)
    axes = range(2, len(logical))
    kept = [
        axis
        for axis in axes
        if not (isinstance(logical[axis], int) and logical[axis] == 1 and sizes[axis] == 1)
        or int(before[axis - 2])
        or int(after[axis - 2])
    ]
    return kept or list(axes)


def _view(writer: Writer, x: Any) -> tuple[Any, tuple[int, ...]]:
    """The tensor behind transposes and unit axes, and for each of its axes the axis of `x` that it holds."""
    axes: list[int] = list(range(x.ty.ndim))
    while (call := writer.definition(x, "relax.permute_dims", "relax.expand_dims")) is not None:
        source = call.args[0]
        rank = call.args[0].ty.ndim
        if op_name(call) == "relax.permute_dims":
            order = [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else list(reversed(range(rank)))
            axes = [axes[order.index(k)] for k in range(rank)]
        else:
            total = len(axes)
            added = {int(axis) % total for axis in call.attrs.axis}
            axes = [axis for k, axis in enumerate(axes) if k not in added]
        x = source
    return x, tuple(axes)


def _channels_last(view: tuple[Any, tuple[int, ...]]) -> bool:
    source, axes = view
    sizes = shape_of(source)
    behind = sizes[axes.index(1) + 1 :] if 1 in axes else [0]
    return all(isinstance(size, int) and size == 1 for size in behind)


def _without_unit_axes(writer: Writer, source: Any, axes: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """The source without the axes marked -1, which have one element."""
    if -1 not in axes:
        return source, axes
    sizes = [size for size, axis in zip(shape_of(source), axes, strict=True) if axis != -1]
    return writer.emit(rx.op.reshape(source, sizes)), tuple(axis for axis in axes if axis != -1)


