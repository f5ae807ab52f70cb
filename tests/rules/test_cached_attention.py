"""The fast kernels of the cache against NumPy in float64: outputs poisoned, slots past each
row's tokens poisoned too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.kernels import BASELINE, assert_close, build, run

from tapml_stages.attention import (
    NO_SOURCE,
    OVERFLOW,
    Attention,
    cache_update,
    cached_attention,
)
from tapml_stages.compat import tvm
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.tiling import STACK_BYTES

WIDE = BASELINE.model_copy(update={"vector_bits": 512, "vector_registers": 32})


@dataclass(frozen=True)
class Sizes:
    """Of one attention; batch and tokens are of the call."""

    heads: int = 4
    kv_heads: int = 2
    context: int = 80
    width: int = 8
    value_width: int = 8


@cache
def kernel(sizes: Sizes, options: Attention, target: Any = BASELINE) -> Any:
    func = cached_attention(
        None,
        sizes.heads,
        sizes.kv_heads,
        sizes.context,
        sizes.width,
        sizes.value_width,
        options,
    )
    fast, rule = schedule(func, target)
    assert rule == "cached_attention"
    return build(fast, BASELINE)


def check(
    sizes: Sizes, options: Attention, position: list[int], tokens: int, target: Any = BASELINE
) -> None:
    """The kernel against NumPy for rows that hold `position` tokens."""
    rng = np.random.default_rng([tokens, *position])
    batch, held = len(position), (len(position), sizes.kv_heads, sizes.context)
    query = rng.standard_normal((batch, sizes.heads, tokens, sizes.width)).astype("float32")
    keys = rng.standard_normal((*held, sizes.width)).astype("float32")
    values = rng.standard_normal((*held, sizes.value_width)).astype("float32")
    for row, start in enumerate(position):
        end = start + (0 if options.across else tokens)
        keys[row, :, end:] = values[row, :, end:] = np.nan
    extra = {}
    if options.bias:
        extra["bias"] = rng.standard_normal((sizes.heads, sizes.context)).astype("float32")
    if options.sinks:
        extra["sinks"] = rng.standard_normal(sizes.heads).astype("float32")
    inputs = [query, keys, values, np.array(position), *extra.values()]
    shape = (batch, tokens, sizes.heads, sizes.value_width)
    found = run(kernel(sizes, options, target), inputs, shape)
    assert_close(found, expected(query, keys, values, position, options, **extra))


def expected(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    position: list[int],
    options: Attention,
    bias: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    rows, heads, tokens, _ = query.shape
    out = np.zeros((rows, tokens, heads, values.shape[-1]))
    for row, i, head in np.ndindex(rows, tokens, heads):
        end = position[row] + (0 if options.across else i + 1)
        first = max(0, end - options.window) if options.window else 0
        held = head // (heads // keys.shape[1])
        seen = keys[row, held, first:end].astype(float)
        score = seen @ query[row, head, i].astype(float) * options.scale
        if options.softcap:
            score = np.tanh(score / options.softcap) * options.softcap
        if bias is not None:
            score += bias[head, np.arange(end - first)[::-1]]
        weight = np.exp(score if sinks is None else np.append(score, sinks[head]))
        weight /= weight.sum()
        out[row, i, head] = weight[: end - first] @ values[row, held, first:end].astype(float)
    return out


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        (Sizes(heads=6, kv_heads=2), Attention(0.3)),
        (Sizes(heads=4, kv_heads=1, width=7, value_width=5), Attention(0.3, window=5)),
        (Sizes(width=12), Attention(0.3, softcap=2.0, bias=True, sinks=True)),
    ],
    ids=["grouped", "one key head, odd widths, window", "softcap, bias, sinks"],
)
def test_rows_of_different_lengths_attend_to_their_own_tokens(
    sizes: Sizes, options: Attention
) -> None:
    for position, tokens in (([0], 1), ([63], 1), ([64], 1), ([0, 70, 3], 3), ([11], 69)):
        check(sizes, options, position, tokens)


@pytest.mark.slow
def test_every_token_sees_the_whole_source_of_its_row_across() -> None:
    sizes, options = Sizes(heads=6, kv_heads=2, context=70), Attention(0.3, across=True)
    for length, tokens in (([1], 1), ([70], 1), ([64, 65, 3], 3), ([11], 69)):
        check(sizes, options, length, tokens)
    for length in (0, 71):
        with pytest.raises(RuntimeError, match=NO_SOURCE):
            check(sizes, options, [5, length], 2)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_attention_is_right(data: st.DataObject) -> None:
    kv_heads = data.draw(st.sampled_from([1, 2, 3]))
    sizes = Sizes(
        heads=kv_heads * data.draw(st.sampled_from([1, 3, 4, 7])),
        kv_heads=kv_heads,
        context=data.draw(st.sampled_from([1, 17, 64, 131])),
        width=data.draw(st.sampled_from([1, 7, 16, 40])),
        value_width=data.draw(st.sampled_from([1, 5, 16, 48])),
    )
    options = Attention(
        scale=0.3,
        softcap=data.draw(st.sampled_from([0.0, 3.0])),
        window=data.draw(st.sampled_from([0, 1, 9, 65])),
        bias=data.draw(st.booleans()),
        sinks=data.draw(st.booleans()),
    )
    tokens = data.draw(st.integers(1, sizes.context))
    rows = data.draw(st.integers(1, 3))
    position = [data.draw(st.integers(0, sizes.context - tokens)) for _ in range(rows)]
    check(sizes, options, position, tokens, data.draw(st.sampled_from([BASELINE, WIDE])))


def test_what_an_attention_keeps_does_not_grow_with_the_context() -> None:
    fast, _ = schedule(cached_attention(1, 8, 2, 4096, 64, 64, Attention(0.1)), BASELINE)
    sizes: list[int] = []

    def visit(node: Any) -> None:
        buffer = node.buffer
        sizes.append(4 * int(np.prod([int(size) for size in buffer.ty.shape])))

    tvm_ffi.structural_walk(fast.body, (tvm.tirx.AllocBuffer, visit))
    assert sizes
    assert max(sizes) <= STACK_BYTES


def test_an_update_writes_the_new_tokens_and_nothing_else() -> None:
    fast, rule = schedule(cache_update(None, 3, 16, 11), BASELINE)
    assert rule == "cached_attention"
    update = build(fast)
    new = np.random.default_rng(0).standard_normal((2, 3, 2, 11)).astype("float32")
    state = tvm.runtime.tensor(np.full((2, 3, 16, 11), 7.0, "float32"))
    update(state, tvm.runtime.tensor(new), tvm.runtime.tensor(np.array([3, 14])))
    wanted = np.full((2, 3, 16, 11), 7.0, "float32")
    wanted[0, :, 3:5], wanted[1, :, 14:] = new
    assert np.array_equal(state.numpy(), wanted)
    for position in ([0, 15], [-1, 0]):
        with pytest.raises(RuntimeError, match=OVERFLOW.replace("+", r"\+")):
            update(state, tvm.runtime.tensor(new), tvm.runtime.tensor(np.array(position)))
