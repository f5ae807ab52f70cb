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

KERNEL = "tapml.kernel"  # of a PrimFunc: UPDATE or ATTEND
UPDATE, ATTEND = "cache_update", "cached_attention"
OVERFLOW = "position + tokens is above the context of the cache"

Size = int | None  # None: a symbolic size, `batch` or `n`


@dataclass(frozen=True)
class Attention:
    """What an attention layer does to a score before the softmax, and which tokens it sees.

    scale:    score = query · key * scale
    softcap:  then softcap * tanh(score / softcap); 0: nothing
    window:   the last `window` tokens are seen, the token itself included; 0: all
    bias:     a tensor [heads, context] is added, indexed by the distance of the token (ALiBi)
    sinks:    a tensor [heads] of logits takes part in the softmax, without a value
    """

    scale: float
    softcap: float = 0.0
    window: int = 0
    bias: bool = False
    sinks: bool = False

    @classmethod
    def of(cls, func: Any) -> Attention:
        """The options of a `cached_attention`."""
        scale, softcap, window, bias, sinks = (func.attrs[_attr(one)] for one in asdict(cls(1.0)))
        return cls(float(scale), float(softcap), int(window), bool(bias), bool(sinks))

    def attrs(self) -> dict[str, Any]:
        return {
            _attr(name): int(value) if isinstance(value, bool) else value
            for name, value in asdict(self).items()
        }


def _attr(option: str) -> str:
    return f"tapml.attention.{option}"


@cache
def cache_update(batch: Size, heads: int, context: int, width: int) -> Any:
    """PrimFunc (state [batch, heads, context, width], new [batch, heads, n, width], position
    [batch]) that writes `new` into `state` at `position`.

    Raises: RuntimeError (OVERFLOW) when it runs and a row does not fit, before it writes the row.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({KERNEL: UPDATE, **_OPAQUE})
        b, n = _size(batch, "batch"), _size(None, "n")
        state = _buffer("state", (b, heads, context, width))
        new = _buffer("new", (b, heads, n, width))
        position = _buffer("position", (b,), "int64")
        with T.sblock(UPDATE):
            T.reads([])
            T.writes([])
            with T.serial(b) as row:
                start = T.bind(position[row])
                fits = tvm.tirx.all(start >= 0, start + n <= context)
                with T.Assert(fits, OVERFLOW):
                    pass
                with _grid(heads, n, width) as (h, i, d):
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
    value_width]. Reads the first `position + n` slots of a row, all of them written.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({KERNEL: ATTEND, **options.attrs(), **_OPAQUE})
        b, n = _size(batch, "batch"), _size(None, "n")
        query = _buffer("query", (b, heads, n, width))
        keys = _buffer("keys", (b, kv_heads, context, width))
        values = _buffer("values", (b, kv_heads, context, value_width))
        position = _buffer("position", (b,), "int64")
        bias = _buffer("bias", (heads, context)) if options.bias else None
        sinks = _buffer("sinks", (heads,)) if options.sinks else None
        out = _buffer("attended", (b, n, heads, value_width))

        def score(dot: Any, h: Any, distance: Any) -> Any:
            value = dot * _float(options.scale)
            if options.softcap:
                cap = _float(options.softcap)
                value = tvm.tirx.tanh(value / cap) * cap
            return value if bias is None else value + bias[h, distance]

        with T.sblock(ATTEND):
            T.reads([])
            T.writes([])
            scores = T.sblock_alloc_buffer((_int(context),), layout=None)
            top = T.sblock_alloc_buffer((_int(1),), layout=None)
            total = T.sblock_alloc_buffer((_int(1),), layout=None)
            with _grid(b, n, heads) as (row, i, h):
                held = T.bind(h // _int(heads // kv_heads))
                end = T.bind(position[row] + i + _int(1))
                window = options.window
                first = T.bind(tvm.tirx.max(end - _int(window), _int(0)) if window else _int(0))
                seen = T.bind(end - first)
                T.buffer_store(
                    top, sinks[h] if sinks is not None else tvm.tirx.min_value("float32"), [0]
                )
                with T.serial(seen) as j:
                    T.buffer_store(scores, _float(0.0), [j])
                    with T.serial(_int(width)) as d:
                        product = query[row, h, i, d] * keys[row, held, first + j, d]
                        T.buffer_store(scores, scores[j] + product, [j])
                    T.buffer_store(scores, score(scores[j], h, seen - j - _int(1)), [j])
                    T.buffer_store(top, tvm.tirx.max(top[0], scores[j]), [0])
                rest = tvm.tirx.exp(sinks[h] - top[0]) if sinks is not None else _float(0.0)
                T.buffer_store(total, rest, [0])
                with T.serial(seen) as j:
                    T.buffer_store(scores, tvm.tirx.exp(scores[j] - top[0]), [j])
                    T.buffer_store(total, total[0] + scores[j], [0])
                with T.serial(_int(value_width)) as d:
                    T.buffer_store(out, _float(0.0), [row, i, h, d])
                    with T.serial(seen) as j:
                        weighted = scores[j] / total[0] * values[row, held, first + j, d]
                        T.buffer_store(out, out[row, i, h, d] + weighted, [row, i, h, d])
    return builder.get()


# no fusion: a state must be read and written by these alone
_OPAQUE = {"op_pattern": 8}


def _int(value: int) -> Any:
    return tvm.tirx.IntImm("int64", value)


def _float(value: float) -> Any:
    return tvm.tirx.FloatImm("float32", value)


def _size(size: Size, name: str) -> Any:
    return tvm.tirx.Var(name, "int64") if size is None else _int(size)


def _buffer(name: str, shape: tuple[Any, ...], dtype: str = "float32") -> Any:
    """A parameter of the function that is being built."""
    from tvm.script.ir_builder import tirx as T

    sizes = [_int(one) if isinstance(one, int) else one for one in shape]
    return T.arg(name, T.buffer(sizes, dtype, layout=None, buffer_name=name))


def _grid(*extents: Any) -> Any:
    from tvm.script.ir_builder import tirx as T

    return T.grid(*(_int(one) if isinstance(one, int) else one for one in extents))
