"""Coordinate space (level 2) → position space (level 1): what is iterated becomes where it is
stored.

A variable axis shares one storage dimension with all its ancestors, and its positions are absolute
there; fixed axes keep their own dimension, so that dense tiles stay tiles. An access by the very
axes that are iterated is the position itself.

Source: SparseTIR §3.3.1, sparse iteration lowering; without its binary search, see `LoweringError`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from .language import (
    Axis,
    Binary,
    Coordinate,
    Expr,
    Integer,
    Iteration,
    Position,
    Program,
    Read,
    Size,
    lift,
    statement,
)


class LoweringError(ValueError):
    """An access that would need a search: a sparse axis read by something else than its own
    iteration."""


@dataclass(frozen=True)
class Loop:
    """`for position in [start, stop)`; `axis` names it."""

    axis: str
    start: Expr
    stop: Expr

    def __str__(self) -> str:
        return f"for {Position(self.axis)} in [{self.start}, {self.stop}):"


@dataclass(frozen=True)
class Nest:
    """Loops over positions around one assignment; `kinds` as in the iteration that it comes
    from."""

    name: str
    loops: tuple[Loop, ...]
    kinds: str
    target: Read
    value: Expr
    where: Expr | None = None

    def loop(self, axis: str) -> Loop:
        return next(loop for loop in self.loops if loop.axis == axis)

    def __str__(self) -> str:
        lines = [f"nest {self.name}"]
        for depth, (loop, kind) in enumerate(zip(self.loops, self.kinds, strict=True), 1):
            lines.append("  " * (depth + 1) + f"{loop}  # {kind}")
        lines.append(
            "  " * (len(self.loops) + 2)
            + statement(self.kinds, self.target, self.value, self.where)
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Storage:
    """A flat or tiled array; a symbolic size other than a symbol of the program counts stored
    positions (`nnz_KO`)."""

    name: str
    shape: tuple[Size, ...]
    dtype: str
    scope: str = "param"

    def __str__(self) -> str:
        mark = "" if self.scope == "param" else f"  # {self.scope}"
        return f"{self.name}[{', '.join(map(str, self.shape))}]: {self.dtype}{mark}"


@dataclass(frozen=True)
class PositionProgram:
    """A sparse program in position space."""

    name: str
    arrays: tuple[Storage, ...]
    nests: tuple[Nest, ...]

    def __str__(self) -> str:
        lines = [f"program {self.name}  # level 1: positions"]
        lines += [f"  {part}" for part in (*self.arrays, *self.nests)]
        return "\n".join(lines) + "\n"


def lower(program: Program) -> PositionProgram:
    """The program over positions.

    Raises: LoweringError for an access that would need a search.
    """
    arrays = [*_index_arrays(program)]
    for buffer in program.buffers:
        shape = _storage_shape(program, buffer.axes)
        arrays.append(Storage(buffer.name, shape, buffer.dtype, buffer.scope))
    nests = tuple(_lower_iteration(program, iteration) for iteration in program.iterations)
    return PositionProgram(program.name, tuple(arrays), nests)


def _index_arrays(program: Program) -> list[Storage]:
    arrays = []
    for axis in program.axes:
        if axis.indptr:
            segments = _storage_shape(program, _path(program, axis.parent))
            arrays.append(Storage(axis.indptr, (_one_more(segments),), "int32"))
        if axis.indices:
            arrays.append(
                Storage(axis.indices, _storage_shape(program, _path(program, axis.name)), "int32")
            )
    return arrays


def _one_more(shape: tuple[Size, ...]) -> Size:
    """Borders of as many segments as there are positions in `shape`."""
    if all(isinstance(size, int) for size in shape):
        return prod(size for size in shape if isinstance(size, int)) + 1
    return "*".join(map(str, shape)) + "+1"


def _path(program: Program, name: str) -> tuple[str, ...]:
    """The ancestors of an axis, the root first, and itself."""
    axis = program.axis(name)
    return (*_path(program, axis.parent), name) if axis.parent else (name,)


def _storage_shape(program: Program, names: tuple[str, ...]) -> tuple[Size, ...]:
    shape: list[Size] = []
    for name in names:
        axis = program.axis(name)
        if axis.is_variable:
            shape = [f"nnz_{name}"]  # one dimension for all its ancestors and itself
        else:
            shape.append(axis.width or axis.length)
    return tuple(shape)


def _lower_iteration(program: Program, iteration: Iteration) -> Nest:
    loops: list[Loop] = []
    for name in iteration.axes:
        axis = program.axis(name)
        if axis.is_variable:
            parent = _flat(program, axis.parent)
            loops.append(Loop(name, Read(axis.indptr, (parent,)), Read(axis.indptr, (parent + 1,))))
        else:
            loops.append(Loop(name, Integer(0), lift(axis.width or axis.length)))

    def positions(expr: Expr) -> Expr:
        match expr:
            case Coordinate(name):
                return _coordinate(program, program.axis(name))
            case Read(buffer, indices):
                return Read(buffer, _storage_indices(program, buffer, indices, positions))
            case Binary(op, a, b):
                return Binary(op, positions(a), positions(b))
        return expr

    target = positions(iteration.target)
    assert isinstance(target, Read)
    where = positions(iteration.where) if iteration.where is not None else None
    return Nest(
        iteration.name, tuple(loops), iteration.kinds, target, positions(iteration.value), where
    )


def _coordinate(program: Program, axis: Axis) -> Expr:
    """The coordinate at the position where `axis` is being iterated."""
    here = Position(axis.name)
    match axis.kind:
        case "dense_fixed":
            return here
        case "dense_variable":
            return here - Read(axis.indptr, (_flat(program, axis.parent),))
        case "sparse_variable":
            return Read(axis.indices, (here,))
        case "sparse_fixed":
            path = _path(program, axis.name)
            return Read(axis.indices, _merged(program, path))


def _merged(program: Program, path: tuple[str, ...]) -> tuple[Expr, ...]:
    """Positions of a path of iterated axes in its storage."""
    indices: list[Expr] = []
    for name in path:
        if program.axis(name).is_variable:
            indices = [Position(name)]
        else:
            indices.append(Position(name))
    return tuple(indices)


def _flat(program: Program, name: str) -> Expr:
    """An axis's position counted over all its ancestors: its child's `indptr` is read there."""
    axis = program.axis(name)
    if axis.is_variable or not axis.parent:
        return Position(name)
    width = lift(axis.width or axis.length)
    return Binary("+", Binary("*", _flat(program, axis.parent), width), Position(name))


def _storage_indices(
    program: Program,
    buffer: str,
    indices: tuple[Expr, ...],
    positions: Callable[[Expr], Expr],
) -> tuple[Expr, ...]:
    out: list[Expr] = []
    for name, index in zip(program.buffer(buffer).axes, indices, strict=True):
        axis = program.axis(name)
        if axis.kind == "dense_fixed":
            out.append(positions(index))
        elif index != Coordinate(name):
            raise LoweringError(
                f"{buffer}: {name} is {axis.kind} and read by {index}: needs a search"
            )
        elif axis.is_variable:
            out = [Position(name)]
        else:
            out.append(Position(name))
    return tuple(out)
