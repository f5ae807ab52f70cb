"""Windows that slide over images of symbolic height and width: borders, one pixel, one line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rules import kernels
from rules.kernels import BASELINE, assert_close, conv_reference, randoms, run, window

from tapml_stages.compat import tvm
from tapml_stages.tensorir import te_ops
from tapml_stages.tensorir.borders import borders, share_inside
from tapml_stages.tensorir.kernel import read
from tapml_stages.tensorir.schedule import schedule

te, tirx = tvm.te, tvm.tirx
WINDOWS = ((3, 1, 1), (3, 2, 1), (5, 1, 2), (1, 1, 0), (3, 1, 0), (7, 2, 3))  # taps, stride, pad


def placed(sizes: Sequence[Any], taps: int, stride: int, pad: int, *, depthwise: bool) -> Any:
    """An unscheduled convolution of 16 channels over an image of these sizes."""

    def tensor(*shape: Any) -> Any:
        return te.placeholder(
            [tirx.const(size, "int64") if isinstance(size, int) else size for size in shape]
        )

    slide = window(2, stride, pad)
    x = tensor(1, 2, *sizes, 8)
    w = tensor(2, taps, taps, 8) if depthwise else tensor(3, 2, taps, taps, 8, 8)
    y = te_ops.depthwise(x, w, slide) if depthwise else te_ops.conv(x, w, slide)
    return te.create_prim_func([x, w, y])


@cache
def built(taps: int, stride: int, pad: int, depthwise: bool) -> Any:
    sizes = [tirx.Var(name, "int64") for name in ("h", "w")]
    func = placed(sizes, taps, stride, pad, depthwise=depthwise)
    scheduled, rule = schedule(func, BASELINE)
    assert rule == ("depthwise" if depthwise else "conv")
    assert not scheduled.body.block.alloc_buffers  # nothing of the whole input's size
    return kernels.build(scheduled)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    slide=st.sampled_from(WINDOWS),
    depthwise=st.booleans(),
    height=st.integers(1, 20),
    width=st.integers(1, 40),
)
def test_convolutions_are_right_at_every_size(
    slide: tuple[int, int, int], depthwise: bool, height: int, width: int
) -> None:
    taps, stride, pad = slide
    assume(min(height, width) + 2 * pad >= taps)
    shape = (2, taps, taps, 8) if depthwise else (3, 2, taps, taps, 8, 8)
    x, w = randoms((1, 2, height, width, 8), shape, seed=100 * height + width)
    expected = conv_reference(x, w, stride, pad, depthwise=depthwise)
    assert_close(run(built(*slide, depthwise), [x, w], expected.shape), expected)


@pytest.mark.parametrize(("taps", "stride", "pad"), WINDOWS)
def test_within_the_borders_no_padding_is_read(taps: int, stride: int, pad: int) -> None:
    kernel = read(placed((11, 9), taps, stride, pad, depthwise=True))
    assert kernel is not None
    anchor = kernel.reductions[0]
    found = borders(kernel, anchor)
    if not pad:
        assert found is None
        return
    assert found is not None
    spans = [found.inside[key_of(axis)] for axis in anchor.axes[2:4]]
    for (first, last), size in zip(spans, (11, 9), strict=True):
        count = (size + 2 * pad - taps) // stride + 1
        clear = [o for o in range(count) if o * stride >= pad and o * stride - pad + taps <= size]
        assert (first, last) == (clear[0], clear[-1] + 1)
    sizes = [axis.extent for axis in anchor.axes[2:4]]
    inside = np.prod([last - first for first, last in spans])
    assert share_inside(found, anchor) == pytest.approx(inside / np.prod(sizes))


def key_of(axis: Any) -> int:
    return int(axis.var.__chandle__())
