"""Attention over a key-value cache, and the update of the cache (`stages/attention.py`).

A task attends from a run of tokens, for a few heads that read the same keys. Keys come in blocks:
the softmax is carried from block to block (Milakov and Gimelshein 2018), so that whatever the
context, scores of one block are all that is kept, on the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...attention import ATTEND, MORE_SOURCES, NO_SOURCE, OVERFLOW, UPDATE, Attention
from ...compat import tvm
from ...opaque import KERNEL
from ..intrinsics import exp, tanh
from ..kernel import Axis, Expr, Unfit, as_int
from ..loops import lanes, local, loop, parallel, prefetch, scheduled, seq, store
from ..nests import float_lanes, vector

tirx = tvm.tirx

KEYS = 64  # of a block
TOKENS = 16  # of a task
AHEAD = 8  # keys that are fetched before they are read
LINE = 16  # floats that one fetch brings, at least
UNROLLED = 64  # vectors of a head, at most: they are kept in registers, or close to them
INDEX = "int64"


def cached_attention(func: Any, target: Target) -> Any | None:
    """A kernel that `stages.attention` made, told by its attribute; declines all others."""
    kernel = str((func.attrs or {}).get(KERNEL, ""))
    func = func.with_attr("tirx.noalias", True) if kernel else func
    if kernel == UPDATE:
        return scheduled(func, _update(func, target))
    return scheduled(func, _Attend(func, target).body()) if kernel == ATTEND else None


def _update(func: Any, target: Target) -> Any:
    """Serial: a token's keys are few, and copying a prompt's is little beside computing them."""
    state, new, position = func.params
    batch, heads, count, width = _shape(new)
    context = state.ty.shape[2]

    def row(b: Expr) -> Any:
        first = tirx.BufferLoad(position, [b])
        check = _demand(tirx.all(first >= 0, first + count <= context), OVERFLOW)

        def copy(h: Expr, i: Expr, x: Expr) -> Any:
            return store(state, [b, h, first + i, x], tirx.BufferLoad(new, [b, h, i, x]))

        def token(h: Expr, i: Expr) -> Any:
            axis = Axis(tirx.Var("width", INDEX), width)
            return vector(axis, float_lanes(target), lambda x: copy(h, i, x), INDEX)

        heads_of = loop("head", heads, lambda h: loop("token", count, lambda i: token(h, i)))
        return seq([check, heads_of])

    rows = loop("row", batch, row)
    held = as_int(state.ty.shape[0])
    same = isinstance(batch, int) or tvm_ffi.structural_equal(batch, held)
    return rows if same else seq([_demand(batch <= held, MORE_SOURCES), rows])


def _demand(condition: Expr, message: str) -> Any:
    # the wheel's constructor hands its arguments on as they come: the condition first
    return tirx.AssertStmt(condition, tvm.ir.StringImm("RuntimeError"), [tvm.ir.StringImm(message)])


class _Attend:
    def __init__(self, func: Any, target: Target) -> None:
        self.options = Attention.of(func)
        self.query, self.keys, self.values, self.position, *more, self.out = func.params
        self.bias = more.pop(0) if self.options.bias else None
        self.sinks = more.pop(0) if self.options.sinks else None
        self.batch, self.heads, self.tokens, self.width = _shape(self.query)
        _, self.kv_heads, _, self.value_width = _shape(self.values)
        self.simd = float_lanes(target)
        self.lanes, self.value_lanes = (
            _dividing(size, self.simd) for size in (self.width, self.value_width)
        )
        if max(self.width // self.lanes, self.value_width // self.value_lanes) > UNROLLED:
            raise Unfit("a head is too wide")
        self.shared = self._heads_of_a_task(target)
        self.heads_here = range(self.shared)
        self.asked = self._per_head("asked", self.width)
        self.sums = self._per_head("attended", self.value_width)
        self.scores = self._per_head("scores", KEYS)
        self.top, self.total = self._per_head("top", 1), self._per_head("total", 1)

    def _per_head(self, name: str, size: int) -> list[Any]:
        """A buffer for each head of a task."""
        return [local(name, (size,), "float32") for _ in self.heads_here]

    def _heads_of_a_task(self, target: Target) -> int:
        """Heads that one pass over the keys serves. More of them read the cache less often; fewer
        keep all cores busy.
        """
        group = self.heads // self.kv_heads
        vectors = self.value_width // self.value_lanes
        fit = [
            n
            for n in range(1, group + 1)
            if group % n == 0 and (n == 1 or n * vectors <= target.vector_registers // 2)
        ]

        def cost(n: int) -> float:
            tasks = (as_int(self.batch) if isinstance(self.batch, int) else 1) * self.heads // n
            return -(-tasks // target.cores) * (n + 0.5)  # half of a head's time is reading keys

        return min(fit, key=cost)

    def body(self) -> Any:
        runs = (self.tokens + (TOKENS - 1)) // TOKENS

        def task(indices: list[Expr]) -> Any:
            row, part, run = indices
            first = run * TOKENS
            count = tirx.min(tirx.const(TOKENS, INDEX), self.tokens - first)
            head = part * self.shared
            kept = [*self.asked, *self.sums, *self.scores, *self.top, *self.total]
            tokens = loop("token", count, lambda i: self._token(row, head, first + i))
            return seq([*(tirx.AllocBuffer(buffer) for buffer in kept), tokens])

        tasks = parallel([self.batch, self.heads // self.shared, runs], task, INDEX)
        if not self.options.across:
            return tasks
        context = self.keys.ty.shape[2]

        def source(row: Expr) -> Any:
            end = tirx.BufferLoad(self.position, [row])
            return _demand(tirx.all(end > 0, end <= context), NO_SOURCE)

        return seq([loop("row", self.batch, source), tasks])

    def _token(self, row: Expr, head: Expr, i: Expr) -> Any:
        """One token, attending with every head of the task."""
        held = head // (self.heads // self.kv_heads)
        end = tirx.BufferLoad(self.position, [row])
        if not self.options.across:
            end = end + i + 1
        begin = tirx.const(0, INDEX)
        if self.options.window:
            begin = tirx.max(end - self.options.window, begin)
        blocks = (end - begin + (KEYS - 1)) // KEYS

        def block(index: Expr) -> Any:
            first = begin + index * KEYS
            count = tirx.min(tirx.const(KEYS, INDEX), end - first)
            return seq(
                [
                    loop("key", count, lambda j: self._products(row, held, first + j, j)),
                    *(self._softmax(h, head + h, first, end) for h in self.heads_here),
                    loop("key", count, lambda j: self._add(row, held, first + j, j)),
                ]
            )

        return seq(
            [
                *(self._start(h, row, head + h, i) for h in self.heads_here),
                loop("block", blocks, block),
                *(self._finish(h, row, head + h, i) for h in self.heads_here),
            ]
        )

    def _start(self, h: int, row: Expr, head: Expr, i: Expr) -> Any:
        """The query, and the softmax over nothing, or over the sink alone."""
        query = self._vectors(
            self.width,
            self.lanes,
            lambda x: store(self.asked[h], [x], tirx.BufferLoad(self.query, [row, head, i, x])),
        )
        sums = self._vectors(
            self.value_width, self.value_lanes, lambda x: store(self.sums[h], [x], _float(0.0))
        )
        sink = tirx.BufferLoad(self.sinks, [head]) if self.sinks is not None else None
        top = tirx.min_value("float32") if sink is None else sink
        total = _float(0.0 if sink is None else 1.0)
        return seq([*query, *sums, _set(self.top[h], top), _set(self.total[h], total)])

    def _products(self, row: Expr, held: Expr, at: Expr, j: Expr) -> Any:
        """Query · key for one key and every head. Memory is asked for the key a few tokens on and
        for the value, which is read when the block's products are done: the caches' own guesses
        start anew with each block.
        """
        statements = [
            *(prefetch(self.keys, [row, held, at + AHEAD, x]) for x in _lines(self.width)),
            *(prefetch(self.values, [row, held, at, x]) for x in _lines(self.value_width)),
        ]
        for h in self.heads_here:
            part = local("part", (self.lanes,), "float32")

            def term(x: Expr, h: int = h) -> Expr:
                key = tirx.BufferLoad(self.keys, [row, held, at, x])
                return tirx.BufferLoad(self.asked[h], [x]) * key

            def first(x: Expr, part: Any = part, term: Any = term) -> Any:
                return store(part, [x], term(x))

            def more(x: Expr, at: int, part: Any = part, term: Any = term) -> Any:
                return store(part, [x], tirx.BufferLoad(part, [x]) + term(at + x))

            starts = range(self.lanes, self.width, self.lanes)
            statements += [
                tirx.AllocBuffer(part),
                lanes(self.lanes, first),
                *(lanes(self.lanes, lambda x, s=s, more=more: more(x, s)) for s in starts),
                *_folded(part, self.lanes, _added),
                store(self.scores[h], [j], _number(part)),
            ]
        return seq(statements)

    def _softmax(self, h: int, head: Expr, first: Expr, end: Expr) -> Any:
        """Products of a block as weights, relative to the largest score so far."""
        scores, simd = self.scores[h], min(self.simd, KEYS)
        best, some = (local(name, (simd,), "float32") for name in ("best", "some"))
        old, shrink = (local(name, (1,), "float32") for name in ("old", "shrink"))

        def score(x: Expr) -> Any:
            value = tirx.BufferLoad(scores, [x]) * _float(self.options.scale)
            if self.options.softcap:
                cap = _float(self.options.softcap)
                value = tanh(value / cap) * cap
            distance = end - 1 - first - x
            if self.bias is not None:
                near = tirx.max(distance, tirx.const(0, INDEX))
                value = value + tirx.BufferLoad(self.bias, [head, near])
            return store(scores, [x], tirx.Select(distance >= 0, value, tirx.min_value("float32")))

        def weight(x: Expr) -> Any:
            return store(scores, [x], exp(tirx.BufferLoad(scores, [x]) - _number(self.top[h])))

        def over(into: Any, merge: Callable[[Expr, Expr], Expr]) -> list[Any]:
            """All scores merged into the first lane of `into`."""

            def put(x: Expr, start: int) -> Any:
                other = tirx.BufferLoad(scores, [start + x])
                value = merge(tirx.BufferLoad(into, [x]), other) if start else other
                return store(into, [x], value)

            each = [lanes(simd, lambda x, s=s: put(x, s)) for s in range(0, KEYS, simd)]
            return [tirx.AllocBuffer(into), *each, *_folded(into, simd, merge)]

        shrunk = self._vectors(
            self.value_width,
            self.value_lanes,
            lambda x: store(
                self.sums[h], [x], tirx.BufferLoad(self.sums[h], [x]) * _number(shrink)
            ),
        )
        return seq(
            [
                *(lanes(simd, lambda x, s=s: score(s + x)) for s in range(0, KEYS, simd)),
                *over(best, tirx.max),
                tirx.AllocBuffer(old),
                tirx.AllocBuffer(shrink),
                _set(old, _number(self.top[h])),
                _set(self.top[h], tirx.max(_number(old), _number(best))),
                _set(shrink, exp(_number(old) - _number(self.top[h]))),
                *(lanes(simd, lambda x, s=s: weight(s + x)) for s in range(0, KEYS, simd)),
                *over(some, _added),
                _set(self.total[h], _number(self.total[h]) * _number(shrink) + _number(some)),
                *shrunk,
            ]
        )

    def _add(self, row: Expr, held: Expr, at: Expr, j: Expr) -> Any:
        """One value, weighted, to the sums of every head."""

        def one(h: int, x: Expr) -> Any:
            value = tirx.BufferLoad(self.values, [row, held, at, x])
            weighted = tirx.BufferLoad(self.scores[h], [j]) * value
            return store(self.sums[h], [x], tirx.BufferLoad(self.sums[h], [x]) + weighted)

        return seq(
            statement
            for h in self.heads_here
            for statement in self._vectors(
                self.value_width, self.value_lanes, lambda x, h=h: one(h, x)
            )
        )

    def _finish(self, h: int, row: Expr, head: Expr, i: Expr) -> Any:
        share = local("share", (1,), "float32")

        def one(x: Expr) -> Any:
            value = tirx.BufferLoad(self.sums[h], [x]) * _number(share)
            return store(self.out, [row, i, head, x], value)

        return seq(
            [
                tirx.AllocBuffer(share),
                _set(share, _float(1.0) / _number(self.total[h])),
                *self._vectors(self.value_width, self.value_lanes, one),
            ]
        )

    @staticmethod
    def _vectors(size: int, count: int, body: Callable[[Expr], Any]) -> list[Any]:
        """`body` over 0 … size-1, unrolled into vectors of `count`."""
        return [lanes(count, lambda x, s=s: body(s + x)) for s in range(0, size, count)]


def _folded(buffer: Any, size: int, merge: Callable[[Expr, Expr], Expr]) -> list[Any]:
    """Statements that merge all lanes into the first, halving the vector."""

    def half(x: Expr, by: int) -> Any:
        pair = (tirx.BufferLoad(buffer, [x]), tirx.BufferLoad(buffer, [x + by]))
        return store(buffer, [x], merge(*pair))

    steps = [size >> k for k in range(1, size.bit_length())]
    return [lanes(by, lambda x, by=by: half(x, by)) for by in steps if by]


def _added(a: Expr, b: Expr) -> Expr:
    return a + b


def _dividing(size: int, most: int) -> int:
    """The largest power of two up to `most` that divides `size`."""
    return min(size & -size, most)


def _lines(size: int) -> list[Expr]:
    """Where the lines of `size` floats begin."""
    return [tirx.const(x, INDEX) for x in range(0, size, LINE)]


def _shape(buffer: Any) -> Sequence[Any]:
    return [as_int(size) for size in buffer.ty.shape]


def _number(buffer: Any) -> Expr:
    return tirx.BufferLoad(buffer, [tirx.const(0, INDEX)])


def _set(buffer: Any, value: Expr) -> Any:
    return store(buffer, [tirx.const(0, INDEX)], value)


def _float(value: float) -> Expr:
    return tirx.const(value, "float32")
