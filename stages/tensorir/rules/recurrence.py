"""Recurrences (`stages/recurrence.py`): a task goes through the tokens for a vector of channels,
whose numbers stay in registers from the first token to the last. And the cells of ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ...opaque import CELL, KERNEL
from ...recurrence import RECUR, Recurrence
from ..intrinsics import vectorizable
from ..kernel import Expr, Unfit, as_int
from ..loops import lanes, local, loop, parallel, scheduled, seq, store
from ..nests import PARALLEL_ELEMENTS, float_lanes
from ..tiling import SYMBOLIC

tirx = tvm.tirx

UNROLLED = 64  # numbers of a channel, at most: each is a vector
INDEX = "int64"


def recurrence(func: Any, target: Target) -> Any | None:
    """A kernel that `stages.recurrence` made, or an LSTM, GRU or RNN as import writes it, told by
    its attribute; declines all others.
    """
    kind = str((func.attrs or {}).get(KERNEL, ""))
    if kind == CELL:
        return func.with_body(tvm_ffi.structural_map(func.body, (tirx.BufferStore, _arithmetic)))
    if kind != RECUR:
        return None
    func = func.with_attr("tirx.noalias", True)
    return scheduled(func, _Recurrence(func, target).body())


def _arithmetic(one: Any) -> Any:
    """A store of what vectorises: the loops of a cell are vectors already, its gates calls."""
    return store(one.buffer, one.indices, vectorizable(one.value))


class _Recurrence:
    def __init__(self, func: Any, target: Target) -> None:
        self.of = Recurrence.of(func)
        self.state, self.position, self.last, *inputs, self.out = func.params
        self.own, self.shared, self.fixed = self.of.named(inputs)
        self.batch, self.tokens, self.channels = (as_int(size) for size in self.out.ty.shape)
        self.held = as_int(self.state.ty.shape[1])
        if self.held > UNROLLED:
            raise Unfit("a channel holds too many numbers")
        self.lanes = min(self.channels & -self.channels, float_lanes(target))
        self.before, self.after = (
            [local(name, (self.lanes,), "float32") for _ in range(self.held)]
            for name in ("before", "after")
        )

    def body(self) -> Any:
        sizes = [one if isinstance(one, int) else SYMBOLIC for one in (self.batch, self.tokens)]
        work = sizes[0] * sizes[1] * self.channels * self.held

        def task(indices: list[Expr]) -> Any:
            row, part = indices
            return self._row(row, part * self.lanes)

        tasks = [self.batch, self.channels // self.lanes]
        return parallel(tasks, task, INDEX, serial=work < PARALLEL_ELEMENTS)

    def _row(self, row: Expr, first: Expr) -> Any:
        """All tokens of a row, for the channels from `first` on."""
        end = tirx.max(tirx.BufferLoad(self.last, [row]) + 1, tirx.const(0, INDEX))
        count = tirx.min(end, tirx.const(0, INDEX) + self.tokens)
        anew = tirx.BufferLoad(self.position, [row]) <= 0
        zero = tirx.const(0.0, "float32")

        def begin(k: int, x: Expr) -> Any:
            there = tirx.BufferLoad(self.state, [row, tirx.const(k, INDEX), first + x])
            return store(self.before[k], [x], tirx.Select(anew, zero, there))

        def end_of(k: int, x: Expr) -> Any:
            place = [row, tirx.const(k, INDEX), first + x]
            return store(self.state, place, tirx.BufferLoad(self.before[k], [x]))

        return seq(
            [
                *(tirx.AllocBuffer(buffer) for buffer in (*self.before, *self.after)),
                *self._each(begin),
                loop("token", count, lambda i: self._token(row, first, i)),
                loop(
                    "rest",
                    self.tokens - count,
                    lambda i: self._lanes(
                        lambda x: store(self.out, [row, count + i, first + x], zero)
                    ),
                ),
                *self._each(end_of),
            ]
        )

    def _token(self, row: Expr, first: Expr, i: Expr) -> Any:
        numbers = [tirx.const(k, INDEX) for k in range(self.held)]

        def token(x: Expr) -> dict[str, Any]:
            def read(buffer: Any, *indices: Expr) -> Expr:
                return tirx.BufferLoad(buffer, list(indices))

            at = first + x
            return {
                **{name: read(one, row, i, at) for name, one in self.own.items()},
                **{k: [read(one, row, i, j) for j in numbers] for k, one in self.shared.items()},
                **{k: [read(one, j, at) for j in numbers] for k, one in self.fixed.items()},
            }

        def held(buffers: Sequence[Any], x: Expr) -> list[Expr]:
            return [tirx.BufferLoad(buffer, [x]) for buffer in buffers]

        def advanced(x: Expr) -> tuple[list[Expr], list[Expr]]:
            """Numbers after the token over exponentials that `after` holds, and these."""
            powers: list[Expr] = []

            def exp(power: Expr) -> Expr:
                powers.append(power)
                return tirx.BufferLoad(self.after[len(powers) - 1], [x])

            return self.of.advance(held(self.before, x), token(x), exp), powers

        def grow(k: int, x: Expr) -> Any:
            """Apart from `advance`: CommonSubexprElim overlooks what is read within a `Let`."""
            _, powers = advanced(x)
            return store(self.after[k], [x], vectorizable(tirx.exp(powers[k])))

        def advance(k: int, x: Expr) -> Any:
            numbers, _ = advanced(x)
            return store(self.after[k], [x], vectorizable(numbers[k]))

        def give(x: Expr) -> Any:
            value = self.of.give(held(self.after, x), token(x))
            return store(self.out, [row, i, first + x], value)

        def keep(k: int, x: Expr) -> Any:
            return store(self.before[k], [x], tirx.BufferLoad(self.after[k], [x]))

        count = len(advanced(tirx.const(0, INDEX))[1])
        if count not in (0, self.held):
            raise Unfit("not one exponential for each number")
        grown = self._each(grow) if count else []
        return seq([*grown, *self._each(advance), self._lanes(give), *self._each(keep)])

    def _each(self, body: Any) -> list[Any]:
        """A vector statement for each number of a channel."""
        return [self._lanes(lambda x, k=k: body(k, x)) for k in range(self.held)]

    def _lanes(self, body: Any) -> Any:
        return lanes(self.lanes, body, INDEX)
