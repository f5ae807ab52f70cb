"""Kernels of models that go from token to token with numbers of their own, in plain TensorIR: what
they mean, scalar and unscheduled.

Each channel holds a few numbers, a state [batch, held, channels] that does not grow. A call reads
it, goes through the tokens of a row up to its last one, and writes it, in place. A row at position
0 begins anew, whatever the state holds; `last` -1 is a row that has no token in the call. What is
given for tokens past the last one is 0.

A faster kernel of the same meaning finds these by the attribute KERNEL, and what it computes by
`Recurrence.of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from typing import Any

from .compat import tvm
from .opaque import KERNEL, OPAQUE, Size, buffer, floating, grid, integer, size_of

RECUR = "recurrence"
_KIND = "tapml.recurrence"
Number = Any  # of TensorIR, or a tensor of torch
Numbers = Sequence[Number]
Token = Mapping[str, Any]  # input → what a token has of it


@dataclass(frozen=True)
class Recurrence:
    """How a channel goes from a token to the next.

    own:      inputs [batch, n, channels]: a number for each token and channel
    shared:   inputs [batch, n, held]: the same for all channels
    fixed:    inputs [held, channels]: the same for all tokens
    advance:  numbers held after a token, from those before it; they begin as 0
    give:     what the token gives, from the numbers after it
    """

    own: tuple[str, ...]
    shared: tuple[str, ...]
    fixed: tuple[str, ...]
    advance: Callable[[Numbers, Token, Callable[[Number], Number]], list[Number]]
    give: Callable[[Numbers, Token], Number]

    @classmethod
    def of(cls, func: Any) -> Recurrence:
        """What a `recurrence` computes."""
        return RECURRENCES[str(func.attrs[_KIND])]

    def named(self, inputs: Sequence[Any]) -> tuple[dict[str, Any], ...]:
        """Inputs by name, each of the three sorts for itself."""
        names = (self.own, self.shared, self.fixed)
        rest = iter(inputs)
        return tuple({name: next(rest) for name in sort} for sort in names)


def _sum(numbers: Numbers) -> Number:
    return reduce(add, numbers)


def _weighted(numbers: Numbers, weights: Numbers) -> Number:
    return _sum([one * weight for one, weight in zip(numbers, weights, strict=True)])


RECURRENCES = {
    # the last tokens, and their weighted sum (a causal convolution of each channel)
    "convolution": Recurrence(
        own=("x",),
        shared=(),
        fixed=("weight",),
        advance=lambda held, token, _: [*held[1:], token["x"]],
        give=lambda held, token: _weighted(held, token["weight"]),
    ),
    # selective state space (Gu and Dao 2023, algorithm 2)
    "selective_scan": Recurrence(
        own=("x", "step"),
        shared=("into", "out_of"),
        fixed=("decay",),
        advance=lambda held, token, exp: [
            exp(token["step"] * decay) * one + token["step"] * token["x"] * into
            for one, decay, into in zip(held, token["decay"], token["into"], strict=True)
        ],
        give=lambda held, token: _weighted(held, token["out_of"]),
    ),
}


@cache
def recurrence(kind: str, batch: Size, channels: int, held: int) -> Any:
    """PrimFunc (state [batch, held, channels], position [batch], last [batch], own inputs, shared
    ones, fixed ones) → the state, in place, and [batch, n, channels].
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    of = RECURRENCES[kind]
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({KERNEL: RECUR, _KIND: kind, **OPAQUE})
        b, n = size_of(batch, "batch"), size_of(None, "n")
        state = buffer("state", (b, held, channels))
        position, last = (buffer(name, (b,), "int64") for name in ("position", "last"))
        own = {name: buffer(name, (b, n, channels)) for name in of.own}
        shared = {name: buffer(name, (b, n, held)) for name in of.shared}
        fixed = {name: buffer(name, (held, channels)) for name in of.fixed}
        out = buffer("given", (b, n, channels))
        numbers = [integer(k) for k in range(held)]
        with T.sblock(RECUR):
            T.reads([])
            T.writes([])
            before, after = (T.sblock_alloc_buffer((integer(held),), layout=None) for _ in range(2))
            with grid(b, channels) as (row, c):
                count = T.bind(tvm.tirx.min(tvm.tirx.max(last[row] + 1, integer(0)), n))
                for k in numbers:
                    goes_on = position[row] > 0
                    value = tvm.tirx.if_then_else(goes_on, state[row, k, c], floating(0.0))
                    T.buffer_store(before, value, [k])
                with T.serial(count) as i:
                    token = {name: one[row, i, c] for name, one in own.items()}
                    token |= {x: [one[row, i, k] for k in numbers] for x, one in shared.items()}
                    token |= {x: [one[k, c] for k in numbers] for x, one in fixed.items()}
                    held_now = [before[k] for k in numbers]
                    moved = of.advance(held_now, token, tvm.tirx.exp)
                    for k, value in zip(numbers, moved, strict=True):
                        T.buffer_store(after, value, [k])
                    T.buffer_store(out, of.give([after[k] for k in numbers], token), [row, i, c])
                    for k in numbers:
                        T.buffer_store(before, after[k], [k])
                with T.serial(n - count) as i:
                    T.buffer_store(out, floating(0.0), [row, count + i, c])
                for k in numbers:
                    T.buffer_store(state, before[k], [row, k, c])
    return builder.get()
