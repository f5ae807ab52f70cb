"""Values whose channels come last: models in NHWC, and transposes around every convolution.

A transpose of a value in blocks moves nothing. The value stays where it lies, and what follows it
element by element, over pixels or over channels works on it there; a transpose back ends it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..dataflow import ELEMENTWISE, Writer, is_constant, op_name, rewrite, rx, shape_of

if TYPE_CHECKING:
    from .layout import Blocker

REDUCTIONS = frozenset(f"relax.{name}" for name in ("mean", "sum", "max", "min"))
LAYOUTS = {  # attributes that say how operands lie, and what the layout pass wants them to be
    **{
        f"relax.nn.conv{len(sizes)}d": {"data_layout": f"NC{sizes}", "kernel_layout": f"OI{sizes}"}
        for sizes in ("W", "HW", "DHW")
    },
    "relax.nn.conv2d_transpose": {"data_layout": "NCHW", "kernel_layout": "IOHW"},
    **{
        f"relax.nn.{kind}_pool{len(sizes)}d": {"layout": f"NC{sizes}"}
        for kind in ("max", "avg", "adaptive_avg")
        for sizes in ("W", "HW", "DHW")
    },
    "relax.image.resize2d": {"layout": "NCHW"},
}


def channels_first(mod: Any, name: str = "main") -> Any:
    """`mod` whose convolutions, pools and resizes of function `name` have channels before pixels,
    with transposes around those that had not.
    """

    def visit(writer: Writer, _var: Any, call: Any) -> Any:
        wanted = LAYOUTS.get(op_name(call))
        if wanted is None or has_channels_first(call):
            return None
        if getattr(call.attrs, "out_layout", "") not in ("", _data_layout(call)):
            return None
        args = [
            _transposed(writer, arg, getattr(call.attrs, key), to)
            for arg, (key, to) in zip(call.args, wanted.items(), strict=False)
        ]
        first = next(iter(wanted.values()))
        y = writer.emit(_again(call, [*args, *call.args[len(args) :]], wanted))
        return rx.op.permute_dims(y, [first.index(axis) for axis in _data_layout(call)])

    return rewrite(mod, visit, name)


def has_channels_first(call: Any) -> bool:
    """Whether the operands of a convolution, pool or resize lie as the layout pass wants them."""
    wanted = LAYOUTS[op_name(call)]
    return all(getattr(call.attrs, key) == to for key, to in wanted.items())


def _data_layout(call: Any) -> str:
    return str(getattr(call.attrs, next(iter(LAYOUTS[op_name(call)]))))


def _transposed(writer: Writer, x: Any, have: str, want: str) -> Any:
    return x if have == want else writer.emit(rx.op.permute_dims(x, [*map(have.index, want)]))


def _again(call: Any, args: Sequence[Any], layouts: dict[str, str]) -> Any:
    """The call with other operands and layouts."""
    function: Any = rx.op
    for part in op_name(call).split(".")[1:]:
        function = getattr(function, part)
    names = [name for name in inspect.signature(function).parameters if hasattr(call.attrs, name)]
    given = {name: _plain(getattr(call.attrs, name)) for name in names if name != "out_layout"}
    return function(*args, **{**given, **layouts})


def _plain(value: Any) -> Any:
    """An attribute as the operator's function takes it."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    try:
        return [one if isinstance(one, float) else getattr(one, "value", one) for one in value]
    except TypeError:
        return getattr(value, "value", value)


def permute(blocker: Blocker, writer: Writer, var: Any, call: Any) -> Any | None:
    """A transpose of a value in blocks, or of one that such a transpose made."""
    x = call.args[0]
    base, order = blocker.permuted.get(x, (x, tuple(range(x.ty.ndim))))
    if base not in blocker.blocked or blocker.blocked[base].subpixel:
        return None
    rank = x.ty.ndim
    axes = call.attrs.axes
    axes = range(rank - 1, -1, -1) if axes is None else [int(axis) % rank for axis in axes]
    return _stand_in(blocker, var, base, [order[axis] for axis in axes])


def _stand_in(blocker: Blocker, var: Any, base: Any, order: Sequence[int]) -> Any:
    """What stands for the value of `var`: axis i of it is axis `order[i]` of `base`."""
    if list(order) == sorted(order):
        return base
    if base not in blocker.blocked:
        return rx.op.permute_dims(base, list(order))
    stand_in = rx.DataflowVar(var.name, var.ty)
    blocker.permuted[stand_in] = base, tuple(order)
    return stand_in


def over_permuted(blocker: Blocker, writer: Writer, var: Any, call: Any) -> Any | None:
    """A call on transposed values as one on what was transposed, the transpose behind it."""
    name, rule = op_name(call), blocker.rules.get(op_name(call))
    fields = [f for arg in call.args for f in (arg.fields if isinstance(arg, rx.Tuple) else [arg])]
    found = [blocker.permuted[f] for f in fields if isinstance(f, rx.Var) and f in blocker.permuted]
    if rule is None or not found:
        return None
    order = list(found[0][1])
    rank = len(order)
    back = [order.index(axis) for axis in range(rank)]

    def moved(arg: Any) -> Any:
        if isinstance(arg, rx.Tuple):
            return rx.Tuple([moved(field) for field in arg.fields])
        if not isinstance(arg, rx.Var) and not is_constant(arg):
            return arg
        if arg in blocker.permuted and list(blocker.permuted[arg][1]) == order:
            return blocker.permuted[arg][0]
        plain = blocker.to_plain(writer, arg) if isinstance(arg, rx.Var) else arg
        if plain.ty.ndim == 0:
            return plain
        shape = [1] * (rank - plain.ty.ndim) + shape_of(plain)
        whole = writer.emit(rx.op.reshape(plain, shape))
        return writer.emit(rx.op.permute_dims(whole, back))

    fresh, kept = None, order
    if name in ELEMENTWISE:
        if var.ty.ndim != rank:
            return None
        fresh = rx.Call(call.op, [moved(arg) for arg in call.args], call.attrs, call.ty_args)
    elif name == "relax.concat" and call.attrs.axis is not None:
        axis = order[int(call.attrs.axis) % rank]
        if any(field not in blocker.permuted for field in fields):
            return None
        fresh = rx.op.concat(moved(call.args[0]), axis)
    elif name in REDUCTIONS and call.attrs.axis is not None:
        axes = [order[int(axis) % rank] for axis in call.attrs.axis]
        function = getattr(rx.op, name.removeprefix("relax."))
        fresh = function(moved(call.args[0]), axes, bool(call.attrs.keepdims))
        if not call.attrs.keepdims:
            left = [axis for axis in order if axis not in axes]
            kept = [sorted(left).index(axis) for axis in left]
    elif name == "relax.nn.pad":
        widths = [int(width) for width in call.attrs.pad_width]
        moved_widths = [widths[2 * at + side] for at in back for side in (0, 1)]
        value = [call.attrs.pad_mode, call.attrs.pad_value]
        pad = rx.op.nn.pad(moved(call.args[0]), moved_widths, *value)
        fresh = rx.Call(pad.op, [pad.args[0], *call.args[1:]], pad.attrs, pad.ty_args)
    if fresh is None:
        return None
    typed = writer.typed(fresh)
    base = rule(writer, rx.DataflowVar(var.name, typed.ty), typed)
    return None if base is None else _stand_in(blocker, var, base, kept)
