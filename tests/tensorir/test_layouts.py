"""Layouts that are no whole blocks of channels, through the room and against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import V3, graph, lowered_runner, random_weights, rx
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.kernels import assert_close

from tapml_stages.program import Program
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records
from tapml_stages.tensorir.te_ops import Band

op = rx.op
CONVOLUTIONS = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}
WIDE = V3.model_copy(update={"vector_bits": 512, "vector_registers": 32})
SLOW_RULES = {"rows", "columns", "fallback"}


def convolve(
    x: np.ndarray, w: np.ndarray, groups: int, stride: int, pad: int, dilation: int
) -> np.ndarray:
    """A convolution of plain tensors in float64."""
    rank = x.ndim - 2
    x = np.pad(x.astype("float64"), [(0, 0), (0, 0), *[(pad, pad)] * rank])
    span = [(size - 1) * dilation + 1 for size in w.shape[2:]]
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=tuple(range(2, rank + 2)))
    steps = (slice(None, None, stride),) * rank
    windows = windows[(slice(None), slice(None), *steps)]
    windows = windows[(..., *(slice(None, None, dilation),) * rank)]
    parts = zip(np.split(windows, groups, 1), np.split(w.astype("float64"), groups), strict=True)
    axes = ([1, *range(rank + 2, 2 * rank + 2)], [1, *range(2, rank + 2)])
    return np.concatenate(
        [np.moveaxis(np.tensordot(part, own, axes), -1, 1) for part, own in parts], 1
    )


def built(program: Program, target: Any = V3) -> tuple[Any, set[str], list[np.ndarray]]:
    """A runner of the program with default schedules, the rules that made them, its weights."""
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    result = lower(program.with_mod(mod), target)
    records = default_records(result.mod, target)
    weights = random_weights(program)
    return lowered_runner(result, weights, records), {one.rule for one in records}, weights


def check_convolution(
    groups: int,
    inner: int,
    outer: int,
    sizes: Sequence[int],
    *,
    taps: int = 3,
    stride: int = 1,
    dilation: int = 1,
    target: Any = V3,
) -> None:
    rank, pad = len(sizes), dilation * (taps // 2)
    program = graph(
        lambda emit, x, w: op.nn.relu(
            emit(CONVOLUTIONS[rank](x, w, stride, pad, dilation, groups=groups))
        ),
        {"x": (2, groups * inner, *sizes)},
        {"w": (groups * outer, inner, *[taps] * rank)},
    )
    call, rules, (w,) = built(program, target)
    x = np.random.default_rng(inner).uniform(-1, 1, (2, groups * inner, *sizes)).astype("float32")
    expected = np.maximum(convolve(x, w, groups, stride, pad, dilation), 0)
    assert_close(call(x), expected)
    assert not rules & SLOW_RULES


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    groups=st.integers(2, 6),
    inner=st.integers(1, 12),
    outer=st.integers(1, 12),
    taps=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
)
def test_groups_may_cut_the_blocks_of_channels(
    groups: int, inner: int, outer: int, taps: int, stride: int, dilation: int
) -> None:
    options = {"taps": taps, "stride": stride, "dilation": dilation}
    check_convolution(groups, inner, outer, (7, 10), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "inner", "outer"), [(8, 4, 4), (4, 16, 16), (3, 32, 48), (4, 6, 6), (4, 20, 20)]
)
def test_groups_are_right_in_wide_vectors(groups: int, inner: int, outer: int) -> None:
    check_convolution(groups, inner, outer, (9, 11), target=WIDE)


@given(
    groups=st.integers(2, 9),
    inner=st.integers(1, 40),
    outer=st.integers(1, 40),
    lanes=st.sampled_from([4, 8, 16]),
)
def test_a_band_holds_every_channel_that_its_outputs_read(
    groups: int, inner: int, outer: int, lanes: int
) -> None:
    band = Band(groups, inner, outer, lanes)
    for out in range(groups * outer):
        first = band.first(out // lanes) * lanes
        own = out // outer * inner
        assert first <= own
        assert own + inner <= first + band.blocks * lanes
    last = -(-groups * outer // lanes) - 1
    assert band.first(last) + band.blocks <= -(-groups * inner // lanes)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "inner", "outer"), [(1, 12, 20), (4, 4, 4), (6, 1, 1)])
@pytest.mark.parametrize("sizes", [(19,), (5, 6, 7)])
def test_sequences_and_volumes_run_in_blocks(
    groups: int, inner: int, outer: int, sizes: tuple[int, ...]
) -> None:
    check_convolution(groups, inner, outer, sizes, stride=2)
    check_convolution(groups, inner, outer, sizes, dilation=2)
