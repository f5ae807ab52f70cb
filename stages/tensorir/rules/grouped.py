"""Products with a weight that is stored as integers in groups.

One row at a time the terms are x * (a * b + c), where b and c are a group's: b multiplies the
group's inner sum of x * a once, and c the sum of its x, which all columns share. So an integer
costs its conversion and one multiply-add.

With more rows a panel is decoded once, into scratch, for all the tiles of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from tapml.stage import Target

from ...compat import tvm
from ..emitter import Emitter, emit, points
from ..intrinsics import vectorizable
from ..kernel import Axis, Expr, depends_on, is_load, key, substitute
from ..loops import local, loop, nest, seq, store
from ..tiling import Plan, Problem, Revise, factors, static_size

tirx = tvm.tirx
CHAINS = 8  # multiply-adds under way at once: two vector units, a latency of four
PANELS = 4  # read side by side, at most: each is a stream or more from memory
TERMS = 16  # of a half of a group, at most, that are added up in one statement
SCRATCH_BYTES = 1 << 19  # decoded panels of a task: they stay in the second-level cache


@dataclass(frozen=True)
class Factored:
    """The parts of x * weight, which is a * b + c; c is None where there is none.

    outer, inner: the reduction's axes that b and c depend on, and the others
    """

    x: Expr
    weight: Expr
    a: Expr
    b: Expr
    c: Expr | None
    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]

    @property
    def branches(self) -> list[dict[int, Expr]]:
        """Places on the inner axes but the last, which is looped over."""
        axes = self.inner[:-1]
        return [_environment(axes, point) for point in points(axes)]


def factored(problem: Problem) -> Factored | None:
    """The parts of a product with a weight that the kernel decodes, where they come apart."""
    kernel, anchor = problem.kernel, problem.anchor
    pair = factors(anchor)
    if pair is None or len(anchor.reduce) < 2:
        return None
    weight, x = pair if depends_on(pair[0], problem.lane) else reversed(pair)
    if not is_load(weight) or key(weight.source) not in kernel.producers:
        return None
    value, c = kernel.inline(weight, {}), None
    if isinstance(value, tirx.Add):
        value, c = value.a, value.b
    if not isinstance(value, tirx.Mul):
        return None
    a, b = value.a, value.b
    inner = tuple(r for r in anchor.reduce if not depends_on(b, r))
    outer = anchor.reduce[: len(anchor.reduce) - len(inner)]
    if not inner or anchor.reduce[len(outer) :] != inner:
        return None
    if c is not None and any(depends_on(c, axis) for axis in inner):
        return None
    return Factored(x, weight, a, b, c, outer, inner)


def decoded(problem: Problem, parts: Factored, plan: Plan, target: Target, revise: Revise) -> Any:
    """The scheduled product; `plan`: how the product of floats would be cut."""
    rows = problem.row.static if problem.row is not None else None
    if rows == 1:
        blocks = problem.col.static if problem.col is not None else None
        registers = max(1, problem.lane_count * 32 // target.vector_bits)  # of a vector of lanes
        chains = min(CHAINS, target.vector_registers // 2 // registers)
        cols = max(1, min(PANELS, blocks or 1, chains // len(parts.branches)))
        plan = replace(plan, cols=cols, partials=1, stage=False)
        return emit(
            problem, revise(problem, plan), target, emitter=partial(_Grouped, parts, chains)
        )
    plan = replace(plan, stage=False)
    panel = 4 * prod(map(static_size, problem.anchor.reduce)) * problem.lane_count
    widest = SCRATCH_BYTES // panel
    if widest == 0 or (rows is not None and rows <= plan.rows):  # or each is read by one tile
        return emit(problem, revise(problem, plan), target)
    plan = replace(plan, cols=min(plan.cols, widest))
    return emit(problem, revise(problem, plan), target, emitter=partial(_Decoded, parts))


class _Decoded(Emitter):
    """Tiles over panels that are decoded once for all rows of a task."""

    def __init__(self, parts: Factored, *args: Any) -> None:
        super().__init__(*args)
        self.parts = parts

    def _positions(
        self,
        at: Mapping[int, Expr],
        run: Axis | None,
        start: Expr,
        count: Any,
        col: Expr,
        width: int,
    ) -> Any:
        source, axes = self.parts.weight.source, self.problem.anchor.reduce
        sizes = [static_size(axis) for axis in axes]
        panels = local("panels", (width, *sizes, self.problem.lane_count), "float32")
        step = self.problem.kernel.producers[key(source)]

        def fill(position: list[Expr]) -> Any:
            panel, *depth = position

            def one(lane: Expr) -> Any:
                place = dict(zip(map(_var, step.axes), [col + panel, *depth, lane], strict=True))
                value = vectorizable(self.problem.kernel.value(step, place, self.held))
                return store(panels, [*position, lane], value)

            return self._lanes(one)

        panel = Axis(tirx.Var("panel", self.problem.dtype), width)
        filled = nest((panel, *axes), fill)
        self.held[key(source)] = lambda j, *rest: tirx.BufferLoad(panels, [j - col, *rest])
        body = super()._positions(at, run, start, count, col, width)
        del self.held[key(source)]
        return seq([tirx.AllocBuffer(panels), filled, body])


class _Grouped(Emitter):
    """Tiles of one row: for each group an inner sum of its own, then one multiply-add into the
    row's."""

    def __init__(self, parts: Factored, chains: int, *args: Any) -> None:
        super().__init__(*args)
        self.parts, self.chains = parts, chains
        self.sums = local("sums", [static_size(axis) for axis in parts.outer], "float32")

    def body(self) -> Any:
        if self.parts.c is None:
            return super().body()
        return seq([tirx.AllocBuffer(self.sums), self._sums(), super().body()])

    def _sums(self) -> Any:
        """The sum of x over each group."""
        parts, last = self.parts, self.parts.inner[-1]
        zero = tirx.const(0, self.problem.dtype)
        row = {key(axis.var): zero for axis in self.problem.anchor.axes}
        width = _divisor(static_size(last), TERMS)

        def group(at: list[Expr]) -> Any:
            outer = _environment(parts.outer, at)

            def add(k: Expr) -> Any:
                terms = [
                    self._value(parts.x, {**row, **outer, **one, key(last.var): k * width + i})
                    for one in parts.branches
                    for i in range(width)
                ]
                return store(self.sums, at, tirx.BufferLoad(self.sums, at) + _tree(terms))

            clear = store(self.sums, at, tirx.const(0, "float32"))
            return seq([clear, loop("part", static_size(last) // width, add, dtype=zero.ty.dtype)])

        return nest(self.parts.outer, group)

    def _value(self, value: Expr, at: Mapping[int, Expr]) -> Expr:
        return vectorizable(self.problem.kernel.inline(substitute(value, at), self.held))

    def _tile(
        self,
        at: Mapping[int, Expr],
        row: Expr,
        rows: int,
        col: Expr,
        cols: int,
        number: Expr | None = None,
    ) -> Any:
        problem, parts = self.problem, self.parts
        last, branches = parts.inner[-1], parts.branches
        steps = _divisor(static_size(last), max(1, self.chains // (cols * len(branches))))
        shape = (problem.lane_count,)
        accs = [local("acc", (1, *shape), "float32") for _ in range(cols)]
        inner = [
            [local("inner", shape, "float32") for _ in range(steps * len(branches))]
            for _ in range(cols)
        ]
        zero, first = tirx.const(0, "float32"), tirx.const(0, problem.dtype)

        where = self._places(at, row, col)

        def clear(buffer: Any, *row: Expr) -> Any:
            return self._lanes(lambda lane: store(buffer, [*row, lane], zero))

        def group(position: list[Expr]) -> Any:
            outer = _environment(parts.outer, position)

            def step(k: Expr) -> Any:
                return seq(
                    add(c, s * len(branches) + h, {**outer, **branch, key(last.var): k * steps + s})
                    for s in range(steps)
                    for h, branch in enumerate(branches)
                    for c in range(cols)
                )

            def add(c: int, chain: int, taps: Mapping[int, Expr]) -> Any:
                def one(lane: Expr) -> Any:
                    place = {**where(first, c, lane), **taps}
                    old = tirx.BufferLoad(inner[c][chain], [lane])
                    product = self._value(parts.x, place) * self._value(parts.a, place)
                    return store(inner[c][chain], [lane], old + product)

                return self._lanes(one)

            def close(c: int) -> Any:
                def one(lane: Expr) -> Any:
                    place = {**where(first, c, lane), **outer}
                    total = _tree([tirx.BufferLoad(chain, [lane]) for chain in inner[c]])
                    old = tirx.BufferLoad(accs[c], [first, lane])
                    value = old + total * self._value(parts.b, place)
                    if parts.c is not None:
                        sums = tirx.BufferLoad(self.sums, position)
                        value = value + sums * self._value(parts.c, place)
                    return store(accs[c], [first, lane], value)

                return self._lanes(one)

            return seq(
                [
                    *(clear(chain) for chains in inner for chain in chains),
                    loop(last.var.name, static_size(last) // steps, step, dtype=problem.dtype),
                    *(close(c) for c in range(cols)),
                ]
            )

        return seq(
            [
                *(tirx.AllocBuffer(one) for one in (*accs, *(i for c in inner for i in c))),
                *(clear(acc, first) for acc in accs),
                nest(parts.outer, group),
                *(
                    self._output(sink, accs[c], first, where, c, col + c)
                    for c in range(cols)
                    for sink in self.sinks
                ),
            ]
        )


def _divisor(size: int, most: int) -> int:
    return next(one for one in range(most, 0, -1) if size % one == 0)


def _var(axis: Axis) -> int:
    return key(axis.var)


def _environment(axes: tuple[Axis, ...], at: Sequence[Expr]) -> dict[int, Expr]:
    return {key(axis.var): value for axis, value in zip(axes, at, strict=True)}


def _tree(terms: list[Expr]) -> Expr:
    """The sum of terms, in pairs."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[len(terms) & ~1 :]]
    return terms[0]
