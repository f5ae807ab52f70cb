"""Sizes as ONNX graphs compute them: sums of dims and of their quotients, with proofs by bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

Limits = Mapping[str, tuple[int, int]]  # dim → smallest and largest size


class Unknown(Exception):
    """A value that this evaluation does not know."""


class Symbolic:
    """A number with dims in it. What a kind of it does not define, nobody knows."""

    def _unknown(self, *_: Any) -> Any:
        raise Unknown

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _unknown
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _unknown


@dataclass(frozen=True)
class Quotient:
    """`size // divisor`, rounded down, where it does not come out even."""

    size: Size
    divisor: int

    def __str__(self) -> str:
        return f"(({self.size}) // {self.divisor})"


Atom = str | Quotient


@dataclass(frozen=True)
class Size(Symbolic):
    """A sum of terms (dim or quotient → factor) plus `const`. As text, an expression of Python."""

    terms: tuple[tuple[Atom, int], ...]
    const: int = 0

    def __str__(self) -> str:
        terms = [f"{factor} * {atom}" if factor != 1 else str(atom) for atom, factor in self.terms]
        return " + ".join([*terms, *([str(self.const)] if self.const else [])])

    def __add__(self, other: Any) -> Any:
        return linear([(self, 1), (other, 1)])

    def __sub__(self, other: Any) -> Any:
        return linear([(self, 1), (other, -1)])

    def __rsub__(self, other: Any) -> Any:
        return linear([(other, 1), (self, -1)])

    def __neg__(self) -> Any:
        return linear([(self, -1)])

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, float) and factor and not factor.is_integer():
            inverse = 1 / factor
            if abs(inverse - round(inverse)) > 1e-6 * inverse or round(inverse) < 2:
                raise Unknown
            return Ratio(self, round(inverse))
        if not isinstance(factor, int | float):
            raise Unknown
        return linear([(self, int(factor))])

    def __truediv__(self, divisor: Any) -> Any:
        whole = isinstance(divisor, int) or (isinstance(divisor, float) and divisor.is_integer())
        if not whole or divisor < 1:
            raise Unknown
        return self if divisor == 1 else Ratio(self, int(divisor))

    def __floordiv__(self, divisor: Any) -> Any:
        """Even parts leave the quotient: (4n + 6) // 4 is n + 6 // 4."""
        if isinstance(divisor, Size) and self.terms and divisor.terms:
            return _whole_ratio(self, divisor)
        if not isinstance(divisor, int) or divisor < 1:
            raise Unknown
        even = [(atom, factor // divisor) for atom, factor in self.terms if factor % divisor == 0]
        odd = tuple((atom, factor) for atom, factor in self.terms if factor % divisor)
        whole, rest = divmod(self.const, divisor)
        front = linear([(Size(tuple(even)), 1), (whole, 1)]) if even else whole
        if not odd:
            return front
        common = gcd(divisor, *(factor for _, factor in odd))  # (2n + 1) // 4 is n // 2
        inner = Size(tuple((atom, factor // common) for atom, factor in odd), rest // common)
        quotient = Size(((Quotient(inner, divisor // common), 1),))
        return linear([(front, 1), (quotient, 1)])

    def __mod__(self, divisor: Any) -> Any:
        return self - (self // divisor) * divisor

    __radd__ = __add__
    __rmul__ = __mul__

    def bounds(self, limits: Limits) -> tuple[int, int]:
        """Smallest and largest value over the dims' bounds."""
        low = high = self.const
        for atom, factor in self.terms:
            ends = [end * factor for end in _bounds(atom, limits)]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def largest(self, limits: Limits) -> int:
        return self.bounds(limits)[1]


@dataclass(frozen=True)
class Ratio(Symbolic):
    """A size over an integer, not rounded yet: what floats of a graph hold."""

    size: Size
    divisor: int

    def floor(self) -> Any:
        return self.size // self.divisor

    def ceil(self) -> Any:
        return (self.size + (self.divisor - 1)) // self.divisor

    def __mul__(self, factor: Any) -> Any:
        if factor == self.divisor:
            return self.size
        raise Unknown

    __rmul__ = __mul__


def linear(parts: Sequence[tuple[Any, int]]) -> Size | int:
    """The sum of sizes and integers, each times its factor."""
    const, terms = 0, dict[Atom, int]()
    for part, factor in parts:
        if isinstance(part, Size):
            const += factor * part.const
            for atom, own in part.terms:
                terms[atom] = terms.get(atom, 0) + factor * own
        elif (isinstance(part, float) and not part.is_integer()) or isinstance(part, Ratio):
            raise Unknown
        else:
            const += factor * int(part)
    left = [(atom, factor) for atom, factor in terms.items() if factor]
    left.sort(key=lambda term: str(term[0]))
    return Size(tuple(left), const) if left else const


def compared(left: Any, right: Any, limits: Limits) -> int | None:
    """-1, 0 or 1 where that is so at every size of the dims, else None."""
    difference = linear([(left, 1), (right, -1)])
    low, high = difference.bounds(limits) if isinstance(difference, Size) else (difference,) * 2
    if low == high == 0:
        return 0
    return 1 if low > 0 else -1 if high < 0 else None


def names(value: Any) -> set[str]:
    """The dims that a value is made of."""
    if isinstance(value, Size):
        return set().union(*(names(atom) for atom, _ in value.terms))
    if isinstance(value, Quotient):
        return names(value.size)
    return {value} if isinstance(value, str) else set()


def _bounds(atom: Atom, limits: Limits) -> tuple[int, int]:
    if isinstance(atom, str):
        return limits[atom]
    low, high = atom.size.bounds(limits)
    return low // atom.divisor, high // atom.divisor


def _whole_ratio(left: Size, right: Size) -> int:
    """How many times `right` is in `left`, when that is a whole number at any size."""
    factor, rest = divmod(left.terms[0][1], right.terms[0][1])
    if rest or linear([(left, 1), (right, -factor)]) != 0:
        raise Unknown
    return factor
