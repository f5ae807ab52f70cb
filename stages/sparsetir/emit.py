"""Position space (level 1) → loops of TensorIR (level 0): the vocabulary that schedules are
written in.

Every loop starts at 0: this wheel's CanonicalizeLoop moves the start of a loop into its body, but
not into the extents of the loops inside it, so `for p in range(indptr[j], indptr[j + 1])` inside a
shifted j would silently run over other blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from ..compat import tvm
from .language import Binary, Expr, Integer, Position, Read, Symbol
from .lower import Loop, Nest, PositionProgram

tirx = tvm.tirx
Tir = Any  # a tirx expression, or a Python int
Stmt = Any
Finish = Callable[[Tir, Tir, Tir], Tir]  # (product, row, column) → what is stored there
KINDS = {
    "serial": tirx.ForKind.SERIAL,
    "parallel": tirx.ForKind.PARALLEL,
    "vectorized": tirx.ForKind.VECTORIZED,
    "unrolled": tirx.ForKind.UNROLLED,
}


def loop(name: str, extent: Tir, body: Callable[[Tir], Stmt], kind: str = "serial") -> Stmt:
    """`for name in range(extent)`; a loop of one step is its body, one of none is nothing."""
    if isinstance(extent, int) and extent <= 1:
        return body(0) if extent == 1 else nothing()
    var = tirx.Var(name, "int32")
    return tirx.For(var, 0, extent, KINDS[kind], body(var))


def grid(extents: Mapping[str, tuple[Tir, str]], body: Callable[..., Stmt]) -> Stmt:
    """Nested loops; name → (extent, kind)."""

    def nested(rest: list[tuple[str, tuple[Tir, str]]], indices: tuple[Tir, ...]) -> Stmt:
        if not rest:
            return body(*indices)
        (name, (extent, kind)), *inner = rest
        return loop(name, extent, lambda var: nested(inner, (*indices, var)), kind)

    return nested(list(extents.items()), ())


def sequence(*parts: Stmt) -> Stmt:
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(list(parts))


def nothing() -> Stmt:
    return tirx.Evaluate(0)


def bind(name: str, value: Tir, body: Callable[[Tir], Stmt]) -> Stmt:
    """`body` with `value` computed once."""
    var = tirx.Var(name, "int32")
    return tirx.SeqStmt([tirx.Bind(var, value), body(var)])


def pairwise_sum(values: Sequence[Tir]) -> Tir:
    """The sum as a balanced tree."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [reduce(lambda a, b: a + b, pair) for pair in pairs]
    return values[0]


@dataclass
class Emitter:
    """Translates expressions of a position program into TensorIR, and collects the arrays that
    they read.

    sizes:    symbol → its TIR variable or number
    compact:  local arrays whose leading dimension a schedule computes one step at a time
    """

    program: PositionProgram
    sizes: Mapping[str, Tir]
    compact: frozenset[str] = frozenset()
    buffers: dict[str, Any] = field(default_factory=dict)

    def buffer(self, name: str) -> Any:
        """The TIR buffer of an array of the program."""
        if name not in self.buffers:
            array = next(array for array in self.program.arrays if array.name == name)
            sizes = array.shape[1:] if name in self.compact else array.shape
            shape = [self.sizes[size] if isinstance(size, str) else size for size in sizes]
            scope = "global" if array.scope == "param" else array.scope
            self.buffers[name] = tirx.decl_buffer(shape, array.dtype, name=name, scope=scope)
        return self.buffers[name]

    def size(self, name: str, axis: int) -> Tir:
        """A size of an array of the program."""
        size = next(array for array in self.program.arrays if array.name == name).shape[axis]
        return self.sizes[size] if isinstance(size, str) else size

    def array(self, name: str, shape: Sequence[Tir], dtype: str = "int32") -> Any:
        """An array that a schedule adds."""
        return self.buffers.setdefault(name, tirx.decl_buffer(shape, dtype, name=name))

    def indices(self, read: Read, at: Mapping[str, Tir]) -> list[Tir]:
        indices = [self.expr(index, at) for index in read.indices]
        return indices[1:] if read.buffer in self.compact else indices

    def expr(self, expr: Expr, at: Mapping[str, Tir]) -> Tir:
        """`expr` with the positions of iterated axes given by `at`."""
        match expr:
            case Integer(value):
                return value
            case Symbol(name):
                return self.sizes[name]
            case Position(axis):
                return at[axis]
            case Read(buffer):
                return tirx.BufferLoad(self.buffer(buffer), self.indices(expr, at))
            case Binary(op, a, b):
                return _apply(op, self.expr(a, at), self.expr(b, at))
        raise TypeError(f"{expr!r} is not in position space")


def _apply(op: str, a: Tir, b: Tir) -> Tir:
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "<":
            return a < b
        case "min":
            return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)
    raise ValueError(op)


def store(buffer: Any, value: Tir, *indices: Tir) -> Stmt:
    return tirx.BufferStore(buffer, value, list(indices))


def load(buffer: Any, *indices: Tir) -> Tir:
    return tirx.BufferLoad(buffer, list(indices))


def zero() -> Tir:
    return tirx.const(0.0, "float32")


def local(name: str, shape: Sequence[int]) -> Any:
    """A register tile (or, where it is large, a workspace) of the enclosing parallel chunk."""
    return tirx.decl_buffer(list(shape), "float32", name=name, scope="local")


def with_locals(buffers: Sequence[Any], body: Stmt) -> Stmt:
    return tirx.SeqStmt([*(tirx.AllocBuffer(buffer) for buffer in buffers), body])


def prim_func(params: Sequence[Any], body: Stmt, name: str) -> Any:
    """A finished kernel: scheduled, its arguments do not alias."""
    func = tirx.PrimFunc(list(params), body)
    return func.with_attrs({"global_symbol": name, "tirx.noalias": True, "tirx.is_scheduled": True})


def unscheduled(e: Emitter) -> Stmt:
    """The program's nests as they are, one after the other: what every schedule must agree with."""
    local = [array.name for array in e.program.arrays if array.scope == "local"]
    nests = [_plain_nest(e, nest) for nest in e.program.nests]
    return with_locals([e.buffer(name) for name in local], sequence(*nests))


def _plain_nest(e: Emitter, nest: Nest) -> Stmt:
    target = e.buffer(nest.target.buffer)
    reduces = "R" in nest.kinds

    def inner(loops: Sequence[Loop], at: Mapping[str, Tir]) -> Stmt:
        if loops:
            (one, *rest) = loops
            start, stop = e.expr(one.start, at), e.expr(one.stop, at)
            return loop(
                one.axis.lower(),
                stop - start,
                lambda var: inner(rest, {**at, one.axis: start + var}),
            )
        indices, value = e.indices(nest.target, at), e.expr(nest.value, at)
        body = store(target, load(target, *indices) + value if reduces else value, *indices)
        return body if nest.where is None else tirx.IfThenElse(e.expr(nest.where, at), body, None)

    body = inner(nest.loops, {})
    if not reduces:
        return body
    sizes = {f"z{axis}": (size, "serial") for axis, size in enumerate(target.shape)}
    return sequence(grid(sizes, lambda *indices: store(target, zero(), *indices)), body)
