"""Pools of plain tensors (NCW, NCHW, NCDHW): lanes run over the last axis.

Lines of the window are joined first, as they lie, in a line of their own that padding surrounds;
then neighbours in that line, which strides read by shuffles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product as cross
from math import prod
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ..borders import Borders, interior
from ..intrinsics import vectorizable
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    as_int,
    depends_on,
    element_dtype,
    equal,
    key,
    loads,
    product,
    same,
    substitute,
)
from ..loops import constant, dtype_of, lanes, local, loop, parallel, scheduled, seq, store, when
from ..nests import PARALLEL_ELEMENTS, float_lanes
from ..shuffles import Shuffles
from ..tiling import SYMBOLIC, static_size

tirx = tvm.tirx

MOST_TAPS = 64  # of a window: its loops are unrolled


def is_plain(kernel: Kernel) -> bool:
    """Whether the one reduction slides along the last axis of what it reads."""
    (anchor,) = kernel.reductions
    if not anchor.axes:
        return False
    return any(
        any(depends_on(load.indices[-1], axis) for axis in anchor.reduce)
        and depends_on(load.indices[-1], anchor.axes[-1])
        for load in loads(anchor.value)
        if load.indices and not same(load.source, anchor.buffer)
    )


def plain_pool(kernel: Kernel, target: Target) -> Any:
    """The scheduled PrimFunc of maxima, minima or sums over a sliding window.

    Raises: Unfit for anything else, and where the last axis is symbolic.
    """
    return scheduled(kernel.func, _Lines(kernel, target).body())


class _Lines:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        (anchor,) = kernel.reductions
        found = [load for load in loads(anchor.value) if not same(load.source, anchor.buffer)]
        if len(found) != 1 or not anchor.axes or not anchor.is_identity:
            raise Unfit("no pool")
        (self.load,) = found
        self.kernel, self.anchor, self.target = kernel, anchor, target
        *self.outer, self.column = anchor.axes
        self.dtype = dtype_of(self.column)
        self._window()
        self.padded = self._padded()
        self.width = static_size(self.column)
        self.size = (self.width - 1) * self.stride + (static_size(self.tap) - 1) * self.step + 1
        self.lanes = float_lanes(target)
        while self.lanes > self.width:
            self.lanes //= 2
        if self.lanes < 2:
            raise Unfit("a line of one")
        self.line = local("line", (self.size,), element_dtype(anchor.buffer))

    def _window(self) -> None:
        """The tap along the line and those across, strides, and that nothing else is read."""
        *before, last = self.load.indices
        along = [axis for axis in self.anchor.reduce if depends_on(last, axis)]
        if len(along) != 1 or any(depends_on(i, a) for i in before for a in (self.column, *along)):
            raise Unfit("the window does not slide along the last axis")
        (self.tap,) = along
        self.across = [axis for axis in self.anchor.reduce if axis is not self.tap]
        zero = {key(a.var): tirx.const(0, self.dtype) for a in (self.column, self.tap)}
        simplify = tvm.sym.Analyzer().simplify

        def slope(axis: Axis) -> Any:
            one = substitute(last, {**zero, key(axis.var): tirx.const(1, self.dtype)})
            return as_int(simplify(one - substitute(last, zero)))

        self.stride, self.step = slope(self.column), slope(self.tap)
        if not (isinstance(self.stride, int) and isinstance(self.step, int)):
            raise Unfit("no linear window")
        line = self.column.var * self.stride + self.tap.var * self.step
        if not equal(last, line) or self.stride < 1 or self.step < 1:
            raise Unfit("no linear window")
        if prod(static_size(axis) for axis in self.anchor.reduce) > MOST_TAPS:
            raise Unfit("a large window")

    def _padded(self) -> Borders | None:
        """The padding in front of the pool, which must be what the reduction starts with."""
        producer = self.kernel.producers.get(key(self.load.source))
        found = interior(producer) if producer is not None else None
        if found is None:
            return None
        borders, padding = found
        if not tvm_ffi.structural_equal(padding, self.anchor.init):
            raise Unfit("padding that counts")
        return borders

    def body(self) -> Any:
        count = product([axis.extent for axis in self.outer])
        work = prod(axis.static or SYMBOLIC for axis in (*self.outer, *self.anchor.reduce))
        serial = work * self.width < PARALLEL_ELEMENTS
        chunks = 1 if serial else 4 * self.target.cores
        if isinstance(count, int):
            chunks = min(chunks, count)

        def chunk(indices: list[Expr]) -> Any:
            first, last = indices[0] * count // chunks, (indices[0] + 1) * count // chunks
            each = loop(
                "row",
                last - first,
                lambda r: self._row(self._position(first + r)),
                dtype=self.dtype,
            )
            return seq([tirx.AllocBuffer(self.line), each])

        return parallel([chunks], chunk, self.dtype, serial)

    def _position(self, flat: Expr) -> dict[int, Expr]:
        result: dict[int, Expr] = {}
        for axis in reversed(self.outer):
            result[key(axis.var)] = flat % axis.extent if axis is not self.outer[0] else flat
            flat = flat // axis.extent
        return result

    def _row(self, at: dict[int, Expr]) -> Any:
        init = vectorizable(self.anchor.init)
        start = self._pieces(0, self.size, lambda x: store(self.line, [x], init))
        return seq([*start, *self._joined(at), *self._slid(at)])

    def _joined(self, at: dict[int, Expr]) -> list[Any]:
        """Lines of the window, added to the line."""
        statements: list[Any] = []
        first, last = 0, self.size
        if self.padded is not None:
            end = self.padded.producer.axes[-1]
            first, last = self.padded.inside.get(key(end.var), (0, end.extent))
            if not (isinstance(first, int) and isinstance(last, int)):
                raise Unfit("symbolic padding")
        last = min(last, self.size)
        for taps in cross(*(range(static_size(axis)) for axis in self.across)):
            env = dict(at)
            for axis, tap in zip(self.across, taps, strict=True):
                env[key(axis.var)] = tirx.const(tap, dtype_of(axis))
            before = [substitute(index, env) for index in self.load.indices[:-1]]

            def one(x: Expr, before: list[Expr] = before) -> Any:
                held = {} if self.padded is None else {key(self.load.source): self._inside}
                load = tirx.BufferLoad(self.load.source, [*before, x])
                value = self.kernel.inline(load, held)
                return store(self.line, [x], self._merged(tirx.BufferLoad(self.line, [x]), value))

            inner = seq(self._pieces(first, last, one))
            statements.append(when(self._test(before), inner))
        return statements

    def _inside(self, *indices: Expr) -> Expr:
        assert self.padded is not None
        return self.padded.read(self.kernel, {}, indices)

    def _test(self, before: Sequence[Expr]) -> Any:
        """Whether a line is no padding."""
        if self.padded is None:
            return True
        tests: list[Any] = []
        for axis, index in zip(self.padded.producer.axes, before, strict=False):
            first, last = self.padded.inside.get(key(axis.var), (0, axis.extent))
            if not equal(first, 0):
                tests.append(index >= first)
            if not equal(last, axis.extent):
                tests.append(index < last)
        return tirx.all(*tests) if tests else True

    def _slid(self, at: dict[int, Expr]) -> list[Any]:
        """Neighbours in the line, joined for each output; the last vector overlaps another."""
        acc = local("acc", (self.lanes,), element_dtype(self.anchor.buffer))
        shuffles = Shuffles(self.lanes, self.dtype)

        def vector(number: Expr) -> Any:
            begin = number * self.lanes
            if self.width % self.lanes:
                begin = tirx.min(begin, constant(self.width - self.lanes, self.dtype))

            def tap(k: int) -> Any:
                def one(x: Expr) -> Any:
                    here = (begin + x) * self.stride + k * self.step
                    value = tirx.BufferLoad(self.line, [here])
                    if k:
                        value = self._merged(tirx.BufferLoad(acc, [x]), value)
                    return store(acc, [x], value)

                whole = shuffles.store(one(shuffles.lane))
                return whole if whole is not None else lanes(self.lanes, one, self.dtype)

            return seq(
                [
                    tirx.AllocBuffer(acc),
                    *(tap(k) for k in range(static_size(self.tap))),
                    *(self._output(step, at, begin, acc) for step in self.kernel.outputs),
                ]
            )

        vectors = -(-self.width // self.lanes)
        return [loop("vector", vectors, vector, dtype=self.dtype)]

    def _output(self, step: Step, at: dict[int, Expr], begin: Expr, acc: Any) -> Any:
        if len(step.axes) != len(self.anchor.axes) or not step.is_identity:
            raise Unfit("the output does not follow the pool")
        analyzer = tvm.sym.Analyzer()

        def one(x: Expr) -> Any:
            place = [*(at[key(axis.var)] for axis in self.outer), begin + x]
            element = tirx.BufferLoad(acc, [x])

            def own(*indices: Expr) -> Expr:
                if not all(map(analyzer.can_prove_equal, indices, place)):
                    raise Unfit("the output reads other elements of the pool")
                return element

            if step is self.anchor:
                return store(step.buffer, place, element)
            env = dict(zip((key(axis.var) for axis in step.axes), place, strict=True))
            value = self.kernel.value(step, env, {key(self.anchor.buffer): own})
            return store(step.buffer, place, vectorizable(value))

        return lanes(self.lanes, one, self.dtype)

    def _merged(self, a: Expr, b: Expr) -> Expr:
        if self.anchor.element is not None:
            return a + b
        for kind, merged in ((tirx.Max, tirx.max), (tirx.Min, tirx.min)):
            if isinstance(self.anchor.value, kind):
                return merged(a, b)
        raise Unfit("no sum, maximum or minimum")

    def _pieces(self, first: int, last: int, body: Callable[[Expr], Any]) -> list[Any]:
        """`body` for all places from `first` to `last` in vectors, ever shorter ones at the end."""
        width = float_lanes(self.target)
        full = (last - first) // width
        many = loop(
            "vector",
            full,
            lambda v: lanes(width, lambda x: body(v * width + x + first), self.dtype),
            dtype=self.dtype,
        )
        statements = [many]
        first += full * width
        while first < last:
            while width > last - first:
                width //= 2
            start = tirx.const(first, self.dtype)
            statements.append(lanes(width, lambda x, start=start: body(start + x), self.dtype))
            first += width
        return statements
