"""A 1x1 convolution and the depthwise one behind it as one kernel, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import asm
from rules.kernels import BASELINE, assert_close, conv_reference, randoms, run, window

from tapml_stages.compat import tvm
from tapml_stages.tensorir import te_ops
from tapml_stages.tensorir.rules.pointwise_depthwise import pointwise_depthwise
from tapml_stages.tensorir.schedule import schedule

te, tirx = tvm.te, tvm.tirx


def pair(
    batch: int, blocks: tuple[int, int], size: tuple[int, int], taps: int, slide: te_ops.Window
) -> tuple[Any, list[tuple[int, ...]]]:
    """The PrimFunc of relu(x · w + b), padded and convolved lane by lane, + c, and its shapes."""
    inner, outer = blocks
    shapes = [
        (batch, inner, *size, 8),
        (outer, inner, 1, 1, 8, 8),
        (1, outer, 1, 1, 8),
        (outer, taps, taps, 8),
        (1, outer, 1, 1, 8),
    ]

    x, w, b, d, c = (te.placeholder(shape) for shape in shapes)
    y = te_ops.conv(x, w, window(2))
    y = te.compute(
        y.shape, lambda n, o, h, p, v: tirx.max(y[n, o, h, p, v] + b[0, o, 0, 0, v], 0.0)
    )
    z = te_ops.depthwise(y, d, slide)
    z = te.compute(z.shape, lambda n, o, h, p, v: z[n, o, h, p, v] + c[0, o, 0, 0, v])
    return te.create_prim_func([x, w, b, d, c, z]), shapes


def expected(arrays: list[np.ndarray], stride: int, pad: int) -> np.ndarray:
    x, w, b, d, c = arrays
    between = np.maximum(conv_reference(x, w) + b, 0)
    return conv_reference(between, d, stride, pad, depthwise=True) + c


@pytest.mark.parametrize(
    ("size", "taps", "stride"),
    [((9, 13), 3, 2), ((8, 12), 3, 3)],  # the latter leaves out the last pixels
)
def test_a_pair_is_right_at_edges(size: tuple[int, int], taps: int, stride: int) -> None:
    func, shapes = pair(2, (2, 3), size, taps, window(2, stride, taps // 2))
    fast, rule = schedule(func, BASELINE)
    assert rule == "pointwise_depthwise"
    arrays = randoms(*shapes)
    wanted = expected(arrays, stride, taps // 2)
    assert_close(run(fast, arrays, wanted.shape), wanted)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 70),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    taps=st.sampled_from([1, 2, 3, 5]),
    stride=st.integers(1, 3),
    pad=st.integers(1, 2),
)
def test_any_pair_is_right(
    height: int, width: int, blocks: tuple[int, int], taps: int, stride: int, pad: int
) -> None:
    if min(height, width) + 2 * pad < taps:
        return
    func, shapes = pair(1, blocks, (height, width), taps, window(2, stride, pad))
    arrays = randoms(*shapes)
    wanted = expected(arrays, stride, pad)
    assert_close(run(schedule(func, BASELINE)[0], arrays, wanted.shape), wanted)


def test_a_window_of_several_taps_before_it_is_left_to_its_own_kernel() -> None:
    x, w = te.placeholder((1, 1, 8, 8, 8)), te.placeholder((2, 1, 3, 3, 8, 8))
    d = te.placeholder((2, 3, 3, 8))
    y = te_ops.depthwise(te_ops.conv(x, w, window(2, pad=1)), d, window(2, pad=1))
    func = te.create_prim_func([x, w, d, y])
    assert pointwise_depthwise(func, BASELINE) is None


def test_both_parts_run_on_vectors_in_parallel() -> None:
    func, _ = pair(1, (2, 4), (64, 64), 3, window(2, pad=1))
    facts = asm.facts(schedule(func, BASELINE)[0], BASELINE)
    assert facts.innermost_fma >= 4
    assert facts.parallel
