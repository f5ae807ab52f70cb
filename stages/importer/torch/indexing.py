"""Parts of tensors: selected, sliced, taken and written by index, joined, split.

Bounds are brought inside the axis and indices counted from its start, so that nothing is read or
written outside; sizes are the ones that torch tells.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ...compat import tvm
from .call import Call

rx = tvm.relax


def reshape(call: Call) -> Any:
    return call.emit(rx.op.reshape(call.value("self"), call.shape))


def expand(call: Call) -> Any:
    return call.emit(rx.op.broadcast_to(call.value("self"), call.shape))


def select(call: Call) -> Any:
    """One of an axis. TVM's reads out of bounds at a negative index."""
    return _select(call, call.value("self"), call.axis(), call.number("index"))


def unbind(call: Call) -> list[Any]:
    x, axis = call.value("self"), call.axis()
    return [_select(call, x, axis, index) for index in range(call.meta("self").shape[axis])]


def _select(call: Call, x: Any, axis: int, index: Any) -> Any:
    if isinstance(index, int) and index < 0:
        index = index + call.meta("self").shape[axis]
    return call.emit(rx.op.take(x, rx.prim_value(call.size(index)), axis))


def slice_(call: Call) -> Any:
    axis, step, length = call.axis(), call["step"], call.out.shape[call.axis()]
    if step == 1 and call.same(length, call.meta("self").shape[axis]):
        return call.value("self")
    return _sliced(call, call.value("self"), axis, _begin(call, axis), length, step)


def _begin(call: Call, axis: int) -> Any:
    """`start`, inside the axis."""
    size, start = call.meta("self").shape[axis], call.number("start")
    begin = 0 if start is None else start
    if isinstance(begin, int) and begin < 0:
        begin = torch.sym_max(begin + size, 0)
    return torch.sym_min(begin, size)


def _sliced(call: Call, x: Any, axis: int, begin: Any, length: Any, step: int = 1) -> Any:
    end = begin + (length - 1) * step + 1
    bounds = [call.size(begin)], [call.size(end)], [step]
    return call.emit(rx.op.strided_slice(x, [axis], *bounds, assume_inbound=True))


def split(call: Call) -> list[Any]:
    x, axis, begin, parts = call.value("self"), call.axis(), 0, []
    for part in call.node.meta["val"]:
        parts.append(_sliced(call, x, axis, begin, part.shape[axis]))
        begin = begin + part.shape[axis]
    return parts


def concatenate(call: Call) -> Any:
    """In the common dtype; torch lets 1-d tensors of no elements pass."""
    rank = call.out.dim()
    nodes = [n for n in call["tensors"] if n.meta["val"].dim() == rank]
    values = [call.cast(call.of(node), call.dtype) for node in nodes]
    if len(values) == 1:
        return values[0]
    return call.emit(rx.op.concat(values, call["dim"] % rank))


def stack(call: Call) -> Any:
    axis = call["dim"] % call.out.dim()
    values = [rx.op.expand_dims(call.cast(call.of(n), call.dtype), axis) for n in call["tensors"]]
    return call.emit(rx.op.concat(values, axis))


def pad(call: Call) -> Any:
    """Of a constant; negative widths cut off."""
    x, shape = call.value("self"), list(call.meta("self").shape)
    widths = call["pad"]
    pairs = [(0, 0)] * len(shape)
    for index in range(len(widths) // 2):
        pairs[-1 - index] = (widths[2 * index], widths[2 * index + 1])
    for axis, (before, after) in enumerate(pairs):
        if before < 0 or after < 0:
            length = shape[axis] + min(before, 0) + min(after, 0)
            x = _sliced(call, x, axis, max(-before, 0), length)
    flat = [max(width, 0) for pair in pairs for width in pair]
    value = float(call["value"] or 0)
    if call.out.dtype is torch.bool:  # TVM pads numbers only
        padded = rx.op.nn.pad(rx.op.astype(x, "int8"), flat, "constant", value)
        return call.emit(rx.op.astype(padded, "bool"))
    return call.emit(rx.op.nn.pad(x, flat, "constant", value)) if any(flat) else x


def unfold(call: Call) -> Any:
    """Windows of an axis, their places last."""
    axis, size, step = call["dimension"] % call.meta("self").dim(), call["size"], call["step"]
    windows = rx.op.multiply(
        rx.op.arange(call.size(call.out.shape[axis]), dtype="int64"), rx.const(step, "int64")
    )
    places = rx.op.add(rx.op.expand_dims(windows, 1), rx.op.arange(size, dtype="int64"))
    taken = call.emit(rx.op.take(call.value("self"), places, axis))
    rank = call.out.dim()
    order = [one for one in range(rank) if one != axis + 1]
    return call.emit(rx.op.permute_dims(taken, [*order, axis + 1]))


# --- by index tensors


def embedding(call: Call) -> Any:
    """Rows by index; one that is out of range gives NaN, where torch raises."""
    weight, indices = call.value("weight"), call.value("indices")
    return call.emit(rx.op.take(weight, indices, axis=0, mode="nan"))


def index_select(call: Call) -> Any:
    index = call.value("index")
    if call.meta("index").dim() == 0:
        index = rx.op.expand_dims(index, 0)
    return call.emit(rx.op.take(call.value("self"), index, call.axis()))


def index(call: Call) -> Any:
    """Indexing by tensors: the indexed axes become one, and are taken by one index.

    TVM's own reads out of bounds at negative indices, and takes every pair where torch zips.
    """
    indices = list(call["indices"])
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    x, extents = call.value("self"), list(call.meta("self").shape)
    if axes != list(range(axes[0], axes[-1] + 1)):  # then torch puts the index's axes first
        x, extents, indices = _indexed_first(call, x, extents, indices)
        axes = list(range(len(axes)))
    first, *others = axes
    place, merged = call.from_start(indices[first], extents[first]), extents[first]
    for axis in others:
        place = rx.op.multiply(place, call.scalar(extents[axis], "int64"))
        place = rx.op.add(place, call.from_start(indices[axis], extents[axis]))
        merged = merged * extents[axis]
    if others:
        shape = [*extents[:first], merged, *extents[axes[-1] + 1 :]]
        x = rx.op.reshape(x, call.sizes(shape))
    return call.emit(rx.op.take(x, place, axis=first))


def _indexed_first(
    call: Call, x: Any, extents: list[Any], indices: list[Any]
) -> tuple[Any, list[Any], list[Any]]:
    """Tensor, sizes and indices with the indexed axes before the others."""
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    order = axes + [axis for axis in range(len(extents)) if axis not in axes]
    extents = [extents[axis] for axis in order]
    return call.emit(rx.op.permute_dims(x, order)), extents, [indices[axis] for axis in axes]


def gather(call: Call) -> Any:
    if call.meta("self").dim() == 0:
        return call.value("self")
    place = call.cast(call.value("index"), "int64")
    return call.emit(rx.op.gather_elements(call.value("self"), place, call.axis()))


def sort(call: Call) -> tuple[Any, Any]:
    """Values and places in their order."""
    axis, falling = call.axis(), bool(call["descending"])
    order = call.emit(rx.op.argsort(call.value("self"), axis, falling, "int64"))
    return call.emit(rx.op.gather_elements(call.value("self"), order, axis)), order


_REDUCTIONS: dict[Any, str] = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul"}
_REDUCTIONS |= {"amax": "max", "amin": "min", None: "update"}


def scatter(call: Call) -> Any:
    """scatter.src, scatter.value, scatter_add and their reductions."""
    x, place, axis = call.value("self"), call.cast(call.value("index"), "int64"), call.axis()
    shape = call.sizes(call.meta("index").shape)
    if "value" in call.args:
        updates = rx.op.full(shape, call.operand(call["value"], call.dtype), call.dtype)
    else:
        updates = _corner(call, call.value("src"), call.meta("src"), call.meta("index"))
    kind = "add" if "scatter_add" in str(call.node.target) else _REDUCTIONS[call.args.get("reduce")]
    return _scattered(call, x, place, updates, axis, kind)


def _scattered(call: Call, x: Any, place: Any, updates: Any, axis: int, kind: str) -> Any:
    """Where the index is smaller than the tensor beside the axis, in the part that it covers: TVM
    takes it for as large.
    """

    def within(x: Any, beside: list[int]) -> Any:
        if not beside:
            return call.emit(rx.op.scatter_elements(x, place, updates, axis, kind))
        first, *rest = beside
        length = call.meta("index").shape[first]
        part = within(_sliced(call, x, first, 0, length), rest)
        bounds = [rx.prim_value(one) for one in (0, call.size(length), 1)]
        return call.emit(rx.op.slice_scatter(x, part, *bounds, axis=first))

    shapes = zip(call.meta("self").shape, call.meta("index").shape, strict=True)
    smaller = [one for one, (size, length) in enumerate(shapes) if not call.same(size, length)]
    return within(x, [one for one in smaller if one != axis])


def scatter_reduce(call: Call) -> Any:
    """Without the old values (include_self=False) the places written to start from nothing."""
    x, axis, how = call.value("self"), call.axis(), call["reduce"]
    place = call.cast(call.value("index"), "int64")
    shape, dtype = call.sizes(call.meta("index").shape), call.dtype
    updates = _corner(call, call.value("src"), call.meta("src"), call.meta("index"))

    def constant(value: Any) -> Any:
        return rx.op.full(shape, rx.const(value, dtype), dtype)

    def scattered(data: Any, values: Any, kind: str) -> Any:
        return _scattered(call, data, place, values, axis, kind)

    if not call["include_self"]:
        limits = torch.finfo if call.out.is_floating_point() else torch.iinfo
        nothing = {"sum": 0, "mean": 0, "prod": 1}
        nothing |= {"amax": limits(call.out.dtype).min, "amin": limits(call.out.dtype).max}
        x = scattered(x, constant(nothing[how]), "update")
    if how != "mean":
        return scattered(x, updates, _REDUCTIONS[how])
    total = scattered(x, updates, "add")
    old = rx.op.ones_like(x)
    if not call["include_self"]:
        old = scattered(old, constant(0), "update")
    count = scattered(old, constant(1), "add")
    count = rx.op.maximum(count, rx.const(1, dtype))
    divide = rx.op.divide if call.out.is_floating_point() else rx.op.floor_divide
    return call.emit(divide(total, count))


def _corner(call: Call, x: Any, there: torch.Tensor, wanted: torch.Tensor) -> Any:
    """The part of a source that an index of smaller shape reads."""
    for axis, (size, length) in enumerate(zip(there.shape, wanted.shape, strict=True)):
        if not call.same(size, length):
            x = _sliced(call, x, axis, 0, length)
    return x


def index_put(call: Call) -> Any:
    """Values written (or added) where index tensors say; by a mask, where it holds."""
    x, extents, indices = call.value("self"), list(call.meta("self").shape), list(call["indices"])
    values = call.cast(call.value("values"), call.dtype)
    first = next(one for one in indices if one is not None)
    if first.meta["val"].dtype is torch.bool:
        return _put_by_mask(call, x, indices, values)
    axes = [axis for axis, one in enumerate(indices) if one is not None]
    rank, count = len(extents), len(axes)
    together = axes == list(range(axes[0], axes[-1] + 1))
    order = axes + [axis for axis in range(rank) if axis not in axes]
    x = rx.op.permute_dims(x, order) if order != list(range(rank)) else x
    places = [call.from_start(indices[axis], extents[axis]) for axis in axes]
    shape = list(torch.broadcast_shapes(*(indices[axis].meta["val"].shape for axis in axes)))
    places = [
        rx.op.expand_dims(rx.op.broadcast_to(one, call.sizes(shape)), len(shape)) for one in places
    ]
    place = places[0] if count == 1 else rx.op.concat(places, len(shape))
    rest = [extents[axis] for axis in order[count:]]
    before = axes[0] if together else 0  # the result of indexing has these axes before the index's
    target = [*rest[:before], *shape, *rest[before:]]
    values = rx.op.broadcast_to(values, call.sizes(target))
    if before:
        moved = [*range(before, before + len(shape)), *range(before)]
        values = rx.op.permute_dims(values, [*moved, *range(len(moved), len(target))])
    kind = "add" if call["accumulate"] else "update"
    result = call.emit(rx.op.scatter_nd(call.emit(x), call.emit(place), call.emit(values), kind))
    back = [order.index(axis) for axis in range(rank)]
    return call.emit(rx.op.permute_dims(result, back)) if back != list(range(rank)) else result


def _put_by_mask(call: Call, x: Any, indices: list[Any], values: Any) -> Any:
    if len(indices) > 1 or call["accumulate"] or call.meta("values").numel() != 1:
        raise NotImplementedError("a mask that picks places for other values than one")
    mask, rank = indices[0], call.out.dim()
    flags = call.of(mask)
    if missing := rank - mask.meta["val"].dim():
        flags = rx.op.expand_dims(flags, list(range(rank - missing, rank)))
    return call.emit(rx.op.where(flags, rx.op.reshape(values, []), x))


def masked_scatter(call: Call) -> Any:
    """A source's elements in their order, where a mask holds; whole rows where the mask has one
    flag for each. Of a source that is too short the last is repeated, where torch raises.
    """
    sizes, mask = list(call.out.shape), list(call.meta("mask").shape)
    mask = [1] * (len(sizes) - len(mask)) + mask
    picked = max((axis + 1 for axis, size in enumerate(mask) if size != 1), default=0)
    row = math.prod(sizes[picked:])
    flags = rx.op.broadcast_to(
        rx.op.reshape(call.value("mask"), call.sizes(mask)),
        call.sizes([*sizes[:picked], *mask[picked:]]),
    )
    flat = rx.op.reshape(flags, call.sizes([math.prod(sizes[:picked])]))
    place = rx.op.subtract(rx.op.cumsum(flat, 0, "int64"), rx.const(1, "int64"))
    rows = rx.op.reshape(
        call.value("source"), call.sizes([call.meta("source").numel() // row, row])
    )
    taken = rx.op.reshape(rx.op.take(rows, place, 0, mode="clip"), call.shape)
    return call.emit(rx.op.where(flags, taken, call.value("self")))


def slice_scatter(call: Call) -> Any:
    """A tensor with a slice of it replaced."""
    axis, step = call.axis(), call["step"]
    return _placed(call, call.value("src"), axis, _begin(call, axis), step)


def select_scatter(call: Call) -> Any:
    axis, begin = call.axis(), call.number("index")
    if isinstance(begin, int) and begin < 0:
        begin = begin + call.meta("self").shape[axis]
    source = call.emit(rx.op.expand_dims(call.value("src"), axis))
    return _placed(call, source, axis, begin, 1, length=1)


def _placed(call: Call, source: Any, axis: int, begin: Any, step: int, length: Any = None) -> Any:
    x = call.value("self")
    length = call.meta("src").shape[axis] if length is None else length
    if step == 1 and call.same(length, call.meta("self").shape[axis]):
        return source
    end = begin + (length - 1) * step + 1
    bounds = [rx.prim_value(one) for one in (call.size(begin), call.size(end), step)]
    return call.emit(rx.op.slice_scatter(x, source, *bounds, axis=axis))


def repeat(call: Call) -> Any:
    """The tensor laid side by side along each axis; how often may depend on a dim."""
    sizes = call.sizes(call.meta("self").shape)
    counts = [call.size(call.plain(count)) for count in call["repeats"]]
    sizes = [1] * (len(counts) - len(sizes)) + sizes
    narrow = [size for one in sizes for size in (1, one)]
    wide = [size for pair in zip(counts, sizes, strict=True) for size in pair]
    apart = call.emit(
        rx.op.broadcast_to(call.emit(rx.op.reshape(call.value("self"), narrow)), wide)
    )
    return call.emit(rx.op.reshape(apart, call.shape))
