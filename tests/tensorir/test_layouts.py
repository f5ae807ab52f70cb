"""Layouts that are no whole blocks of channels, through the room and against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import V3, graph, lowered_runner, random_weights, run, rx
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


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "inner"), [(4, 4), (3, 6), (2, 16)])
def test_groups_work_on_images_of_symbolic_height(groups: int, inner: int) -> None:
    channels = groups * inner
    program = graph(
        lambda emit, x, w: op.nn.conv2d(x, w, 1, 1, groups=groups),
        {"x": (1, channels, "batch", 9)},
        {"w": (channels, inner, 3, 3)},
        batch=(1, 16),
    )
    call, rules, (w,) = built(program)
    assert not rules & SLOW_RULES
    for height in (1, 2, 7, 16):
        x = np.random.default_rng(height).uniform(-1, 1, (1, channels, height, 9))
        x = x.astype("float32")
        assert_close(call(x), convolve(x, w, groups, 1, 1, 1))


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("sizes", [(19,), (8, 9), (6, 7, 8)])
def test_pools_between_convolutions_stay_in_blocks(kind: str, sizes: tuple[int, ...]) -> None:
    rank = len(sizes)
    pool = getattr(op.nn, f"{kind}_pool{rank}d")

    def body(emit: Any, x: Any, w1: Any, w2: Any) -> Any:
        y = emit(CONVOLUTIONS[rank](x, w1, padding=1))
        y = emit(pool(y, [3] * rank, [2] * rank, [1] * rank))
        return CONVOLUTIONS[rank](y, w2)

    weights = {"w1": (12, 3, *[3] * rank), "w2": (8, 12, *[1] * rank)}
    program = graph(body, {"x": (2, 3, *sizes)}, weights)
    call, rules, values = built(program)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, *sizes)).astype("float32")
    assert_close(call(x), run(program.mod, [x], values), 1e-5)
    assert rules <= {"conv", "pool", "elementwise"}


@st.composite
def channels_last(draw: st.DrawFn) -> Program:
    """Networks in NHWC: by attributes, or by transposes around every operator."""
    weights: dict[str, tuple[int | str, ...]] = {}
    steps, width = [], 3
    kinds = ["conv", "wrapped", "depthwise", "pool", "bias", "join", "pad", "scale", "affine"]
    for k in range(draw(st.integers(2, 5))):
        kind, layout = draw(st.sampled_from(kinds)), draw(st.sampled_from(["HWIO", "OHWI"]))
        if kind in ("conv", "wrapped"):
            out = draw(st.sampled_from([6, 8, 24]))
            by_name = {"H": 3, "W": 3, "I": width, "O": out}
            layout = "OIHW" if kind == "wrapped" else layout
            weights[f"w{k}"] = tuple(by_name[axis] for axis in layout)
            width = out
        elif kind == "depthwise":
            weights[f"w{k}"] = (3, 3, width, 1)
        elif kind in ("bias", "affine"):
            weights[f"w{k}"] = (width,)
        steps.append((kind, k, layout, width))
        width = 2 * width if kind == "join" else width

    def body(emit: Any, x: Any, *values: Any) -> Any:
        named, y = dict(zip(weights, values, strict=True)), x
        for kind, k, layout, channels in steps:
            match kind:
                case "conv":
                    conv = op.nn.conv2d(
                        y, named[f"w{k}"], 1, 1, data_layout="NHWC", kernel_layout=layout
                    )
                    y = emit(op.nn.relu(emit(conv)))
                case "wrapped":
                    y = emit(op.permute_dims(y, [0, 3, 1, 2]))
                    y = emit(op.nn.conv2d(y, named[f"w{k}"], 1, 1))
                    y = emit(op.permute_dims(y, [0, 2, 3, 1]))
                case "depthwise":
                    options: Any = {"data_layout": "NHWC", "kernel_layout": "HWOI"}
                    conv = op.nn.conv2d(y, named[f"w{k}"], 1, 1, groups=channels, **options)
                    y = emit(conv)
                case "pool":
                    y = emit(op.nn.max_pool2d(y, 2, 1, layout="NHWC"))
                case "bias":
                    y = emit(op.add(y, named[f"w{k}"]))
                case "affine":
                    y = emit(op.divide(y, emit(op.exp(named[f"w{k}"]))))
                case "join":
                    y = emit(op.concat([y, emit(op.negative(y))], axis=3))
                case "pad":
                    y = emit(op.nn.pad(y, [0, 0, 1, 0, 0, 2, 0, 0]))
                case _:
                    y = emit(op.multiply(y, emit(op.mean(y, [1, 2], keepdims=True))))
        return op.add(y, rx.const(1.0))

    return graph(body, {"x": (2, 9, 8, 3)}, weights)


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(program=channels_last())
def test_networks_with_channels_last_keep_their_numbers(program: Program) -> None:
    call, _, weights = built(program)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 9, 8, 3)).astype("float32")
    assert_close(call(x), run(program.mod, [x], weights), 1e-5)


@pytest.mark.parametrize("wrapped", [True, False])
def test_no_transpose_is_left_between_convolutions_with_channels_last(wrapped: bool) -> None:
    def convolved(emit: Any, y: Any, w: Any, groups: int = 1) -> Any:
        if wrapped:
            y = emit(op.permute_dims(y, [0, 3, 1, 2]))
            w = emit(op.permute_dims(w, [3, 2, 0, 1]))
            y = emit(op.nn.conv2d(y, w, 1, 1, groups=groups))
            return emit(op.permute_dims(y, [0, 2, 3, 1]))
        layouts: Any = {"data_layout": "NHWC", "kernel_layout": "HWIO"}
        return emit(op.nn.conv2d(y, w, 1, 1, groups=groups, **layouts))

    def body(emit: Any, x: Any, w1: Any, w2: Any, w3: Any, b: Any) -> Any:
        y = emit(op.nn.relu(emit(op.add(convolved(emit, x, w1), b))))
        y = convolved(emit, y, w2, 16)
        y = emit(op.nn.max_pool2d(y, 2, 2, layout="NHWC"))
        return op.mean(emit(op.add(convolved(emit, y, w3), b)), [1, 2])

    weights = {"w1": (3, 3, 3, 16), "w2": (3, 3, 1, 16), "w3": (1, 1, 16, 16), "b": (16,)}
    program = graph(body, {"x": (1, 12, 12, 3)}, weights)
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    result = lower(program.with_mod(mod), V3)
    kernels = [row["kernel"] for row in result.groups["main"]]
    assert not any("transpose" in name for name in kernels)
    assert len([name for name in kernels if "reshape" not in name]) == 5
