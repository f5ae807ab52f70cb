"""Operators that the tensorir room lowers itself, through the room and against NumPy or torch's
definition: sorts, running sums, group norm, transposed convolutions.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.kernels import BASELINE, assert_close

from tapml_stages.compat import tvm
from tapml_stages.softplus import softplus
from tapml_stages.target import tvm_target
from tapml_stages.tensorir.group_norm import lower_group_norm
from tapml_stages.tensorir.layout import block_layout
from tapml_stages.tensorir.ordering import lower_ordering
from tapml_stages.tensorir.schedule import schedule

relax, tirx = tvm.relax, tvm.tirx
op = relax.op
B, N = (tirx.Var(name, "int64") for name in ("b", "n"))


def machine(
    build: Any, *shapes: Any, lowering: Any, inputs: int = 1, dtype: str = "float32"
) -> Any:
    """A VM of a function of `inputs` inputs and then weights, all kernels scheduled by rules."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(s, dtype)) for i, s in enumerate(shapes)]
    with builder.function("main", params, attrs={"num_input": inputs}):
        with builder.dataflow():
            out = builder.emit_output(build(builder.emit, *params))
        builder.emit_func_output(out)
    mod = relax.transform.LegalizeOps()(lowering(builder.get()))
    for var, func in mod.functions.items():
        if isinstance(func, tirx.PrimFunc):
            mod.update_func(var, schedule(func, BASELINE)[0])
    vm = relax.VirtualMachine(tvm.compile(mod, tvm_target(BASELINE)), tvm.cpu())

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        result = vm["main"](*(tvm.runtime.tensor(np.array(a, order="C")) for a in arrays))
        results = [result] if hasattr(result, "numpy") else list(result)
        return [one.numpy() for one in results]

    return call


@pytest.fixture(scope="module")
def largest() -> dict[str, Any]:
    """By counting, where a row's length is known, and by merging."""
    return {
        kind: machine(
            lambda emit, x: emit(op.topk(x, 3, axis=-1, ret_type="both", largest=True)),
            (B, size),
            lowering=lower_ordering,
        )
        for kind, size in (("counted", 17), ("merged", N))
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), size=st.integers(3, 70), seed=st.integers(0, 99))
def test_the_largest_come_in_order_ties_by_index_and_nan_first(
    largest: dict[str, Any], rows: int, size: int, seed: int
) -> None:
    assert_ordered(largest["merged"], (rows, size), seed)
    assert_ordered(largest["counted"], (rows, 17), seed)


def assert_ordered(largest: Any, shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, size = shape
    x = rng.integers(0, 6, (rows, size)).astype("float32")
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf
    keys = np.where(np.isnan(x), np.inf, x)
    order = np.argsort(-keys, axis=-1, kind="stable")[:, :3]
    values, indices = largest(x)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


@pytest.mark.slow
def test_a_long_row_is_sorted_in_few_comparisons() -> None:
    sort = machine(
        lambda emit, a: emit(op.argsort(a, axis=-1, dtype="int32")),
        (1, 100_000),
        lowering=lower_ordering,
    )
    x = np.random.default_rng(0).random((1, 100_000)).astype("float32")
    start = time.perf_counter()
    (found,) = sort(x)
    assert time.perf_counter() - start < 5  # n² comparisons took a minute, these 50 ms
    np.testing.assert_array_equal(found, np.argsort(x, kind="stable"))


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("descending", [False, True])
def test_sorts_go_along_any_axis(axis: int, descending: bool) -> None:
    x = np.random.default_rng(axis).integers(0, 9, (7, 5)).astype("float32")
    sort = machine(
        lambda emit, a: emit(op.sort(a, axis=axis, descending=descending)),
        (N, B),
        lowering=lower_ordering,
    )
    places = machine(
        lambda emit, a: emit(op.argsort(a, axis=axis, descending=descending, dtype="int64")),
        (N, B),
        lowering=lower_ordering,
    )
    order = np.argsort(-x if descending else x, axis=axis, kind="stable")
    np.testing.assert_array_equal(places(x)[0], order)
    np.testing.assert_array_equal(sort(x)[0], np.take_along_axis(x, order, axis))


def test_running_sums_count_booleans_and_take_symbolic_sizes() -> None:
    x = np.random.default_rng(0).random((3, 11)) < 0.5
    count = machine(
        lambda emit, a: emit(op.cumsum(a, axis=-1, dtype="int64")),
        (B, N),
        lowering=lower_ordering,
        dtype="bool",
    )
    np.testing.assert_array_equal(count(x)[0], np.cumsum(x, -1))


def test_group_norm_keeps_its_digits_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 12, 5, 7)) + 1000).astype("float32")
    gamma, beta = rng.standard_normal((2, 12)).astype("float32")
    norm = machine(
        lambda emit, a, g, b: emit(
            op.nn.group_norm(a, g, b, num_groups=3, channel_axis=1, axes=[2, 3], epsilon=1e-5)
        ),
        (B, 12, 5, 7),
        (12,),
        (12,),
        lowering=lower_group_norm,
    )
    groups = x.astype("float64").reshape(2, 3, -1)
    mean, var = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    expected = expected * gamma[:, None, None] + beta[:, None, None]
    # the mean of numbers near 1000 is off by a few of their last digits (6e-5 each)
    assert_close(norm(x, gamma, beta)[0], expected, 2e-4)


@pytest.mark.slow
def test_half_precision_stays_and_groups_are_summed_in_single() -> None:
    def build(emit: Any, x: Any, w: Any, gamma: Any, beta: Any) -> Any:
        y = emit(op.nn.conv2d(x, w, padding=1))
        norm = op.nn.group_norm(y, gamma, beta, num_groups=2, channel_axis=1, axes=[2, 3])
        return emit(norm)

    rng = np.random.default_rng(0)
    x, w = (rng.uniform(0, 8, s).astype("float16") for s in ((2, 8, 16, 16), (16, 8, 3, 3)))
    gamma, beta = (rng.uniform(-1, 1, 16).astype("float16") for _ in range(2))
    norm = machine(
        build,
        *(a.shape for a in (x, w, gamma, beta)),
        lowering=lambda mod: block_layout(lower_group_norm(mod), 8),
        dtype="float16",
    )
    (found,) = norm(x, w, gamma, beta)
    padded = np.pad(x.astype("float64"), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    groups = np.einsum("nchwrq,ocrq->nohw", windows, w.astype("float64")).reshape(2, 2, -1)
    mean, std = groups.mean(-1, keepdims=True), groups.std(-1, keepdims=True)
    expected = ((groups - mean) / std).reshape(2, 16, 16, 16)
    expected = expected * gamma[:, None, None] + beta[:, None, None]
    assert found.dtype == "float16"
    # a product of 72 terms summed in half precision is off by a few of its 11 bits
    assert_close(found, expected, 2e-2)


@pytest.mark.parametrize(
    ("inner", "outer", "window", "stride", "pad", "extra"),
    [
        (3, 9, 5, 1, 2, 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (8, 16, 2, 2, 0, 0),
                (8, 8, 3, 2, 1, 1),
                (4, 1, 3, 3, 0, 0),
                (12, 5, 4, 2, 1, 0),
            )
        ),
    ],
)
def test_transposed_convolutions_of_any_window_are_right(
    inner: int, outer: int, window: int, stride: int, pad: int, extra: int
) -> None:
    rng = np.random.default_rng(window)
    x = rng.standard_normal((2, inner, 5, 6)).astype("float32")
    w = rng.standard_normal((inner, outer, window, window)).astype("float32")
    call = machine(
        lambda emit, a, b: emit(
            op.nn.conv2d_transpose(
                a, b, strides=stride, padding=pad, output_padding=extra, kernel_layout="IOHW"
            )
        ),
        (B, *x.shape[1:]),
        w.shape,
        lowering=lambda mod: block_layout(mod, 8),
    )
    full = np.zeros((2, outer, *((s - 1) * stride + window + extra for s in x.shape[2:])))
    for i, j in np.ndindex(*x.shape[2:]):
        here = np.s_[:, :, i * stride : i * stride + window, j * stride : j * stride + window]
        full[here] += np.einsum("nc,corq->norq", x[:, :, i, j].astype("float64"), w)
    end = [size - pad for size in full.shape[2:]]
    expected = full[:, :, pad : end[0], pad : end[1]]
    assert_close(call(x, w)[0], expected)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_softplus_keeps_its_relative_precision_and_nan(beta: float) -> None:
    def legalized(mod: Any) -> Any:
        return relax.transform.LegalizeOps({"relax.nn.softplus": softplus})(mod)

    call = machine(lambda emit, x: emit(op.nn.softplus(x, beta)), (N,), lowering=legalized)
    x = np.linspace(-40, 80, 1203, dtype="float32")  # exp of ours is 0 below -86
    wide = beta * x.astype("float64")
    expected = (np.maximum(wide, 0) + np.log1p(np.exp(-np.abs(wide)))) / beta
    (found,) = call(x)
    assert np.abs(found / expected - 1).max() < 1e-6  # of exp: 3e-7
    (found,) = call(np.array([np.nan, np.inf, -np.inf], "float32"))
    np.testing.assert_array_equal(found, np.array([np.nan, np.inf, 0.0], "float32"))
