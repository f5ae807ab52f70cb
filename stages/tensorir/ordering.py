"""Sorts, the largest k, and running sums as tensor expressions: TVM lowers them to calls of its
runtime, which a kernel on another platform has not, or not at all for symbolic sizes.

Of few elements a place in the order is how many come before it. Counting them takes n²
comparisons, all vectors and independent: for the router of a mixture of experts, a beam, a few
hundred boxes. Longer rows, and those of unknown length, are merged (`sorting`).
"""

from __future__ import annotations

from typing import Any

from ..compat import tvm
from ..dataflow import Writer, op_name, rewrite, rx, shape_of
from .sorting import sorter

te, tirx, topi = tvm.te, tvm.tirx, tvm.topi
COUNTED = 64  # elements of a row up to which counting is faster
RUNNING = {"relax.cumsum": topi.cumsum, "relax.cumprod": topi.cumprod}


def lower_ordering(mod: Any, name: str = "main") -> Any:
    """`mod` whose function `name` has no topk, sort, argsort, cumsum, cumprod or bucketize."""
    return rewrite(mod, _visit, name)


def _visit(writer: Writer, _var: Any, value: Any) -> Any:
    name = op_name(value)
    if not name:
        return None
    attrs = value.attrs
    if name in RUNNING:
        axis = None if attrs.axis is None else int(attrs.axis)
        dtype = str(attrs.dtype) or _running_dtype(value.args[0])
        return writer.call_te(
            lambda x: RUNNING[name](x, axis, dtype, bool(attrs.exclusive)),
            value.args[0],
            hint=name.removeprefix("relax."),
            attrs={"op_pattern": 8},
        )
    if name == "relax.bucketize":
        dtype = "int32" if attrs.out_int32 else "int64"
        return writer.call_te(
            lambda x, bounds: topi.searchsorted(bounds, x, bool(attrs.right), dtype),
            *value.args,
            hint="bucketize",
            attrs={"op_pattern": 8},
        )
    if name == "relax.topk":
        kind = str(attrs.ret_type)
        wanted = ("values", "indices") if kind == "both" else (kind,)
        return _ordered(writer, value, wanted, bool(attrs.largest), int(attrs.k), str(attrs.dtype))
    if name == "relax.sort":
        return _ordered(writer, value, ("values",), bool(attrs.descending))
    if name == "relax.argsort":
        return _ordered(writer, value, ("indices",), bool(attrs.descending), dtype=str(attrs.dtype))
    return None


def _running_dtype(x: Any) -> str:
    """Booleans are counted."""
    return "int64" if str(x.ty.dtype) == "bool" else str(x.ty.dtype)


def _ordered(
    writer: Writer,
    call: Any,
    wanted: tuple[str, ...],
    descending: bool,
    k: int = -1,
    dtype: str = "int64",
) -> Any:
    """The first k (all: below 1) in order along the axis, ties by index; NaN counts as largest."""
    x = call.args[0]
    rank = x.ty.ndim
    axis = int(call.attrs.axis) % rank
    order = [*(a for a in range(rank) if a != axis), axis]
    moved = x if axis == rank - 1 else writer.emit(rx.op.permute_dims(x, order))
    hint = op_name(call).removeprefix("relax.")
    size = shape_of(moved)[-1]
    if isinstance(size, int) and size <= COUNTED:
        made = writer.call_te(
            lambda a: _ranked(a, wanted, descending, k, dtype),
            moved,
            hint=hint,
            attrs={"op_pattern": 8},
        )
    else:
        made = _merged(writer, moved, wanted, descending, k, dtype, hint)
    if axis == rank - 1:
        return made
    back = [order.index(a) for a in range(rank)]
    if len(wanted) == 1:
        return rx.op.permute_dims(writer.emit(made), back)
    both = writer.emit(made)
    fields = [writer.emit(rx.TupleGetItem(both, at)) for at in range(len(wanted))]
    return rx.Tuple([writer.emit(rx.op.permute_dims(field, back)) for field in fields])


def _merged(
    writer: Writer,
    x: Any,
    wanted: tuple[str, ...],
    descending: bool,
    k: int,
    dtype: str,
    hint: str,
) -> Any:
    """A call of a merge sort."""
    kind, sizes = str(x.ty.dtype), shape_of(x)
    results = [(name == "indices", dtype if name == "indices" else kind) for name in wanted]
    floats = kind.startswith("float")
    kernel = sorter(
        sizes,
        kind,
        results,
        None if k < 1 else k,
        lambda a, b: _is_beyond(a, b, descending, floats),
    )
    shape = [*sizes[:-1], sizes[-1] if k < 1 else k]
    types = [rx.TensorType(shape, one) for _, one in results]
    return rx.call_tir(
        writer.add_function(kernel, hint), [x], types if len(types) > 1 else types[0]
    )


def _ranked(x: Any, wanted: tuple[str, ...], descending: bool, k: int, dtype: str) -> Any:
    """Values and indices of the first k elements of each row in order."""
    *outer, size = x.shape
    count = size if k < 1 else k
    j = te.reduce_axis((0, size), "j")

    def before(at: tuple[Any, ...]) -> Any:
        *row, i = at
        floats = str(x.dtype).startswith("float")
        first = _comes_first(x(*row, j), j, x(*row, i), i, descending, floats)
        return tirx.Select(first, tirx.const(1, "int32"), tirx.const(0, "int32"))

    places = te.compute(
        x.shape,
        lambda *at: te.sum(before(at), axis=j),
        name="place",
    )

    def picked(name: str, element: Any, kind: str) -> Any:
        i = te.reduce_axis((0, size), "i")
        return te.compute(
            (*outer, count),
            lambda *at: te.sum(
                tirx.Select(
                    places(*at[:-1], i) == at[-1].astype("int32"),
                    element(at[:-1], i),
                    tirx.const(0, kind),
                ),
                axis=i,
            ),
            name=name,
        )

    results = {
        "values": lambda: picked("values", lambda row, i: x(*row, i), str(x.dtype)),
        "indices": lambda: picked("indices", lambda _row, i: i.astype(dtype), dtype),
    }
    found = [results[name]() for name in wanted]
    return found[0] if len(found) == 1 else found


def _comes_first(a: Any, i: Any, b: Any, j: Any, descending: bool, floats: bool) -> Any:
    """Whether element a at i comes before b at j."""
    equal = a == b
    if floats:
        equal = tirx.any(equal, tirx.all(tirx.isnan(a), tirx.isnan(b)))
    return tirx.any(_is_beyond(a, b, descending, floats), tirx.all(equal, i < j))


def _is_beyond(a: Any, b: Any, descending: bool, floats: bool) -> Any:
    """Whether a comes before b by value alone."""
    beyond = a > b if descending else a < b
    if not floats:
        return beyond
    first, second = (a, b) if descending else (b, a)
    return tirx.any(beyond, tirx.all(tirx.isnan(first), tirx.Not(tirx.isnan(second))))
