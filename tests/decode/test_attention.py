"""The plain kernels of the cache, against NumPy in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from tapml_stages.attention import OVERFLOW, Attention, cache_update, cached_attention
from tapml_stages.compat import tvm

BATCH, HEADS, KV_HEADS, CONTEXT, WIDTH, VALUE_WIDTH, N = 3, 4, 2, 16, 8, 6, 3
POSITION = np.array([0, 5, 13])  # empty, half full, full after this call
OPTIONS = {
    "plain": Attention(0.35),
    "window": Attention(0.35, window=4),
    "softcap": Attention(0.35, softcap=1.5),
    "bias and sinks": Attention(0.35, bias=True, sinks=True),
}


def compiled(func: Any) -> Any:
    func = func.with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": func}), target="llvm")["kernel"]


def attended(arrays: dict[str, np.ndarray], options: Attention) -> np.ndarray:
    """[batch, n, heads, value width] in float64, every token's slots picked by hand."""
    query, keys, values = (arrays[one].astype("float64") for one in ("query", "keys", "values"))
    out = np.zeros((BATCH, N, HEADS, VALUE_WIDTH))
    for b, i, h in np.ndindex(BATCH, N, HEADS):
        at = POSITION[b] + i
        seen = np.arange(max(0, at - options.window + 1) if options.window else 0, at + 1)
        scores = keys[b, h // (HEADS // KV_HEADS), seen] @ query[b, h, i] * options.scale
        if options.softcap:
            scores = options.softcap * np.tanh(scores / options.softcap)
        if options.bias:
            scores = scores + arrays["bias"][h, at - seen]
        rest = np.exp(float(arrays["sinks"][h])) if options.sinks else 0.0
        weights = np.exp(scores) / (np.exp(scores).sum() + rest)
        out[b, i, h] = weights @ values[b, h // (HEADS // KV_HEADS), seen]
    return out


@pytest.mark.parametrize("batch", [BATCH, None], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_attention_sees_exactly_the_tokens_before_each_one(name: str, batch: int | None) -> None:
    options = OPTIONS[name]
    rng = np.random.default_rng(len(name))
    arrays = {
        "query": rng.standard_normal((BATCH, HEADS, N, WIDTH)),
        "keys": rng.standard_normal((BATCH, KV_HEADS, CONTEXT, WIDTH)),
        "values": rng.standard_normal((BATCH, KV_HEADS, CONTEXT, VALUE_WIDTH)),
        **({"bias": rng.standard_normal((HEADS, CONTEXT))} if options.bias else {}),
        **({"sinks": rng.standard_normal(HEADS)} if options.sinks else {}),
    }
    arrays = {key: array.astype("float32") for key, array in arrays.items()}
    expected = attended(arrays, options)
    for b in range(BATCH):  # what lies past the last token must not matter
        arrays["keys"][b, :, POSITION[b] + N :] = np.nan
        arrays["values"][b, :, POSITION[b] + N :] = np.nan
    func = cached_attention(batch, HEADS, KV_HEADS, CONTEXT, WIDTH, VALUE_WIDTH, options)
    assert Attention.of(func) == options
    out = tvm.runtime.tensor(np.full(expected.shape, np.nan, "float32"))
    query, keys, values = (tvm.runtime.tensor(arrays.pop(one)) for one in list(arrays)[:3])
    rest = [tvm.runtime.tensor(one) for one in arrays.values()]
    compiled(func)(query, keys, values, tvm.runtime.tensor(POSITION), *rest, out)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=2e-6)


def test_an_update_writes_its_slots_and_no_other() -> None:
    rng = np.random.default_rng(0)
    state = rng.standard_normal((BATCH, KV_HEADS, CONTEXT, WIDTH)).astype("float32")
    new = rng.standard_normal((BATCH, KV_HEADS, N, WIDTH)).astype("float32")
    expected = state.copy()
    for b, start in enumerate(POSITION):
        expected[b, :, start : start + N] = new[b]
    held = tvm.runtime.tensor(state)
    run = compiled(cache_update(BATCH, KV_HEADS, CONTEXT, WIDTH))
    run(held, tvm.runtime.tensor(new), tvm.runtime.tensor(POSITION))
    np.testing.assert_array_equal(held.numpy(), expected)
    for bad in ([0, 5, 14], [0, -1, 0]):
        with pytest.raises(RuntimeError, match=OVERFLOW.replace("+", r"\+")):
            run(held, tvm.runtime.tensor(new), tvm.runtime.tensor(np.array(bad)))


def test_equal_kernels_are_one_function() -> None:
    options = Attention(0.35)
    sizes = (2, HEADS, KV_HEADS, CONTEXT, WIDTH, VALUE_WIDTH)
    same = cached_attention(*sizes, options)
    other = cached_attention(*sizes, replace(options, window=4))
    assert cached_attention(*sizes, Attention(0.35)) is same
    assert not tvm_ffi.structural_equal(same, other)
