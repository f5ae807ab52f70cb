"""Pools of plain tensors against float64: strides, padding, dilation, one to three axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.kernels import BASELINE, assert_close, lower, randoms, run

from tapml_stages.compat import tvm
from tapml_stages.tensorir.schedule import schedule

op, tirx = tvm.relax.op, tvm.tirx


def reference(
    kind: str,
    x: np.ndarray,
    size: int,
    stride: int,
    pad: int,
    dilation: int,
    ceil: bool,
    whole: bool,
) -> np.ndarray:
    """`whole`: padding counts in a mean."""
    rank = x.ndim - 2
    span = (size - 1) * dilation + 1
    rest = [(stride - (n + 2 * pad - span) % stride) % stride if ceil else 0 for n in x.shape[2:]]
    around = [(0, 0), (0, 0), *((pad, pad + more) for more in rest)]
    fill = -np.inf if kind == "max" else 0.0
    axes = tuple(range(2, rank + 2))

    def windows(values: np.ndarray, outside: float) -> np.ndarray:
        padded = np.pad(values.astype("float64"), around, constant_values=outside)
        found = np.lib.stride_tricks.sliding_window_view(padded, [span] * rank, axis=axes)
        found = found[(slice(None), slice(None), *(slice(None, None, stride),) * rank)]
        return found[(..., *(slice(None, None, dilation),) * rank)]

    taps = tuple(range(-rank, 0))
    if kind == "max":
        return windows(x, fill).max(taps)
    count = size**rank if whole else windows(np.ones_like(x), 0.0).sum(taps)
    return windows(x, fill).sum(taps) / count


def check(
    kind: str,
    shape: tuple[int, ...],
    size: int,
    stride: int,
    pad: int = 0,
    dilation: int = 1,
    *,
    ceil: bool = False,
    whole: bool = False,
    vector_bits: int = 256,
) -> None:
    rank = len(shape) - 2
    function = getattr(op.nn, f"{kind}_pool{rank}d")

    def build(_: Any, x: Any) -> Any:
        window = [[n] * rank for n in (size, stride, pad, dilation)]
        return op.negative(function(x, *window, ceil, whole))

    target = BASELINE.model_copy(update={"vector_bits": vector_bits})
    func, rule = schedule(lower(build, shape), target)
    assert rule == "pool"
    (x,) = randoms(shape)
    expected = -reference(kind, x, size, stride, pad, dilation, ceil, whole)
    assert_close(run(func, [x], expected.shape), expected)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_pool_of_a_plain_image_is_right(data: st.DataObject) -> None:
    draw = data.draw
    size, dilation = draw(st.integers(2, 4)), draw(st.integers(1, 2))
    least = (size - 1) * dilation + 1
    sizes = [draw(st.integers(least + 3, 40)) for _ in range(2)]
    check(
        draw(st.sampled_from(["max", "avg"])),
        (2, 3, *sizes),
        size,
        draw(st.integers(1, 3)),
        draw(st.integers(0, size // 2)),
        dilation,
        whole=draw(st.booleans()),
        vector_bits=draw(st.sampled_from([128, 256, 512])),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("shape", [(2, 3, 37), (1, 2, 9, 8, 11)])
def test_sequences_and_volumes_are_pooled_in_vectors(kind: str, shape: tuple[int, ...]) -> None:
    check(kind, shape, 3, 2, 1)


@pytest.mark.slow
def test_windows_may_reach_past_the_end() -> None:
    check("max", (1, 4, 14, 15), 3, 2, ceil=True)


def test_a_pool_is_made_in_lines() -> None:
    func, rule = schedule(
        lower(lambda _, x: op.nn.max_pool2d(x, 3, 2, 1), (1, 4, 32, 32)), BASELINE
    )
    assert rule == "pool"
    assert "T.Shuffle" in func.script()
