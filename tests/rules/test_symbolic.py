"""Kernels whose vectors run over symbolic sizes, against float64: tails, one element, none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import kernels
from rules.kernels import BASELINE, assert_close, lower, randoms, run

from tapml_stages.compat import tvm
from tapml_stages.tensorir.schedule import schedule

op = tvm.relax.op
B, N, K = (tvm.tirx.Var(name, "int64") for name in ("b", "n", "k"))
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 37, 64])


def built(build: Any, *shapes: Any, rule: str) -> Any:
    scheduled, name = schedule(lower(build, *shapes), BASELINE)
    assert name == rule
    assert not scheduled.body.block.alloc_buffers  # nothing of the whole output's size
    return kernels.build(scheduled)


def shifted(bb: Any, x: Any, y: Any) -> Any:
    return op.nn.relu(op.add(op.matmul(x, y), tvm.relax.const(0.1, "float32")))


@pytest.fixture(scope="module")
def products() -> dict[str, Any]:
    return {
        "columns": built(shifted, (B, N, 12), (B, 12, N), rule="matmul"),
        "depth": built(shifted, (B, N, K), (B, K, 20), rule="matmul"),
        "all": built(lambda bb, x, y: op.matmul(x, y), (N, K), (K, N), rule="matmul"),
    }


@settings(max_examples=25, deadline=None, derandomize=True)
@given(kind=st.sampled_from(["columns", "depth", "all"]), n=SIZES, k=SIZES, batch=st.integers(1, 2))
def test_products_of_symbolic_sizes_are_right(
    products: dict[str, Any], kind: str, n: int, k: int, batch: int
) -> None:
    shapes: list[tuple[int, ...]] = {
        "columns": [(batch, n, 12), (batch, 12, n)],
        "depth": [(batch, n, k), (batch, k, 20)],
        "all": [(n, k), (k, n)],
    }[kind]
    x, y = randoms(*shapes, seed=n * 100 + k)
    expected = x.astype("float64") @ y
    if kind != "all":
        expected = np.maximum(expected + np.float32(0.1), 0)
    assert_close(run(products[kind], [x, y], expected.shape), expected)


@pytest.mark.slow
def test_few_columns_of_a_product_of_symbolic_depth_stay_in_their_rows() -> None:
    kernel = built(lambda bb, x, y: op.matmul(x, y), (6, K), (K, 5), rule="matmul")
    for depth in (1, 7, 12):
        x, y = randoms((6, depth), (depth, 5))
        assert_close(run(kernel, [x, y], (6, 5)), x.astype("float64") @ y)


@pytest.mark.slow
def test_a_product_without_columns_writes_nothing() -> None:
    kernel = built(lambda bb, x, y: op.matmul(x, y), (6, 4), (4, N), rule="matmul")
    memory = np.full(64, 7.0, "float32")
    first = 16 + -memory.ctypes.data % 64 // 4  # TVM takes aligned memory only
    out = np.lib.stride_tricks.as_strided(memory[first:], (6, 0), (0, 4))
    x, y = (tvm.runtime.tensor(array) for array in randoms((6, 4), (4, 0)))
    kernel(x, y, tvm.runtime.from_dlpack(out))
    assert (memory == 7.0).all()


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


ROWS = {
    "softmax": (lambda bb, x: op.nn.softmax(x), (B, N), lambda x: softmax(x, -1), "rows"),
    "row maximum": (lambda bb, x: op.max(x, axis=[-1]), (B, N), lambda x: x.max(-1), "rows"),
    "center": (
        lambda bb, x: op.subtract(x, op.mean(x, axis=[-1], keepdims=True)),
        (B, N),
        lambda x: x - x.mean(-1, keepdims=True),
        "rows",
    ),
    "column sum": (lambda bb, x: op.sum(x, axis=[0]), (B, N), lambda x: x.sum(0), "columns"),
    "softmax of columns": (
        lambda bb, x: op.nn.softmax(x, axis=0),
        (B, N),
        lambda x: softmax(x, 0),
        "columns",
    ),
}


@pytest.fixture(scope="module", params=ROWS)
def row_kernel(request: pytest.FixtureRequest) -> Any:
    build, shape, reference, rule = ROWS[request.param]
    return built(build, shape, rule=rule), reference


@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=st.sampled_from([1, 2, 5, 13]), columns=SIZES)
def test_reductions_over_symbolic_sizes_are_right(row_kernel: Any, rows: int, columns: int) -> None:
    kernel, reference = row_kernel
    (x,) = randoms((rows, columns), seed=columns)
    expected = np.asarray(reference(x.astype("float64")))
    assert_close(run(kernel, [x], expected.shape), expected)


@pytest.mark.parametrize("shape", [(B, 1, 40), (B, N, 40), (1, 1, 40)])
def test_a_norm_with_a_weight_for_each_element_is_computed_by_rows(shape: Any) -> None:
    """One token of each row of a batch too; TOPI casts the weight in a step of its own."""

    def normed(bb: Any, x: Any, w: Any) -> Any:
        return op.nn.rms_norm(x, w, [-1], 1e-5)

    scheduled, name = schedule(lower(normed, shape, (40,)), BASELINE)
    assert name == "rows"
    x, w = randoms((1, 1, 40), (40,), seed=5)
    scale = np.sqrt(np.mean(np.square(x.astype("float64")), -1, keepdims=True) + 1e-5)
    assert_close(run(kernels.build(scheduled), [x, w], x.shape), x / scale * w)


def test_elementwise_over_symbolic_sizes_is_right() -> None:
    def build(bb: Any, x: Any, mask: Any) -> Any:
        return op.add(op.multiply(x, tvm.relax.const(0.5, "float32")), mask)

    kernel = built(build, (B, 3, N, N), (1, 1, N, N), rule="elementwise")
    for n in (0, 1, 7, 8, 19):
        x, mask = randoms((2, 3, n, n), (1, 1, n, n))
        expected = x * 0.5 + mask
        found = run(kernel, [x, mask], x.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4, 9, 9), (1, 3, 5, 17)])
def test_softmax_over_channels_keeps_nothing_in_memory(shape: tuple[int, ...]) -> None:
    kernel = built(lambda bb, x: op.nn.softmax(x, axis=1), (B, *shape[1:]), rule="columns")
    (x,) = randoms(shape)
    assert_close(run(kernel, [x], shape), softmax(x.astype("float64"), 1))


def test_a_sum_over_positions_of_symbolic_number_is_right() -> None:
    kernel = built(lambda bb, x: op.sum(x, axis=[1]), (B, N, 21), rule="columns")
    for n in (0, 1, 7):
        (x,) = randoms((2, n, 21))
        expected = x.astype("float64").sum(1)
        assert_close(run(kernel, [x], expected.shape), expected)


def test_an_index_made_of_a_value_that_is_read_twice_is_right() -> None:
    """The index is put wherever the producer uses its axis."""
    te, size = tvm.te, 128
    x, y = te.placeholder((N,), "int64", name="x"), te.placeholder((size,), name="y")
    more = te.compute((N,), lambda i: x[i] * x[i] + 1, name="more")
    place = te.compute((N,), lambda i: more[i] * more[i], name="place")
    table = te.compute((size,), lambda k: y[k] + (k % 7).astype("float32") * k.astype("float32"))
    func = te.create_prim_func([x, y, te.compute((N,), lambda i: table[place[i]], name="out")])
    scheduled, rule = schedule(func, BASELINE)
    assert rule == "elementwise"
    kernel = kernels.build(scheduled)
    rng = np.random.default_rng(0)
    values, entries = rng.integers(0, 4, 21), rng.random(size).astype("float32")
    index = (values * values + 1) ** 2
    expected = entries[index].astype("float64") + index % 7 * index
    assert_close(run(kernel, [values, entries], (21,)), expected)
