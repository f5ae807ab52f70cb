"""Kernels of a language model's cache, in plain TensorIR: what they mean, scalar and unscheduled.

A program that decodes keeps the keys and values of the tokens it has seen as states [batch, heads,
context, width], and takes in `position` [batch] how many tokens each row holds. `cache_update`
writes the keys (or the values) of `n` new tokens behind them, in place; `cached_attention` attends
from the new tokens to those before them. A row may be shorter than the call is wide: what lies
past its last token is overwritten before it is read. Slots past `position + n` are never touched.

A faster kernel of the same meaning finds these by the attribute KERNEL, and their options by
`Attention.of`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from .compat import tvm
from .opaque import KERNEL, OPAQUE, Size, buffer, floating, grid, integer, size_of

UPDATE, ATTEND = "cache_update", "cached_attention"
OVERFLOW = "position + tokens is above the context of the cache"
MORE_SOURCES = "more sources than rows"
NO_SOURCE = "a row's source is empty, or above the context of its cache"


@dataclass(frozen=True)
class Attention:
    """What an attention layer does to a score before the softmax, and which tokens it sees.

    scale:    score = query · key * scale
    softcap:  then softcap * tanh(score / softcap); 0: nothing
    window:   the last `window` tokens are seen, the token itself included; 0: all
    bias:     a tensor [heads, context] is added, indexed by the distance of the token (ALiBi)
    sinks:    a tensor [heads] of logits takes part in the softmax, without a value
    across:   to another sequence, which is there already: every token sees all of its `position`
    """

    scale: float
    softcap: float = 0.0
    window: int = 0
    bias: bool = False
    sinks: bool = False
    across: bool = False

    @classmethod
    def of(cls, func: Any) -> Attention:
        """The options of a `cached_attention`."""
        kinds = {name: type(value) for name, value in asdict(cls(1.0)).items()}
        return cls(**{name: kind(func.attrs[_attr(name)]) for name, kind in kinds.items()})

    def attrs(self) -> dict[str, Any]:
        return {
            _attr(name): int(value) if isinstance(value, bool) else value
            for name, value in asdict(self).items()
        }


def _attr(option: str) -> str:
    return f"tapml.attention.{option}"


@cache
def cache_update(batch: Size, heads: int, context: int, width: int, some: bool = False) -> Any:
    """PrimFunc (state [batch, heads, context, width], new [batch, heads, n, width], position
    [batch]) that writes `new` into `state` at `position`. `some`: of the first rows alone.

    Raises: RuntimeError (OVERFLOW) when it runs and a row does not fit, before it writes the row;
            (MORE_SOURCES) when there are more rows than the state has.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({KERNEL: UPDATE, **OPAQUE})
        b, n = size_of(batch, "batch"), size_of(None, "n")
        state = buffer("state", (b, heads, context, width))
        rows = size_of(None, "rows") if some else b
        new = buffer("new", (rows, heads, n, width))
        position = buffer("position", (b,), "int64")
        with T.sblock(UPDATE):
            T.reads([])
            T.writes([])
            if some:
                with T.Assert(rows <= b, MORE_SOURCES):
                    pass
            with T.serial(rows) as row:
                start = T.bind(position[row])
                fits = tvm.tirx.all(start >= 0, start + n <= context)
                with T.Assert(fits, OVERFLOW):
                    pass
                with grid(heads, n, width) as (h, i, d):
                    T.buffer_store(state, new[row, h, i, d], [row, h, start + i, d])
    return builder.get()


@cache
def cached_attention(
    batch: Size,
    heads: int,
    kv_heads: int,
    context: int,
    width: int,
    value_width: int,
    options: Attention,
) -> Any:
    """PrimFunc (query [batch, heads, n, width], keys [batch, kv_heads, context, width], values
    [batch, kv_heads, context, value_width], position [batch], bias?, sinks?) → [batch, n, heads,
    value_width]. Reads the first `position + n` slots of a row, all of them written; across, the
    first `position`.

    Raises: RuntimeError (NO_SOURCE) when it runs across, for a row with no slot or too many.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({KERNEL: ATTEND, **options.attrs(), **OPAQUE})
        b, n = size_of(batch, "batch"), size_of(None, "n")
        query = buffer("query", (b, heads, n, width))
        keys = buffer("keys", (b, kv_heads, context, width))
        values = buffer("values", (b, kv_heads, context, value_width))
        position = buffer("position", (b,), "int64")
        bias = buffer("bias", (heads, context)) if options.bias else None
        sinks = buffer("sinks", (heads,)) if options.sinks else None
        out = buffer("attended", (b, n, heads, value_width))

        def score(dot: Any, h: Any, distance: Any) -> Any:
            value = dot * floating(options.scale)
            if options.softcap:
                cap = floating(options.softcap)
                value = tvm.tirx.tanh(value / cap) * cap
            return value if bias is None else value + bias[h, distance]

        with T.sblock(ATTEND):
            T.reads([])
            T.writes([])
            scores = T.sblock_alloc_buffer((integer(context),), layout=None)
            top = T.sblock_alloc_buffer((integer(1),), layout=None)
            total = T.sblock_alloc_buffer((integer(1),), layout=None)
            if options.across:
                with T.serial(b) as row:
                    there = tvm.tirx.all(position[row] > 0, position[row] <= context)
                    with T.Assert(there, NO_SOURCE):
                        pass
            with grid(b, n, heads) as (row, i, h):
                held = T.bind(h // integer(heads // kv_heads))
                end = T.bind(position[row] + (integer(0) if options.across else i + integer(1)))
                window = options.window
                first = T.bind(
                    tvm.tirx.max(end - integer(window), integer(0)) if window else integer(0)
                )
                seen = T.bind(end - first)
                T.buffer_store(
                    top, sinks[h] if sinks is not None else tvm.tirx.min_value("float32"), [0]
                )
                with T.serial(seen) as j:
                    T.buffer_store(scores, floating(0.0), [j])
                    with T.serial(integer(width)) as d:
                        product = query[row, h, i, d] * keys[row, held, first + j, d]
                        T.buffer_store(scores, scores[j] + product, [j])
                    T.buffer_store(scores, score(scores[j], h, seen - j - integer(1)), [j])
                    T.buffer_store(top, tvm.tirx.max(top[0], scores[j]), [0])
                rest = tvm.tirx.exp(sinks[h] - top[0]) if sinks is not None else floating(0.0)
                T.buffer_store(total, rest, [0])
                with T.serial(seen) as j:
                    T.buffer_store(scores, tvm.tirx.exp(scores[j] - top[0]), [j])
                    T.buffer_store(total, total[0] + scores[j], [0])
                with T.serial(integer(value_width)) as d:
                    T.buffer_store(out, floating(0.0), [row, i, h, d])
                    with T.serial(seen) as j:
                        weighted = scores[j] / total[0] * values[row, held, first + j, d]
                        T.buffer_store(out, out[row, i, h, d] + weighted, [row, i, h, d])
    return builder.get()
