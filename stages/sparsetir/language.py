"""The sparse language: axes, sparse buffers and sparse iterations in coordinate space (level 2).

The syntax tree is the program: it is made of frozen dataclasses, so programs print, compare and
hash. `Builder` writes one from Python. Nothing here knows TVM.

Source: SparseTIR (Ye et al., 2023), §3.1: axes that are dense or sparse, of fixed or variable
        length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Size = int | str  # a number, or a symbol of the kernel ("m")
Kind = Literal["dense_fixed", "dense_variable", "sparse_fixed", "sparse_variable"]


@dataclass(frozen=True)
class Axis:
    """One dimension of an iteration space.

    length:   upper bound of its coordinates
    parent:   the axis whose position selects its segment (every kind but dense_fixed)
    indptr:   buffer with the segments' borders (variable axes)
    indices:  buffer with the coordinates of its positions (sparse axes)
    width:    positions per segment (sparse_fixed)
    """

    name: str
    length: Size
    parent: str = ""
    indptr: str = ""
    indices: str = ""
    width: int = 0

    @property
    def kind(self) -> Kind:
        if self.indices:
            return "sparse_variable" if self.indptr else "sparse_fixed"
        return "dense_variable" if self.indptr else "dense_fixed"

    @property
    def is_variable(self) -> bool:
        return bool(self.indptr)

    def __str__(self) -> str:
        facts = [self.parent, str(self.length), self.indptr, self.indices, str(self.width or "")]
        return f"{self.name} = {self.kind}({', '.join(fact for fact in facts if fact)})"


class Expr:
    """A scalar. Integers stand for themselves in operators: `ko * 16 + ki`."""

    def __add__(self, other: Expr | int) -> Expr:
        return Binary("+", self, lift(other))

    def __sub__(self, other: Expr | int) -> Expr:
        return Binary("-", self, lift(other))

    def __mul__(self, other: Expr | int) -> Expr:
        return Binary("*", self, lift(other))

    def __lt__(self, other: Expr | int) -> Expr:
        return Binary("<", self, lift(other))

    def minimum(self, other: Expr | int) -> Expr:
        return Binary("min", self, lift(other))


@dataclass(frozen=True)
class Integer(Expr):
    """An integer."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Symbol(Expr):
    """A size that is known when the kernel runs."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Coordinate(Expr):
    """The coordinate of an iterated axis (level 2)."""

    axis: str

    def __str__(self) -> str:
        return self.axis.lower()


@dataclass(frozen=True)
class Position(Expr):
    """The position of an iterated axis in its storage (level 1)."""

    axis: str

    def __str__(self) -> str:
        return f"{self.axis.lower()}.p"


@dataclass(frozen=True)
class Read(Expr):
    """An element of a buffer: by coordinates (level 2) or by positions (level 1)."""

    buffer: str
    indices: tuple[Expr, ...]

    def __str__(self) -> str:
        return f"{self.buffer}[{', '.join(map(str, self.indices))}]"


@dataclass(frozen=True)
class Binary(Expr):
    """`a op b`."""

    op: Literal["+", "-", "*", "<", "min"]
    a: Expr
    b: Expr

    def __str__(self) -> str:
        if self.op == "min":
            return f"min({self.a}, {self.b})"
        weak = ("+", "-", "<")
        left, right = (
            f"({one})"
            if self.op == "*" and isinstance(one, Binary) and one.op in weak
            else str(one)
            for one in (self.a, self.b)
        )
        return f"{left} {self.op} {right}"


def lift(value: Expr | Size) -> Expr:
    """An expression for a number or a symbol."""
    match value:
        case Expr():
            return value
        case int():
            return Integer(value)
        case str():
            return Symbol(value)


@dataclass(frozen=True)
class SparseBuffer:
    """A tensor over axes; `scope` is "local" for what lives inside a kernel."""

    name: str
    axes: tuple[str, ...]
    dtype: str = "float32"
    scope: Literal["param", "local"] = "param"

    def __str__(self) -> str:
        mark = "" if self.scope == "param" else f"  # {self.scope}"
        return f"{self.name}[{', '.join(self.axes)}]: {self.dtype}{mark}"


@dataclass(frozen=True)
class Iteration:
    """`target += value` (or `=`, without a reduction) over the coordinates of `axes`, where
    `where` holds.

    kinds: one letter per axis, S (spatial) or R (reduction); a reduction starts from 0.
    """

    name: str
    axes: tuple[str, ...]
    kinds: str
    target: Read
    value: Expr
    where: Expr | None = None

    def __str__(self) -> str:
        names = ", ".join(f"{axis.lower()} in {axis}" for axis in self.axes)
        body = statement(self.kinds, self.target, self.value, self.where)
        return f'iterate {self.name}({names}) "{self.kinds}":\n    {body}'


@dataclass(frozen=True)
class Program:
    """A sparse program in coordinate space."""

    name: str
    axes: tuple[Axis, ...]
    buffers: tuple[SparseBuffer, ...]
    iterations: tuple[Iteration, ...]

    def axis(self, name: str) -> Axis:
        return next(axis for axis in self.axes if axis.name == name)

    def buffer(self, name: str) -> SparseBuffer:
        return next(buffer for buffer in self.buffers if buffer.name == name)

    @property
    def digest(self) -> str:
        """sha256 of the printed program: equal programs have equal digests in every process."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    def __str__(self) -> str:
        lines = [f"program {self.name}  # level 2: coordinates"]
        lines += [f"  {part}" for part in (*self.axes, *self.buffers, *self.iterations)]
        return "\n".join(lines) + "\n"


class Builder:
    """Writes a `Program`: declare axes and buffers, then iterate with a function of the
    coordinates."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._axes: list[Axis] = []
        self._buffers: list[SparseBuffer] = []
        self._iterations: list[Iteration] = []

    def axis(
        self,
        name: str,
        length: Size,
        parent: str = "",
        *,
        indptr: str = "",
        indices: str = "",
        width: int = 0,
    ) -> str:
        axis = Axis(name, length, parent, indptr, indices, width)
        known = {one.name for one in self._axes}
        if (
            name in known
            or (parent and parent not in known)
            or bool(parent) != (axis.kind != "dense_fixed")
        ):
            raise ValueError(f"axis {axis}: duplicate, or parent missing or unknown")
        self._axes.append(axis)
        return name

    def buffer(self, name: str, *axes: str, scope: Literal["param", "local"] = "param") -> str:
        self._buffers.append(SparseBuffer(name, axes, scope=scope))
        return name

    def iterate(
        self,
        name: str,
        axes: tuple[str, ...],
        kinds: str,
        body: Callable[..., tuple[Read, Expr]],
        where: Callable[..., Expr] | None = None,
    ) -> None:
        if len(axes) != len(kinds) or set(kinds) - {"S", "R"}:
            raise ValueError(f"iteration {name}: {kinds!r} does not fit {len(axes)} axes")
        seen: set[str] = set()
        for axis in axes:
            parent = next(one.parent for one in self._axes if one.name == axis)
            if parent and parent not in seen:
                raise ValueError(f"iteration {name}: {axis} comes before its parent {parent}")
            seen.add(axis)
        coordinates = [Coordinate(axis) for axis in axes]
        target, value = body(*coordinates)
        condition = where(*coordinates) if where else None
        self._iterations.append(Iteration(name, axes, kinds, target, value, condition))

    def build(self) -> Program:
        return Program(self._name, tuple(self._axes), tuple(self._buffers), tuple(self._iterations))


def statement(kinds: str, target: Read, value: Expr, where: Expr | None) -> str:
    """The assignment of an iteration, as text."""
    text = f"{target} {'+=' if 'R' in kinds else '='} {value}"
    return text if where is None else f"{text} where {where}"
