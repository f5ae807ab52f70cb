"""Operators that move nothing: removed, or joined with the one before."""

from __future__ import annotations

from typing import Any

from .dataflow import BINARY, Writer, op_name, rewrite, rx, same_shape, shape_of


def remove_noops(mod: Any, name: str = "main") -> Any:
    """`mod` whose function `name` has no reshape, transpose, cast or broadcast without effect.

    Chains of reshapes and of transposes become one; a reshape that only adds or drops unit axes
    becomes expand_dims or squeeze, which fuse with their neighbours where sizes are symbolic.
    """
    return rewrite(mod, _visit, name)


def _visit(writer: Writer, _var: Any, value: Any) -> Any:
    name = op_name(value)
    if name in BINARY:
        return _without_broadcasts(writer, value)
    if name in (
        "relax.reshape",
        "relax.expand_dims",
        "relax.squeeze",
        "relax.broadcast_to",
        "relax.astype",
    ):
        source, result = value.args[0], writer.typed(value)
        if source.ty.dtype == result.ty.dtype and same_shape(shape_of(source), shape_of(result)):
            return source
        before = writer.definition(source, "relax.reshape", "relax.expand_dims", "relax.squeeze")
        if before is not None and name in ("relax.reshape", "relax.expand_dims", "relax.squeeze"):
            origin = before.args[0]
            if same_shape(shape_of(origin), shape_of(result)):
                return origin
            if name == "relax.reshape":
                return _reshape(writer, origin, shape_of(result))
        if name == "relax.reshape":
            return _reshape(writer, source, shape_of(result))
    if name == "relax.permute_dims":
        axes = permutation(value)
        if (before := writer.definition(value.args[0], "relax.permute_dims")) is not None:
            inner = permutation(before)
            axes = [inner[axis] for axis in axes]
            value = rx.op.permute_dims(before.args[0], axes)
        if axes == sorted(axes):
            return value.args[0]
        if not _moves_units_only(axes, shape_of(value.args[0])):
            return value
        return _reshape(writer, _origin(writer, value.args[0]), shape_of(writer.typed(value)))
    return None


def _origin(writer: Writer, source: Any) -> Any:
    """What `source` is a reshape of, or itself."""
    before = writer.definition(source, "relax.reshape", "relax.expand_dims", "relax.squeeze")
    return source if before is None else before.args[0]


def _reshape(writer: Writer, source: Any, shape: list[Any]) -> Any:
    """A reshape, or squeeze and expand_dims when these do."""
    sizes = shape_of(source)
    kept = [axis for axis, size in enumerate(sizes) if not _is_one(size)]
    if not kept or not same_shape(
        [sizes[axis] for axis in kept], [size for size in shape if not _is_one(size)]
    ):
        return rx.op.reshape(source, shape)
    added = [axis for axis, size in enumerate(shape) if _is_one(size)]
    static = all(isinstance(size, int) for size in sizes)
    if static and added and len(kept) < len(sizes):
        return rx.op.reshape(source, shape)  # one operator is a view, two are a copy
    if len(kept) < len(sizes):
        source = writer.emit(
            rx.op.squeeze(source, [axis for axis, size in enumerate(sizes) if _is_one(size)])
        )
    return rx.op.expand_dims(source, added) if added else source


def _moves_units_only(axes: list[int], sizes: list[Any]) -> bool:
    """Whether a permutation leaves the axes that hold more than one element in order."""
    moved = [axis for axis in axes if not _is_one(sizes[axis])]
    return moved == sorted(moved)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def permutation(call: Any) -> list[int]:
    """The axes of a permute_dims call, never negative; reversed when it names none."""
    rank = call.args[0].ty.ndim
    if call.attrs.axes is None:
        return list(reversed(range(rank)))
    return [int(axis) % rank for axis in call.attrs.axes]


def _without_broadcasts(writer: Writer, value: Any) -> Any:
    """An elementwise call that broadcasts by itself what was broadcast for it."""
    shape = shape_of(writer.typed(value))
    for k in range(2):
        if (before := writer.definition(value.args[k], "relax.broadcast_to")) is not None:
            args = list(value.args)
            args[k] = before.args[0]
            shorter = rx.Call(value.op, args, value.attrs, value.ty_args)
            if same_shape(shape_of(writer.typed(shorter)), shape):
                value = shorter
    return value
