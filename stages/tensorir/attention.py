"""Attention as one kernel: softmax(Q Kᵀ, scaled and masked) V without a buffer of all scores.

The pattern is found over what exporters write around it: heads that are transposed apart and
together again, batches flattened for the product, key heads repeated for groups of query heads.
All of that becomes index arithmetic of the kernel. Source: Dao et al. 2022 (FlashAttention), with
whole rows of scores instead of the running softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..compat import tvm
from ..dataflow import Writer, op_name, rewrite, rx, same_shape, scalar_value, shape_of
from ..noops import permutation

te, tirx = tvm.te, tvm.tirx
FEW_ROWS = 4  # below, rows do not fill a vector: the products are read as they lie
OPAQUE = {"op_pattern": 8}  # FuseOps leaves it alone
Indices = Sequence[Any]
Read = Callable[[Any, Any, Any, Any], list[Any]]  # (batch, head, row, column) → indices

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "relax.add": lambda a, b: a + b,
    "relax.subtract": lambda a, b: a - b,
    "relax.multiply": lambda a, b: a * b,
    "relax.divide": lambda a, b: a / b,
}


@dataclass(frozen=True)
class View:
    """A matrix per batch and head: where element (batch, head, row, column) lies in `source`."""

    source: Any
    shape: tuple[Any, ...]
    read: Read


@dataclass(frozen=True)
class Score:
    """One elementwise operator between the product and the softmax. `others`: its operands, the
    scores being None.
    """

    op: str
    others: tuple[Any, ...]


def fuse_attention(mod: Any, name: str = "main") -> Any:
    """`mod` whose function `name` calls a kernel `attention` for each softmax of a product that is
    multiplied again.
    """
    return rewrite(mod, _visit, name)


def _visit(writer: Writer, var: Any, value: Any) -> Any:
    if op_name(value) != "relax.matmul" or str(value.args[1].ty.dtype) != "float32":
        return None
    softmax = writer.definition(_unflattened(writer, value.args[0]), "relax.nn.softmax")
    if softmax is None or int(softmax.attrs.axis) not in (-1, softmax.args[0].ty.ndim - 1):
        return None
    found = _scores(writer, softmax.args[0])
    if found is None:
        return None
    product, chain = found
    queries, values = _view(writer, product.args[0]), _view(writer, value.args[1])
    keys = _view(writer, product.args[1], transposed=True)
    if queries is None or keys is None or values is None:
        return None
    batch, heads, rows, depth = queries.shape
    columns = keys.shape[2]
    if not isinstance(depth, int) or not isinstance(values.shape[3], int):
        return None
    if isinstance(rows, int) and rows < FEW_ROWS:
        return None
    if not same_shape(keys.shape, [batch, heads, columns, depth]) or not same_shape(
        values.shape[:3], [batch, heads, columns]
    ):
        return None
    sizes = (batch, heads, rows, columns)
    biases = [other for score in chain for other in score.others if isinstance(other, rx.Var)]
    if not all(_broadcasts(bias, sizes) for bias in biases):
        return None
    read = [queries.source, keys.source, values.source, *biases]
    if not all(isinstance(size, int) or _place(size, read) for size in sizes):
        return None

    def made_of(*tensors: Any) -> Any:
        """The kernel has symbols of its own: sizes are taken from its parameters."""

        def own(size: Any) -> Any:
            if isinstance(size, int):
                return size
            at, axis = _place(size, read) or (0, 0)
            return tensors[at].shape[axis]

        here = tuple(map(own, sizes))
        return _attention((queries, keys, values), tensors[:3], here, chain, tensors[3:])

    made = writer.call_te(made_of, *read, hint="attention", attrs=OPAQUE)
    y = writer.emit(rx.op.permute_dims(writer.emit(made), [0, 2, 1, 3]))
    return writer.emit(rx.op.reshape(y, shape_of(writer.typed(value))), var.name)


def _place(size: Any, tensors: Sequence[Any]) -> tuple[int, int] | None:
    """(tensor, axis) that has this symbolic size."""
    for at, tensor in enumerate(tensors):
        for axis, one in enumerate(shape_of(tensor)):
            if not isinstance(one, int) and same_shape([one], [size]):
                return at, axis
    return None


def _unflattened(writer: Writer, expr: Any) -> Any:
    """The value of four axes that a reshape made (batch * heads, …) of, else `expr`."""
    call = writer.definition(expr, "relax.reshape")
    if call is None or expr.ty.ndim != 3 or call.args[0].ty.ndim != 4:
        return expr
    batch, heads, *rest = shape_of(call.args[0])
    flat = same_shape(shape_of(expr), [batch * heads, *rest])
    return call.args[0] if flat else expr


def _scores(writer: Writer, expr: Any) -> tuple[Any, tuple[Score, ...]] | None:
    """The product that the scores come from and what is done to them, in order."""
    chain: list[Score] = []
    while (call := writer.definition(expr)) is not None:
        name = op_name(call)
        if name == "relax.matmul":
            return (call, tuple(reversed(chain))) if _is_float(call) else None
        if name == "relax.reshape":
            inner = call.args[0]
            if inner.ty.ndim != 3 or not same_shape(
                shape_of(inner), [shape_of(expr)[0] * shape_of(expr)[1], *shape_of(expr)[2:]]
            ):
                return None
            expr = inner
            continue
        operands = list(call.args)
        inside = [arg for arg in operands if _is_scores(writer, arg, expr)]
        supported = name in _BINARY or name in ("relax.tanh", "relax.where")
        if not supported or len(inside) != 1:
            return None
        others = tuple(None if arg is inside[0] else _constant(arg) for arg in operands)
        chain.append(Score(name, others))
        expr = inside[0]
    return None


def _is_float(call: Any) -> bool:
    return str(call.args[0].ty.dtype) == "float32" == str(call.args[1].ty.dtype)


def _is_scores(writer: Writer, arg: Any, result: Any) -> bool:
    """Whether an operand is the one that leads to the product: of the result's shape, computed by
    an operator of the chain.
    """
    if not isinstance(arg, rx.Var) or str(arg.ty.dtype) != "float32" or arg.ty.ndim < 3:
        return False
    call = writer.definition(arg)
    if call is None or not same_shape(shape_of(arg), shape_of(result)):
        return False
    return op_name(call) == "relax.matmul" or any(
        _is_scores(writer, inner, arg) or op_name(writer.definition(inner)) == "relax.matmul"
        for inner in call.args
        if isinstance(inner, rx.Var)
    )


def _constant(arg: Any) -> Any:
    number = scalar_value(arg) if not isinstance(arg, rx.Var) else None
    return arg if number is None else number


def _broadcasts(bias: Any, sizes: Sequence[Any]) -> bool:
    """Whether the axes of a bias are those of the scores, or have one element."""
    shape = shape_of(bias)
    tail = sizes[len(sizes) - len(shape) :]
    return len(shape) <= len(sizes) and all(
        size == 1 or same_shape([size], [whole]) for size, whole in zip(shape, tail, strict=True)
    )


def _view(writer: Writer, expr: Any, *, transposed: bool = False) -> View | None:
    """Matrices [batch, head, row, column], read from the tensor behind transposes and repeats."""
    inner = _unflattened(writer, expr)
    if (heads := _repeated(writer, inner)) is not None:  # a repeat that is flattened at once
        inner, shape, repeats = heads
        read: Read = lambda b, h, i, j: [b, h // repeats, i, j]  # noqa: E731
    elif inner.ty.ndim == 4:
        shape = shape_of(inner)
        read = lambda b, h, i, j: [b, h, i, j]  # noqa: E731
    elif inner.ty.ndim == 3:
        shape = [shape_of(inner)[0], 1, *shape_of(inner)[1:]]
        read = lambda b, _h, i, j: [b, i, j]  # noqa: E731
    else:
        return None
    if transposed:
        shape = [*shape[:2], shape[3], shape[2]]
        plain = read
        read = lambda b, h, i, j: plain(b, h, j, i)  # noqa: E731
    while (step := _behind(writer, inner)) is not None:
        inner, read = step[0], _composed(read, step[1])
    return View(inner, tuple(shape), read)


def _composed(read: Read, step: Callable[[Indices], list[Any]]) -> Read:
    return lambda b, h, i, j: step(read(b, h, i, j))


def _behind(writer: Writer, expr: Any) -> tuple[Any, Callable[[Indices], list[Any]]] | None:
    """The tensor that a transpose or a repeat of heads reads, and where."""
    if (call := writer.definition(expr, "relax.permute_dims")) is not None:
        axes = permutation(call)
        return call.args[0], lambda at: [at[axes.index(k)] for k in range(len(axes))]
    if (repeated := _repeated(writer, expr)) is not None:
        source, _, repeats = repeated
        return source, lambda at: [at[0], at[1] // repeats, *at[2:]]
    return None


def _repeated(writer: Writer, expr: Any) -> tuple[Any, list[Any], int] | None:
    """(source, shape with all heads, repeats) of a value that is its source's heads, each several
    times; batch and heads may be one axis.
    """
    flat = writer.definition(expr, "relax.reshape")
    wide = None if flat is None else writer.definition(flat.args[0], "relax.broadcast_to")
    one = None if wide is None else writer.definition(wide.args[0], "relax.expand_dims")
    if wide is None or one is None or [int(axis) for axis in one.attrs.axis] != [2]:
        return None
    source, repeats = one.args[0], wide.args[1].values[2]
    if source.ty.ndim != 4 or not isinstance(repeats, tirx.IntImm):
        return None
    batch, heads, *rest = shape_of(source)
    shape = [batch, heads * int(repeats), *rest]
    sizes = shape_of(expr)
    if same_shape(sizes, shape) or same_shape(sizes, [shape[0] * shape[1], *rest]):
        return source, shape, int(repeats)
    return None


def _attention(
    views: tuple[View, View, View],
    tensors: Sequence[Any],
    sizes: Sequence[Any],
    chain: Sequence[Score],
    biases: Sequence[Any],
) -> Any:
    """The tensor expression: output [batch, row, head, column], as projections read it."""
    (queries, keys, values), (q, k, v) = views, tensors
    batch, heads, rows, columns = sizes
    depth, width = queries.shape[3], values.shape[3]
    d = te.reduce_axis((0, depth), "d")
    scores = te.compute(
        sizes,
        lambda b, h, i, j: te.sum(q(*queries.read(b, h, i, d)) * k(*keys.read(b, h, j, d)), axis=d),
        name="scores",
    )
    if chain:
        plain = scores
        scores = te.compute(
            sizes, lambda *at: _changed(plain(*at), chain, biases, at), name="changed"
        )
    final = scores
    over = te.reduce_axis((0, columns), "j")
    top = te.compute(
        (batch, heads, rows), lambda b, h, i: te.max(final(b, h, i, over), axis=over), name="top"
    )
    powers = te.compute(
        sizes, lambda b, h, i, j: tirx.exp(final(b, h, i, j) - top(b, h, i)), name="powers"
    )
    again = te.reduce_axis((0, columns), "j")
    total = te.compute(
        (batch, heads, rows),
        lambda b, h, i: te.sum(powers(b, h, i, again), axis=again),
        name="total",
    )
    c = te.reduce_axis((0, columns), "j")
    mixed = te.compute(
        (batch, rows, heads, width),
        lambda b, i, h, e: te.sum(powers(b, h, i, c) * v(*values.read(b, h, c, e)), axis=c),
        name="mixed",
    )
    return te.compute(
        (batch, rows, heads, width),
        lambda b, i, h, e: mixed(b, i, h, e) / total(b, h, i),
        name="attention",
    )


def _changed(score: Any, chain: Sequence[Score], biases: Sequence[Any], at: Indices) -> Any:
    """A score after the chain."""
    left = iter(biases)
    for step in chain:
        operands = [
            score
            if other is None
            else _element(next(left), at)
            if isinstance(other, rx.Var)
            else tirx.const(other, "float32")
            for other in step.others
        ]
        if step.op == "relax.tanh":
            score = tirx.tanh(operands[0])
        elif step.op == "relax.where":
            score = tirx.Select(operands[0].astype("bool"), operands[1], operands[2])
        else:
            score = _BINARY[step.op](*operands)
    return score


def _element(bias: Any, at: Indices) -> Any:
    """The element of a bias that broadcasts to position `at`."""
    tail = at[len(at) - len(bias.shape) :]
    one = tirx.const(0, "int64")
    return bias(
        *(
            one if isinstance(size, tirx.IntImm) and int(size) == 1 else index
            for size, index in zip(bias.shape, tail, strict=True)
        )
    )
