"""Attention: scores of a few rows at a time, their softmax, and the mix of values, in one pass.

The lanes are rows of queries. Keys and values are then read one number at a time as they lie, rows
of scores are reduced lane by lane, and no size that may be symbolic is ever cut into vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.stage import Target

from ...compat import tvm
from ..intrinsics import vectorizable
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    ceil_div,
    depends_on,
    equal,
    is_load,
    key,
    product,
    read,
    same,
    substitute,
)
from ..loops import (
    branch,
    constant,
    dtype_of,
    lanes,
    local,
    loop,
    parallel,
    scheduled,
    seq,
    store,
)
from ..nests import float_lanes
from ..tiling import factors

tirx = tvm.tirx
TASKS = 4  # chunks of rows per core
Load = Callable[..., Expr]


@dataclass(frozen=True)
class Parts:
    """The steps of an attention kernel. `scores` and `mixed` are sums of products."""

    kernel: Kernel
    scores: Step
    top: Step
    powers: Step
    total: Step
    mixed: Step
    output: Step


def attention(func: Any, target: Target) -> Any | None:
    """softmax(f(Q Kᵀ)) V with f elementwise; every size but the depths may be symbolic."""
    kernel = read(func)
    if kernel is None or len(kernel.outputs) != 1:
        return None
    products = [step for step in kernel.reductions if factors(step) is not None]
    others = [step for step in kernel.reductions if factors(step) is None]
    if len(products) != 2 or len(others) != 2:
        return None
    (scores, mixed), (top, total), (output,) = products, others, kernel.outputs
    (weight, _) = factors(mixed) or (None, None)
    powers = next((step for step in kernel.steps if _reads(weight, step)), None)
    if powers is None or powers.reduce or not _reads(total.element, powers):
        return None
    value = output.value
    if not isinstance(value, tirx.Div) or not _reads(value.a, mixed) or not _reads(value.b, total):
        return None
    parts = Parts(kernel, scores, top, powers, total, mixed, output)
    if len(scores.axes) != 4 or len(output.axes) != 4 or not isinstance(top.value, tirx.Max):
        return None
    if len(mixed.reduce) != 1 or len(scores.reduce) != 1 or not _is_laid_out(weight, parts):
        return None
    if scores.reduce[0].static is None or output.axes[3].static is None:
        return None
    return scheduled(func, _Attention(parts, target).body())


def _reads(value: Any, step: Step) -> bool:
    return is_load(value) and same(value.source, step.buffer)


def _is_laid_out(weight: Any, parts: Parts) -> bool:
    """Whether scores lie as [batch, head, row, column], and the result, whose factor is `weight`,
    as [batch, row, head, …].
    """
    mixed, output, total = parts.mixed, parts.output, parts.total
    steps = (parts.scores, parts.powers, mixed, output)
    if any(len(step.axes) != 4 or not step.is_identity for step in steps):
        return False
    own = _scores_axes(mixed, mixed.reduce[0])
    return (
        all(equal(a.extent, b.extent) for a, b in zip(own, parts.scores.axes, strict=True))
        and _is_at(weight, own)
        and _is_at(total.element, (*total.axes, *total.reduce))
        and _is_at(output.value.a, output.axes)
        and _is_at(output.value.b, _scores_axes(output))
    )


def _scores_axes(step: Step, *columns: Axis) -> tuple[Axis, ...]:
    """The axes of a step [batch, row, head, …] in the order of the scores."""
    batch, row, head, *_ = step.axes
    return (batch, head, row, *columns)


def _is_at(load: Any, axes: Sequence[Axis]) -> bool:
    """Whether a load's indices are these axes."""
    return len(load.indices) == len(axes) and all(
        same(index, axis.var) for index, axis in zip(load.indices, axes, strict=True)
    )


class _Attention:
    """The loops. Buffers of a chunk and what is known of the rows at hand are set as it goes."""

    query: Any  # [depth, lanes]
    score: Any  # [columns, lanes]
    result: Any  # [width of the values, lanes]
    top: Any
    total: Any
    at: dict[int, Expr]
    row: Callable[[Expr], Expr]

    def __init__(self, parts: Parts, target: Target) -> None:
        self.parts, self.target = parts, target
        self.width = min(float_lanes(target), 16)
        self.dtype = dtype_of(parts.scores.axes[0])
        # numbers of keys or columns of values that are worked on at once: one register each
        self.tile = 12 if target.vector_registers <= 16 else 16
        self.batch, self.heads, self.rows, self.columns = parts.scores.axes
        self.depth = parts.scores.reduce[0]
        self.wide = parts.output.axes[3]

    def body(self) -> Any:
        runs = ceil_div(self.rows.extent, self.width)
        count = product([self.batch.extent, self.heads.extent, runs])
        chunks: Any = TASKS * self.target.cores
        if isinstance(count, int):
            chunks = min(chunks, count)
        depth, wide = self.depth.static, self.wide.static
        assert depth is not None
        assert wide is not None

        def chunk(indices: list[Expr]) -> Any:
            self.query = local("query", (depth, self.width), "float32")
            self.score = local("score", (self.columns.extent, self.width), "float32")
            self.result = local("result", (wide, self.width), "float32")
            first, last = indices[0] * count // chunks, (indices[0] + 1) * count // chunks
            return seq(
                [
                    *(tirx.AllocBuffer(one) for one in (self.query, self.score, self.result)),
                    loop(
                        "rows",
                        last - first,
                        lambda t: self._rows(
                            (first + t) // runs // self.heads.extent,
                            (first + t) // runs % self.heads.extent,
                            (first + t) % runs * self.width,
                        ),
                        dtype=self.dtype,
                    ),
                ]
            )

        return parallel([chunks], chunk, self.dtype)

    def _rows(self, batch: Expr, head: Expr, first: Expr) -> Any:
        """A vector of rows; those beyond the last are copies of it, and not stored."""
        self.at = {key(self.batch.var): batch, key(self.heads.var): head}
        last = constant(self.rows.extent, self.dtype) - 1
        self.row = lambda lane: tirx.min(first + lane, last)
        self.top = local("top", (self.width,), "float32")
        self.total = local("total", (self.width,), "float32")
        parts = self.parts
        return seq(
            [
                tirx.AllocBuffer(self.top),
                tirx.AllocBuffer(self.total),
                self._lanes(lambda x: store(self.top, [x], parts.top.init)),
                self._lanes(lambda x: store(self.total, [x], parts.total.init)),
                self._copy_queries(),
                self._tiles(self.columns.extent, self._score_tile),
                loop("column", self.columns.extent, self._power, dtype=self.dtype),
                self._lanes(
                    lambda x: store(self.total, [x], tirx.const(1.0, "float32") / self._sum(x))
                ),
                self._tiles(self.wide.extent, self._mix_tile),
                loop(
                    "row",
                    tirx.min(
                        tirx.const(self.width, self.dtype),
                        constant(self.rows.extent, self.dtype) - first,
                    ),
                    lambda x: self._store_row(batch, head, first + x, x),
                    dtype=self.dtype,
                ),
            ]
        )

    def _tiles(self, extent: Any, body: Callable[[Expr, int], Any]) -> Any:
        """`body` over runs of `tile` numbers; the last run overlaps the one before it."""
        tile = self.tile
        if isinstance(extent, int):
            tile = min(tile, extent)
            while extent % tile and tile > 8:
                tile -= 1

        def run(t: Expr) -> Any:
            return body(tirx.min(t * tile, constant(extent, self.dtype) - tile), tile)

        whole = loop("tile", ceil_div(extent, tile), run, dtype=self.dtype)
        if isinstance(extent, int):
            return whole
        single = loop("one", extent, lambda t: body(t, 1), dtype=self.dtype)
        return branch(extent >= tile, whole, single)

    def _copy_queries(self) -> Any:
        """Queries by depth, rows side by side."""
        operand = self._operand(self.parts.scores, self.rows)

        def copy(x: Expr, d: Expr) -> Any:
            at = {**self.at, key(self.rows.var): self.row(x), key(self.depth.var): d}
            return store(self.query, [d, x], substitute(operand, at))

        width = tirx.const(self.width, self.dtype)
        return loop(
            "row",
            width if self.width == 1 else self.width,
            lambda x: loop("d", self.depth.extent, lambda d: copy(x, d), dtype=self.dtype),
            dtype=self.dtype,
        )

    def _score_tile(self, first: Expr, count: int) -> Any:
        """Scores of `count` keys: the products, what is done to them, and their maximum."""
        step, parts = self.parts.scores, self.parts
        operand = self._operand(step, self.columns)
        accs = [local("acc", (self.width,), "float32") for _ in range(count)]

        def add(c: int, d: Expr) -> Any:
            at = {**self.at, key(self.columns.var): first + c, key(self.depth.var): d}
            number = substitute(operand, at)
            return self._lanes(
                lambda x: store(
                    accs[c],
                    [x],
                    tirx.BufferLoad(accs[c], [x]) + tirx.BufferLoad(self.query, [d, x]) * number,
                )
            )

        def finish(c: int, x: Expr) -> Any:
            value = self._final(first + c, x, lambda *_: tirx.BufferLoad(accs[c], [x]))
            return store(self.score, [first + c, x], value)

        def reach(c: int, x: Expr) -> Any:
            return store(
                self.top,
                [x],
                tirx.max(
                    tirx.BufferLoad(self.top, [x]), tirx.BufferLoad(self.score, [first + c, x])
                ),
            )

        return seq(
            [
                *(tirx.AllocBuffer(acc) for acc in accs),
                *(
                    self._lanes(lambda x, acc=acc: store(acc, [x], parts.scores.init))
                    for acc in accs
                ),
                loop(
                    "d",
                    self.depth.extent,
                    lambda d: seq(add(c, d) for c in range(count)),
                    dtype=self.dtype,
                ),
                *(self._lanes(lambda x, c=c: finish(c, x)) for c in range(count)),
                *(self._lanes(lambda x, c=c: reach(c, x)) for c in range(count)),
            ]
        )

    def _final(self, column: Expr, x: Expr, score: Load) -> Expr:
        """The score that the softmax sees."""
        top = self.parts.top
        value = self._maximised(top)
        at = {
            **{key(own.var): here for own, here in zip(top.axes, self._position(x), strict=True)},
            key(top.reduce[0].var): column,
        }
        held = {key(self.parts.scores.buffer): score}
        return vectorizable(self.parts.kernel.inline(substitute(value, at), held))

    def _maximised(self, top: Step) -> Expr:
        sides = (top.value.a, top.value.b)
        return next(side for side in sides if not getattr(side, "source", side).same_as(top.buffer))

    def _power(self, column: Expr) -> Any:
        """One column of the softmax in place, and its part of the sum."""
        powers, kernel = self.parts.powers, self.parts.kernel
        final = self._maximised(self.parts.top).source

        def one(x: Expr) -> Any:
            at = dict(
                zip((key(a.var) for a in powers.axes), [*self._position(x), column], strict=True)
            )
            held: dict[int, Load] = {
                key(final): lambda *_: tirx.BufferLoad(self.score, [column, x]),
                key(self.parts.top.buffer): lambda *_: tirx.BufferLoad(self.top, [x]),
            }
            value = vectorizable(kernel.value(powers, at, held))
            return store(self.score, [column, x], value)

        def add(x: Expr) -> Any:
            power = tirx.BufferLoad(self.score, [column, x])
            return store(self.total, [x], self._sum(x) + power)

        return seq([self._lanes(one), self._lanes(add)])

    def _mix_tile(self, first: Expr, count: int) -> Any:
        """`count` columns of the result."""
        mixed = self.parts.mixed
        *outer, wide = mixed.axes
        operand = self._operand(mixed, wide)
        accs = [local("acc", (self.width,), "float32") for _ in range(count)]
        batch, _, head = outer
        at = {
            key(batch.var): self.at[key(self.batch.var)],
            key(head.var): self.at[key(self.heads.var)],
        }

        def add(c: int, j: Expr) -> Any:
            where = {**at, key(mixed.reduce[0].var): j, key(wide.var): first + c}
            number = substitute(operand, where)
            return self._lanes(
                lambda x: store(
                    accs[c],
                    [x],
                    tirx.BufferLoad(accs[c], [x]) + tirx.BufferLoad(self.score, [j, x]) * number,
                )
            )

        return seq(
            [
                *(tirx.AllocBuffer(acc) for acc in accs),
                *(self._lanes(lambda x, acc=acc: store(acc, [x], mixed.init)) for acc in accs),
                loop(
                    "column",
                    self.columns.extent,
                    lambda j: seq(add(c, j) for c in range(count)),
                    dtype=self.dtype,
                ),
                *(
                    self._lanes(
                        lambda x, c=c: store(
                            self.result,
                            [first + c, x],
                            tirx.BufferLoad(accs[c], [x]) * self._sum(x),
                        )
                    )
                    for c in range(count)
                ),
            ]
        )

    def _store_row(self, batch: Expr, head: Expr, row: Expr, x: Expr) -> Any:
        output = self.parts.output.buffer

        def one(e: Expr) -> Any:
            return store(output, [batch, row, head, e], tirx.BufferLoad(self.result, [e, x]))

        return loop("e", self.wide.extent, one, dtype=self.dtype)

    def _position(self, x: Expr) -> list[Expr]:
        return [self.at[key(self.batch.var)], self.at[key(self.heads.var)], self.row(x)]

    def _sum(self, x: Expr) -> Expr:
        return tirx.BufferLoad(self.total, [x])

    def _operand(self, step: Step, axis: Axis) -> Expr:
        """The factor of a sum of products that has the axis."""
        found = [one for one in factors(step) or () if depends_on(one, axis)]
        if len(found) != 1 or not isinstance(found[0], tvm.ir.TensorLoad):
            raise Unfit(f"{step.name} is no product of two tensors")
        return found[0]

    def _lanes(self, body: Callable[[Expr], Any]) -> Any:
        return lanes(self.width, body, self.dtype)
