"""Vectors whose elements lie near each other in another order: loads and one shuffle.

LLVM makes one scalar load for each lane of an index that is no ramp. Where the distances between
lanes are known here (the channels of a group, every second pixel), the neighbours are loaded as
they lie and put in order by an instruction. No element is read that no lane asks for but those
between two that are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..compat import tvm
from .kernel import GUARD, Expr, as_int, is_constant, is_load, key, same, substitute

tirx = tvm.tirx
_BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Max, tirx.Min)


class Shuffles:
    """Statements over a lane as statements of vectors."""

    def __init__(self, count: int, dtype: str) -> None:
        self.lane, self.count = tirx.Var("lane", dtype), count
        self.analyzer = tvm.sym.Analyzer()
        self._known: dict[Any, tuple[Expr, list[int]] | None] = {}
        self._made = 0

    def store(self, statement: Any) -> Any | None:
        """A store for every `lane` as one of vectors, when a load in it needs a shuffle, all loads
        are of neighbours, and what is made of them are sums, products, maxima and minima.
        """
        if not isinstance(statement, tirx.BufferStore):
            return None
        self._made = 0
        value, place = self._of(statement.value), self._places(statement.indices)
        if value is None or not self._made or place is None or place[1] != [*range(self.count)]:
            return None
        at = tirx.Ramp(place[0], tirx.const(1, place[0].ty.dtype), self.count)
        return tirx.BufferStore(statement.buffer, value, [*statement.indices[:-1], at])

    def _reads(self, value: Expr) -> bool:
        found: list[Any] = []
        tvm_ffi.structural_walk(value, (tirx.Var, found.append))
        return any(same(var, self.lane) for var in found)

    def _places(self, indices: Sequence[Expr]) -> tuple[Expr, list[int]] | None:
        """The index of the first neighbour, and how far from it each lane's element lies."""
        if any(self._reads(index) for index in indices[:-1]):
            return None
        name = tvm_ffi.StructuralKey(indices[-1])
        if name not in self._known:
            self._known[name] = self._along(indices[-1])
        return self._known[name]

    def _along(self, index: Expr) -> tuple[Expr, list[int]] | None:
        simplify, dtype = self.analyzer.simplify, self.lane.ty.dtype
        places = [
            simplify(substitute(index, {key(self.lane): tirx.const(lane, dtype)}))
            for lane in range(self.count)
        ]
        steps = [as_int(simplify(place - places[0])) for place in places]
        if not all(isinstance(step, int) for step in steps):
            return None
        least = min(steps)
        return places[steps.index(least)], [step - least for step in steps]

    def _of(self, value: Expr) -> Expr | None:
        if not self._reads(value):
            return tirx.Broadcast(value, self.count)
        if isinstance(value, _BINARY):
            sides = self._of(value.a), self._of(value.b)
            return None if None in sides else type(value)(*sides)
        if is_load(value):
            return self._load(value)
        if isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == GUARD:
            test, *sides = value.args
            made = [self._of(side) for side in sides]
            return None if self._reads(test) or None in made else tirx.if_then_else(test, *made)
        return None

    def _load(self, load: Any) -> Expr | None:
        found = self._places(load.indices)
        if found is None or max(found[1]) >= 2 * self.count:
            return None
        begin, places = found
        span = max(places) + 1

        def vector(offset: int, size: int) -> Expr:
            start = begin + offset
            index = tirx.Ramp(start, tirx.const(1, start.ty.dtype), size) if size > 1 else start
            return tirx.BufferLoad(load.source, [*load.indices[:-1], index])

        if span == 1:
            return tirx.Broadcast(vector(0, 1), self.count)
        if places == [*range(self.count)]:
            return vector(0, self.count)
        self._made += 1
        first = as_int(begin)
        if isinstance(first, int) and is_constant(load.source.ty.shape[-1], self.count):
            begin, span = tirx.const(0, begin.ty.dtype), self.count  # as neighbours load it too
            places = [first + place for place in places]
        if span <= self.count:  # a shuffle makes no vector longer
            return tirx.Shuffle([vector(0, span)] * -(-self.count // span), places)
        overlap = 2 * self.count - span  # the second vector ends with the last element
        places = [place if place < self.count else place + overlap for place in places]
        return tirx.Shuffle([vector(0, self.count), vector(span - self.count, self.count)], places)
