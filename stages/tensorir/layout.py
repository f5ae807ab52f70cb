"""The one layout pass: activations in blocks of channels, weights packed by Relax operators.

A walk over the bindings keeps, per value, how it lies in memory. Convolutions read and write
blocks, or read a plain tensor as it lies; elementwise operators, reductions over pixels and
concatenations follow their operands. Only where an operator needs the plain tensor is it put back,
once per value. Source: notes on NCHWc in Liu et al. 2019 (NeoCPU); TVM's ConvertLayout cannot do
it, because a channel count need not be a multiple of the lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from tapml.stage import Target

from ..compat import tvm
from ..dataflow import (
    ELEMENTWISE,
    ZERO_SAFE,
    Writer,
    bindings,
    is_constant,
    op_name,
    rewrite,
    rx,
    same_shape,
    scalar_value,
    shape_of,
)
from ..target import multiplied_bits
from .convolutions import CONVOLUTIONS, conv, conv_transpose
from .kernel import ceil_div
from .orders import REDUCTIONS, has_channels_first, over_permuted, permute
from .te_ops import Band
from .tensorize.packing import NONE, Instructions
from .tiling import SYMBOLIC

FEW = 4  # channels of an image: it is read as it lies, not in blocks


@dataclass(frozen=True)
class Blocked:
    """How a value of logical shape (N, C, …) lies in memory as `var`.

    spatial:  logical axes held between the block and the lane axis; the others (≥ 2) have one
              element
    subpixel: (R, S) when the lanes are R × S neighbouring pixels of the only channel, else None
    """

    var: Any
    shape: tuple[Any, ...]
    spatial: tuple[int, ...]
    subpixel: tuple[int, int] | None = None


def block_layout(
    mod: Any, lanes: int, name: str = "main", instructions: Instructions = NONE
) -> Any:
    """`mod` whose function `name` convolves, and works between, on blocks of `lanes` channels."""
    return rewrite(mod, Blocker(lanes, instructions).visit, name)


def block_lanes(func: Any, target: Target) -> int:
    """Channels per block of an activation: as many floats as a vector has, or half of that where
    channels of zeros, which fill the last block, would cost more than narrower vectors.

    Decided for a whole function by the vectors that its convolutions multiply.
    """
    widest = max(4, min(16, target.vector_bits // 32))
    narrow = [widest // 2] if widest > 4 else []
    return min([widest, *narrow], key=lambda lanes: _vectors(func, lanes, target))


def _vectors(func: Any, lanes: int, target: Target) -> float:
    total = 0.0
    for var, call in bindings(func):
        if op_name(call) not in CONVOLUTIONS:
            continue
        out, inner, *taps = shape_of(call.args[1])
        pixels = [size if isinstance(size, int) else SYMBOLIC for size in shape_of(var)[2:]]
        depth = ceil_div(inner, lanes) * lanes if inner > FEW else inner
        if (groups := int(call.attrs.groups)) > 1:
            depth = Band(groups, inner, out // groups, lanes).depth
        total += prod(pixels) * prod(taps) * depth * ceil_div(out, lanes)
    return total * max(1, lanes * 32 / multiplied_bits(target))


def _zero_safe(call: Any) -> bool:
    """Whether channels of zeros stay finite."""
    divides = op_name(call) == "relax.divide"
    return op_name(call) in ZERO_SAFE or bool(divides and scalar_value(call.args[1]))


class Blocker:
    """The layout of every value of one function, found while it is written anew."""

    def __init__(self, lanes: int, instructions: Instructions = NONE) -> None:
        self.lanes, self.instructions = lanes, instructions
        self.logical: dict[Any, Any] = {}  # stand-in → the call that it is the value of
        self.blocked: dict[Any, Blocked] = {}  # stand-in of the logical type → where the value lies
        self.permuted: dict[Any, tuple[Any, tuple[int, ...]]] = {}  # stand-in → another, its axes
        self.plain: dict[Any, Any] = {}
        self.rules: dict[str, Callable[[Writer, Any, Any], Any]] = {
            "relax.nn.conv1d": partial(conv, self),
            "relax.nn.conv2d": partial(conv, self),
            "relax.nn.conv3d": partial(conv, self),
            "relax.nn.conv2d_transpose": partial(conv_transpose, self),
            **{
                f"relax.nn.{kind}_pool{n}d": self._pool
                for kind in ("max", "avg")
                for n in (1, 2, 3)
            },
            "relax.image.resize2d": self._resize,
            "relax.concat": self._concat,
            "relax.squeeze": self._squeeze,
            "relax.nn.pad": self._pad,
            "relax.permute_dims": partial(permute, self),
            **dict.fromkeys(REDUCTIONS, self._reduce),
            **dict.fromkeys(ELEMENTWISE, self._elementwise),
        }

    def visit(self, writer: Writer, var: Any, value: Any) -> Any:
        if writer.is_weight(value):
            return None
        rule = self.rules.get(op_name(value))
        result = rule(writer, var, value) if rule else None
        if result is None and isinstance(value, rx.Call):
            result = over_permuted(self, writer, var, value)
        if result is None:
            return self._over_plain(writer, value)
        if result in self.blocked:
            self.logical[result] = value
        return result if isinstance(var, rx.DataflowVar) else self.to_plain(writer, result)

    def hold(
        self, var: Any, at: Any, spatial: Sequence[int], subpixel: tuple[int, int] | None = None
    ) -> Any:
        """A stand-in for the logical value of `var`, which lies in memory as `at`."""
        if not spatial and shape_of(var)[1] % self.lanes == 0:
            return rx.op.reshape(at, shape_of(var))  # without pixels, blocks lie as channels do
        stand_in = rx.DataflowVar(var.name, var.ty)
        self.blocked[stand_in] = Blocked(at, tuple(shape_of(var)), tuple(spatial), subpixel)
        return stand_in

    def _over_plain(self, writer: Writer, value: Any) -> Any:
        """`value` with every blocked operand put back into plain layout."""

        def plain(expr: Any) -> Any:
            if isinstance(expr, rx.Tuple):
                return rx.Tuple([plain(field) for field in expr.fields])
            return self.to_plain(writer, expr) if isinstance(expr, rx.Var) else expr

        if isinstance(value, rx.Call):
            return rx.Call(value.op, [plain(arg) for arg in value.args], value.attrs, value.ty_args)
        if isinstance(value, rx.TupleGetItem):
            return rx.TupleGetItem(plain(value.tuple_value), value.index)
        return plain(value)

    def to_plain(self, writer: Writer, var: Any) -> Any:
        if var in self.plain:
            return self.plain[var]
        if var in self.permuted:
            base, order = self.permuted[var]
            plain = writer.emit(rx.op.permute_dims(self.to_plain(writer, base), order))
        elif var in self.blocked:
            plain = self._unblock(writer, self.blocked[var])
        else:
            return var
        self.plain[var] = plain
        return plain

    def blocked_as(self, writer: Writer, var: Any, spatial: Sequence[int]) -> Any:
        """A value in blocks, with axes `spatial` between block and lane."""
        held = self.blocked.get(var)
        if held is not None and not held.subpixel and held.spatial == tuple(spatial):
            return held.var
        return self._to_blocked(writer, self.to_plain(writer, var), var.ty.ndim, spatial)

    def _unblock(self, writer: Writer, held: Blocked) -> Any:
        emit, shape = writer.emit, held.shape
        if held.subpixel:
            (n, _, height, width), (r, s) = shape, held.subpixel
            y = emit(rx.op.reshape(held.var, [n, height // r, width // s, r, s]))
            return emit(rx.op.reshape(emit(rx.op.permute_dims(y, [0, 1, 3, 2, 4])), shape))
        inner = [shape[axis] for axis in held.spatial]
        blocks = ceil_div(shape[1], self.lanes)
        y = held.var
        if any(size != 1 for size in inner):
            rank = len(inner)
            y = emit(rx.op.permute_dims(y, [0, 1, rank + 2, *range(2, rank + 2)]))
        if blocks * self.lanes != shape[1]:
            y = emit(rx.op.reshape(y, [shape[0], blocks * self.lanes, *inner]))
            y = emit(rx.op.strided_slice(y, [1], [0], [shape[1]]))
        return emit(rx.op.reshape(y, shape))

    def _to_blocked(self, writer: Writer, x: Any, rank: int, spatial: Sequence[int]) -> Any:
        """A plain tensor, of `rank` axes after broadcasting, in blocks with axes `spatial`."""
        emit, lanes = writer.emit, self.lanes
        sizes = [1] * (rank - x.ty.ndim) + shape_of(x)
        channels, inner = sizes[1], [sizes[axis] for axis in spatial]
        blocks = ceil_div(channels, lanes)
        y = emit(rx.op.reshape(x, [sizes[0], channels, *inner]))
        if blocks * lanes != channels:
            widths = [0, 0, 0, blocks * lanes - channels, *[0, 0] * len(inner)]
            y = emit(rx.op.nn.pad(y, widths))
        if all(isinstance(size, int) and size == 1 for size in inner):
            return emit(rx.op.reshape(y, [sizes[0], blocks, *inner, lanes]))
        y = emit(rx.op.reshape(y, [sizes[0], blocks, lanes, *inner]))
        return emit(rx.op.permute_dims(y, [0, 1, *range(3, len(inner) + 3), 2]))

    def _broadcast(self, writer: Writer, x: Any, lead: Blocked) -> Any:
        """A plain operand, laid out so that it broadcasts against `lead`."""
        sizes = [1] * (len(lead.shape) - x.ty.ndim) + shape_of(x)
        if x.ty.ndim == 0:
            return x
        if not isinstance(sizes[1], int) or sizes[1] != 1:
            return self._to_blocked(writer, x, len(sizes), lead.spatial)
        shape = [sizes[0], 1, *(sizes[axis] for axis in lead.spatial), 1]
        if all(isinstance(size, int) and size == 1 for size in shape):
            shape = [1]
        return writer.emit(rx.op.reshape(x, shape))

    def _elementwise(self, writer: Writer, var: Any, call: Any) -> Any:
        shape = shape_of(var)
        held = [
            self.blocked[arg]
            for arg in call.args
            if isinstance(arg, rx.Var) and arg in self.blocked
        ]
        lead = next((one for one in held if same_shape(one.shape, shape)), None)
        if lead is None:
            return None
        if lead.subpixel:
            args = [self._scalar_or_subpixel(writer, arg, lead) for arg in call.args]
        else:
            padded = shape[1] % self.lanes != 0 if isinstance(shape[1], int) else True
            if padded and not _zero_safe(call):
                return None
            args = [self._like(writer, arg, lead) for arg in call.args]
        if any(arg is None for arg in args):
            return None
        y = writer.emit(rx.Call(call.op, args, call.attrs, call.ty_args), var.name)
        return self.hold(var, y, lead.spatial, lead.subpixel)

    def _like(self, writer: Writer, arg: Any, lead: Blocked) -> Any:
        """An operand of an elementwise operator, laid out so that it broadcasts against `lead`."""
        held = self.blocked.get(arg) if isinstance(arg, rx.Var) else None
        if (
            held is not None
            and not held.subpixel
            and held.spatial == lead.spatial
            and same_shape(held.shape[1:2], lead.shape[1:2])
        ):
            return held.var
        if not isinstance(arg, rx.Var) and not is_constant(arg):
            return arg
        return self._broadcast(writer, self.to_plain(writer, arg), lead)

    def _scalar_or_subpixel(self, writer: Writer, arg: Any, lead: Blocked) -> Any | None:
        held = self.blocked.get(arg) if isinstance(arg, rx.Var) else None
        if held is not None:
            return (
                held.var
                if held.subpixel == lead.subpixel and same_shape(held.shape, lead.shape)
                else None
            )
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
        y = (
            writer.emit(fn(held.var, at, keepdims=bool(call.attrs.keepdims)), var.name)
            if at
            else held.var
        )
        return self.hold(var, y, held.spatial if call.attrs.keepdims else ())

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
            blocks = ceil_div(held.shape[1], self.lanes)
            y = writer.emit(rx.op.reshape(y, [held.shape[0], blocks, *sizes, self.lanes]))
        return self.hold(var, y, spatial)

    def _concat(self, writer: Writer, var: Any, call: Any) -> Any:
        fields = call.args[0].fields if isinstance(call.args[0], rx.Tuple) else []
        held = [self.blocked[field] for field in fields if field in self.blocked]
        if not held or len(held) < len(fields):
            return None
        if any(one.subpixel or one.spatial != held[0].spatial for one in held):
            return None
        whole = all(one.shape[1] % self.lanes == 0 for one in held)
        if call.attrs.axis is None or int(call.attrs.axis) % len(held[0].shape) != 1 or not whole:
            return None
        y = writer.emit(rx.op.concat([one.var for one in held], axis=1), var.name)
        return self.hold(var, y, held[0].spatial)

    def _pad(self, writer: Writer, var: Any, call: Any) -> Any:
        held = self.blocked.get(call.args[0])
        widths = [int(width) for width in call.attrs.pad_width]
        pairs = list(zip(widths[::2], widths[1::2], strict=True))
        if (
            held is None
            or held.subpixel
            or any(any(pair) for axis, pair in enumerate(pairs) if axis not in held.spatial)
        ):
            return None
        inner = [width for axis in held.spatial for width in pairs[axis]]
        args = [held.var, *call.args[1:]]
        fresh = rx.op.nn.pad(
            held.var, [0] * 4 + inner + [0] * 2, call.attrs.pad_mode, call.attrs.pad_value
        )
        y = writer.emit(
            fresh if len(args) == 1 else rx.Call(fresh.op, args, fresh.attrs, fresh.ty_args),
            var.name,
        )
        return self.hold(var, y, held.spatial)

    def _pool(self, writer: Writer, var: Any, call: Any) -> Any:
        held, attrs = self.blocked.get(call.args[0]), call.attrs
        rank = var.ty.ndim - 2
        whole = held is not None and held.spatial == tuple(range(2, rank + 2))
        if held is None or held.subpixel or not whole or not has_channels_first(call):
            return None
        kind = op_name(call).removeprefix("relax.nn.")[:3]
        pool = getattr(tvm.topi.nn, f"pool{rank}d")
        ints = [
            [int(value) for value in values]
            for values in (attrs.pool_size, attrs.strides, attrs.dilation, attrs.padding)
        ]
        y = writer.call_te(
            lambda a: pool(
                a,
                *ints,
                kind,
                bool(attrs.ceil_mode),
                f"NC{'DHW'[-rank:]}{self.lanes}c",
                bool(attrs.count_include_pad),
            ),
            held.var,
            hint=f"{kind}_pool{rank}d",
        )
        return self.hold(var, writer.emit(y, var.name), held.spatial)

    def _resize(self, writer: Writer, var: Any, call: Any) -> Any:
        held, attrs = self.blocked.get(call.args[0]), call.attrs
        if held is None or held.subpixel or held.spatial != (2, 3) or not has_channels_first(call):
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
        return self.hold(var, writer.emit(y, var.name), held.spatial)
