"""Small builders of loops: what a rule writes instead of transforming a loop nest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..compat import tvm
from .kernel import Axis, Expr, as_int, product

tirx = tvm.tirx
Body = Callable[[Any], Any]


def loop(
    name: str, extent: Any, body: Body, kind: Any = tirx.ForKind.SERIAL, dtype: str = "int64"
) -> Any:
    """A loop over 0 … extent-1; none for a single iteration, nothing for no iteration."""
    if as_int(extent) == 1:
        return body(tirx.const(0, dtype))
    if as_int(extent) == 0:
        return None
    var = tirx.Var(name, dtype)
    return tirx.For(var, tirx.const(0, dtype), constant(extent, dtype), kind, body(var))


def constant(value: Any, dtype: str) -> Any:
    """A size as an expression."""
    return tirx.const(value, dtype) if isinstance(value, int) else value.astype(dtype)


def when(condition: Any, statement: Any) -> Any:
    """`statement` under a condition, which may be known here: then it alone, or nothing."""
    if isinstance(condition, bool):
        return statement if condition else None
    return tirx.IfThenElse(condition, statement, None)


def branch(condition: Any, then: Any, otherwise: Any) -> Any:
    """`then` or `otherwise`, as two statements without an `else`: HoistIfThenElse would hoist a
    bare `if` inside either branch of an `else` over both of them, and so drop the other one.
    `then` must not change the condition.
    """
    return seq([when(condition, then), when(tirx.Not(condition), otherwise)])


def lanes(count: int, body: Body, dtype: str = "int64") -> Any:
    """A vectorised loop."""
    return loop("lane", count, body, tirx.ForKind.VECTORIZED, dtype)


def unrolled(count: int, body: Body, dtype: str = "int64") -> Any:
    """A loop that TVM unrolls, late: most of its passes see one iteration."""
    return loop("unrolled", count, body, tirx.ForKind.UNROLLED, dtype)


def nest(
    axes: Sequence[Axis], body: Callable[[list[Any]], Any], kind: Any = tirx.ForKind.SERIAL
) -> Any:
    """Loops over whole axes, outermost first."""

    def inner(done: list[Any]) -> Any:
        if len(done) == len(axes):
            return body(done)
        axis = axes[len(done)]
        return loop(
            axis.var.name, axis.extent, lambda var: inner([*done, var]), kind, dtype_of(axis)
        )

    return inner([])


def parallel(
    extents: Sequence[Any], body: Callable[[list[Any]], Any], dtype: str, serial: bool = False
) -> Any:
    """One parallel loop over the product of `extents`; `body` gets an index for each of them."""

    def split(fused: Any) -> Any:
        indices: list[Any] = []
        for extent in reversed(extents[1:]):
            if as_int(extent) == 1:
                indices.append(tirx.const(0, dtype))
                continue
            indices.append(fused % extent)
            fused = fused // extent
        return body([fused, *reversed(indices)])

    kind = tirx.ForKind.SERIAL if serial else tirx.ForKind.PARALLEL
    return loop("chunk", product(extents), split, kind, dtype)


def seq(statements: Iterable[Any]) -> Any:
    """Statements in order, nested sequences flattened: all that follow see an allocation. None is
    no statement.
    """
    flat: list[Any] = []
    for statement in statements:
        if statement is None:
            continue
        flat.extend(statement.seq if isinstance(statement, tirx.SeqStmt) else [statement])
    if not flat:
        return tirx.Evaluate(tirx.const(0, "int32"))
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def local(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """A buffer to be allocated by `tirx.AllocBuffer`: on the stack below 1 KiB (scope `local` never
    is), else a workspace.
    """
    return tirx.decl_buffer(shape, dtype, name)


def scheduled(func: Any, body: Any, buffers: Sequence[Any] = ()) -> Any:
    """`func` with `body` in place of its blocks; `buffers` live as long as the call."""
    block = tvm.s_tir.SBlock([], [], [], "root", body, alloc_buffers=list(buffers))
    return func.with_body(tvm.s_tir.SBlockRealize([], True, block))


def dtype_of(axis: Axis) -> str:
    return str(axis.var.ty.dtype)


def prefetch(buffer: Any, indices: Sequence[Expr], level: int = 1) -> Any:
    """A hint that the line of memory with an element is read soon, into the cache of that level; it
    may lie past the end.
    """
    element = tirx.address_of(tirx.BufferLoad(buffer, list(indices)))
    read, soon, data = (
        tirx.const(one, "int32") for one in (0, 4 - level, 1)
    )  # as LLVM numbers them
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", element, read, soon, data))


def store(buffer: Any, indices: Sequence[Expr], value: Expr) -> Any:
    return tirx.BufferStore(buffer, value, list(indices))
