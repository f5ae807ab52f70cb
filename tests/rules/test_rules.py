"""Every rule against float64: edges, primes, symbolic sizes, epilogues, on one and two threads,
outputs poisoned.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import asm, kernels
from rules.kernels import BASELINE, assert_close, conv_reference, lower, pack, randoms, run, window

from tapml_stages.compat import tvm
from tapml_stages.tensorir import loops, te_ops
from tapml_stages.tensorir.schedule import default_records, flops, schedule
from tapml_stages.tensorir.te_ops import Band

te, tirx = tvm.te, tvm.tirx
op = tvm.relax.op
erf = np.vectorize(__import__("math").erf)


def const(value: float) -> Any:
    return tvm.relax.const(value, "float32")


def scheduled(func: Any, rule: str) -> Any:
    """The scheduled kernel, which must come from `rule`."""
    result, name = schedule(func, BASELINE)
    assert name == rule
    return result


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 33, 48), (37, 50, 20), (13, 17, 7)])
def test_dense_with_gelu_and_residual_is_right_at_odd_sizes(m: int, k: int, n: int) -> None:
    def build(bb: Any, x: Any, w: Any, b: Any, r: Any) -> Any:
        return op.add(op.nn.gelu(op.add(kernels.dense(bb, x, w, n), b)), r)

    x, w, b, r = randoms((m, k), (k, n), (n,), (m, n))
    func = lower(build, x.shape, pack(w).shape, b.shape, r.shape)
    expected = gelu(x.astype("float64") @ w + b) + r
    assert_close(run(scheduled(func, "dense"), [x, pack(w), b, r], (m, n)), expected)


@pytest.mark.parametrize("vector_bits", [128, 256, 512])
def test_one_dense_binary_serves_every_number_of_rows(vector_bits: int) -> None:
    k, n = 24, 40
    target = BASELINE.model_copy(update={"vector_bits": vector_bits})
    m = tirx.Var("m", "int64")
    x, w = te.placeholder((m, k)), te.placeholder((3, k, 16))
    y = te_ops.dense(x, w, n)
    func = te.create_prim_func([x, w, te.compute(y.shape, lambda i, j: tirx.max(y[i, j], 0.0))])
    fast, rule = schedule(func, target)
    assert rule == "dense"
    kernel = kernels.build(fast)
    (weight,) = randoms((k, n))
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 31, 97, 113, 230):
        (data,) = randoms((rows, k))
        expected = np.maximum(data.astype("float64") @ weight, 0)
        assert_close(run(kernel, [data, pack(weight)], (rows, n)), expected)


def test_tiles_of_two_rows_leave_none_out() -> None:
    m, few = tirx.Var("m", "int64"), BASELINE.model_copy(update={"vector_bits": 128})
    x, w = te.placeholder((m, 24)), te.placeholder((2, 24, 16))
    func, _ = schedule(te.create_prim_func([x, w, te_ops.dense(x, w, 32)]), few)
    assert "T.alloc_buffer((2, 16))" in func.script()
    kernel, (weight,) = kernels.build(func), randoms((24, 32))
    for rows in (1, 2, 3, 4, 112, 114, 115):
        (data,) = randoms((rows, 24))
        expected = data.astype("float64") @ weight
        assert_close(run(kernel, [data, pack(weight)], (rows, 32)), expected)


def test_either_side_of_a_branch_may_hold_a_bare_if() -> None:
    c, d = (tirx.Var(name, "int64") for name in "cd")
    out = tirx.decl_buffer((4,), "float32", "out")

    def put(value: float) -> Any:
        return lambda i: loops.store(out, [i], tirx.const(value, "float32"))

    def side(i: Any, value: float) -> Any:
        return loops.when(d > 0, put(value)(i))

    body = loops.loop("i", 4, lambda i: loops.branch(c > 0, put(1)(i), side(i, 2)))
    other = loops.loop("i", 4, lambda i: loops.branch(c <= 0, side(i, 2), put(1)(i)))
    for statement in (body, other):
        func = tirx.PrimFunc([c, d, out], loops.seq([statement]))
        root = tvm.s_tir.SBlock([], [], [], "root", func.body)
        kernel = kernels.build(func.with_body(tvm.s_tir.SBlockRealize([], True, root)))
        for first, second, expected in ((1, 1, 1), (1, 0, 1), (0, 1, 2), (0, 0, 7)):
            result = tvm.runtime.tensor(np.full(4, 7, "float32"))
            kernel(first, second, result)
            assert (result.numpy() == expected).all()


def test_sums_of_sums_are_left_to_a_rule_that_can() -> None:
    x = te.placeholder((4, 6, 16))
    k, j = te.reduce_axis((0, 16)), te.reduce_axis((0, 6))
    inner = te.compute((4, 6), lambda a, b: te.sum(x[a, b, k], axis=k))
    func = te.create_prim_func([x, te.compute((4,), lambda a: te.sum(inner[a, j], axis=j))])
    (data,) = randoms((4, 6, 16))
    expected = data.astype("float64").sum((1, 2))
    assert_close(run(scheduled(func, "fallback"), [data], (4,)), expected)


def test_dense_with_a_reshaped_output_stays_one_kernel() -> None:
    x, w = te.placeholder((6, 20)), te.placeholder((2, 20, 16))
    y = te_ops.dense(x, w, 32)
    func = te.create_prim_func(
        [x, w, te.compute((2, 3, 4, 8), lambda a, b, c, d: y[a * 3 + b, c * 8 + d])]
    )
    data, weight = randoms((6, 20), (20, 32))
    expected = (data.astype("float64") @ weight).reshape(2, 3, 4, 8)
    kernel = scheduled(func, "dense")
    assert len(kernel.body.block.alloc_buffers) == 0
    assert_close(run(kernel, [data, pack(weight)], expected.shape), expected)


@pytest.mark.parametrize(
    ("channels", "outputs", "sizes", "taps", "stride", "pad", "dilation"),
    [
        (8, 24, (13, 13), (3, 3), 1, 1, 1),
        (16, 8, (9, 17), (3, 3), 2, 1, 1),
        (16, 40, (7, 7), (1, 1), 1, 0, 1),
        (8, 16, (29,), (5,), 1, 0, 1),
        (8, 16, (11,), (3,), 1, 1, 1),
        (8, 8, (10, 10), (3, 3), 1, 2, 2),
        (16, 24, (1, 1), (1, 1), 1, 0, 1),
    ],
)
def test_convolutions_are_right_at_edges(
    channels: int,
    outputs: int,
    sizes: tuple[int, ...],
    taps: tuple[int, ...],
    stride: int,
    pad: int,
    dilation: int,
) -> None:
    slide = window(len(sizes), stride, pad, dilation)

    def build(bb: Any, x: Any, w: Any, b: Any) -> Any:
        y = op.add(kernels.conv(bb, x, w, slide), b)
        return op.multiply(y, op.multiply(op.clip(op.add(y, const(3.0)), 0, 6), const(1 / 6)))

    x, w, b = randoms(
        (2, channels // 8, *sizes, 8),
        (outputs // 8, channels // 8, *taps, 8, 8),
        (1, outputs // 8, *[1] * len(sizes), 8),
    )
    expected = conv_reference(x, w, stride, pad, dilation) + b
    expected = expected * np.clip(expected + 3, 0, 6) / 6
    func = lower(build, x.shape, w.shape, b.shape)
    assert_close(run(scheduled(func, "conv"), [x, w, b], expected.shape), expected)


def test_the_batch_of_a_convolution_may_be_symbolic() -> None:
    n = tirx.Var("n", "int64")
    x, w = te.placeholder((n, 1, 6, 7, 8)), te.placeholder((2, 1, 3, 3, 8, 8))
    func = te.create_prim_func([x, w, te_ops.conv(x, w, window(2, pad=1))])
    kernel = kernels.build(scheduled(func, "conv"))
    for batch in (1, 3):
        data, weight = randoms((batch, 1, 6, 7, 8), (2, 1, 3, 3, 8, 8))
        expected = conv_reference(data, weight, pad=1)
        assert_close(run(kernel, [data, weight], expected.shape), expected)


def test_a_plain_image_is_read_without_a_layout_change() -> None:
    view = te_ops.View((0, 1, 2, 3), 3)
    x, w = te.placeholder((1, 3, 11, 11)), te.placeholder((2, 1, 3, 3, 3, 8))
    func = te.create_prim_func([x, w, te_ops.conv(x, w, window(2, 2, 1), view)])
    data, weight = randoms((1, 3, 11, 11), (2, 1, 3, 3, 3, 8))
    expected = conv_reference(data.transpose(0, 2, 3, 1)[:, None], weight, 2, 1)
    assert_close(run(scheduled(func, "conv"), [data, weight], expected.shape), expected)


def test_grouped_convolutions_read_their_own_channels() -> None:
    x, w = te.placeholder((1, 4, 5, 5, 8)), te.placeholder((4, 2, 3, 3, 8, 8))
    func = te.create_prim_func([x, w, te_ops.conv(x, w, window(2, pad=1), band=Band(2, 16, 16, 8))])
    data, weight = randoms((1, 4, 5, 5, 8), (4, 2, 3, 3, 8, 8))
    halves = [
        conv_reference(data[:, g * 2 : g * 2 + 2], weight[g * 2 : g * 2 + 2], pad=1) for g in (0, 1)
    ]
    expected = np.concatenate(halves, axis=1)
    assert_close(run(scheduled(func, "conv"), [data, weight], expected.shape), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inner", "outer", "stride", "pad"), [(4, 4, 1, 1), (2, 2, 2, 1), (1, 2, 1, 0), (2, 4, 1, 1)]
)
def test_lanes_of_small_groups_read_the_channels_of_their_own(
    inner: int, outer: int, stride: int, pad: int
) -> None:
    band = Band(16 // outer * 2, inner, outer, 8)
    assert band.is_within
    shapes = (2, band.groups * inner // 8, 7, 12, 8), (4, 3, 3, inner, 8)
    x, w = map(te.placeholder, shapes)
    func = te.create_prim_func([x, w, te_ops.grouped(x, w, window(2, stride, pad), band)])
    data, weight = randoms(*shapes)
    whole = np.zeros((4, shapes[0][1], 3, 3, 8, 8), "float32")
    for o, v, i in np.ndindex(4, 8, inner):
        channel = (o * 8 + v) // outer * inner + i
        whole[o, channel // 8, :, :, channel % 8, v] = weight[o, :, :, i, v]
    expected = conv_reference(data, whole, stride, pad)
    assert_close(run(scheduled(func, "depthwise"), [data, weight], expected.shape), expected)


def test_transposed_convolutions_of_stride_two_are_tiled_by_even_widths() -> None:
    x, w = te.placeholder((1, 2, 3, 5, 8)), te.placeholder((1, 2, 2, 2, 8, 8))
    func = te.create_prim_func([x, w, te_ops.conv_transpose(x, w, (2, 2))])
    data, weight = randoms((1, 2, 3, 5, 8), (1, 2, 2, 2, 8, 8))
    parts = np.einsum("nchwi,ocrsiv->nohrwsv", data.astype("float64"), weight)
    expected = parts.reshape(1, 1, 6, 10, 8)
    assert_close(run(scheduled(func, "conv"), [data, weight], expected.shape), expected)


def test_a_broadcast_multiply_behind_a_one_pixel_convolution_is_right() -> None:
    def build(bb: Any, x: Any, w: Any, big: Any) -> Any:
        return op.multiply(big, op.sigmoid(kernels.conv(bb, x, w, window(2))))

    x, w, big = randoms((1, 2, 1, 1, 8), (3, 2, 1, 1, 8, 8), (1, 3, 9, 9, 8))
    func = lower(build, x.shape, w.shape, big.shape)
    expected = big / (1 + np.exp(-conv_reference(x, w)))
    assert_close(run(scheduled(func, "conv"), [x, w, big], expected.shape), expected)


@pytest.mark.parametrize(("taps", "stride", "size"), [(3, 1, 13), (5, 1, 7), (3, 2, 12)])
def test_depthwise_convolutions_are_right_at_edges(taps: int, stride: int, size: int) -> None:
    slide = window(2, stride, taps // 2)
    x, w = te.placeholder((2, 3, size, size, 8)), te.placeholder((3, taps, taps, 8))
    func = te.create_prim_func([x, w, te_ops.depthwise(x, w, slide)])
    data, weight = randoms((2, 3, size, size, 8), (3, taps, taps, 8))
    expected = conv_reference(data, weight, stride, taps // 2, depthwise=True)
    assert_close(run(scheduled(func, "depthwise"), [data, weight], expected.shape), expected)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    width=st.integers(3, 23),
    height=st.integers(3, 9),
    blocks=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    taps=st.integers(1, 3),
)
def test_any_small_convolution_is_right(
    width: int, height: int, blocks: int, stride: int, pad: int, taps: int
) -> None:
    x, w = te.placeholder((1, 1, height, width, 8)), te.placeholder((blocks, 1, taps, taps, 8, 8))
    func = te.create_prim_func([x, w, te_ops.conv(x, w, window(2, stride, pad))])
    data, weight = randoms((1, 1, height, width, 8), (blocks, 1, taps, taps, 8, 8))
    expected = conv_reference(data, weight, stride, pad)
    assert_close(run(schedule(func, BASELINE)[0], [data, weight], expected.shape), expected)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def layer_norm(x: np.ndarray, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * g + b


UNARY: dict[str, tuple[Any, tuple[int, ...], Any, str]] = {
    "softmax": (lambda bb, x: op.nn.softmax(x), (5, 131), softmax, "rows"),
    "softmax shorter than a vector": (lambda bb, x: op.nn.softmax(x), (2, 3, 5), softmax, "rows"),
    "row mean": (lambda bb, x: op.mean(x, axis=[-1]), (7, 37), lambda x: x.mean(-1), "rows"),
    "row maximum": (lambda bb, x: op.max(x, axis=[-1]), (3, 50), lambda x: x.max(-1), "rows"),
    "column sum": (lambda bb, x: op.sum(x, axis=[1]), (2, 9, 33), lambda x: x.sum(1), "columns"),
    "whole sum": (lambda bb, x: op.sum(x), (11, 13), lambda x: x.sum(), "fallback"),
    "global mean": (
        lambda bb, x: op.mean(x, axis=[2, 3], keepdims=True),
        (2, 3, 5, 7, 8),
        lambda x: x.mean((2, 3), keepdims=True),
        "pool",
    ),
    "global mean of one row": (
        lambda bb, x: op.mean(x, axis=[2], keepdims=True),
        (1, 2, 50, 8),
        lambda x: x.mean(2, keepdims=True),
        "pool",
    ),
    "gelu": (lambda bb, x: op.nn.gelu(x), (3, 37), gelu, "elementwise"),
    "tanh": (
        lambda bb, x: op.tanh(op.multiply(x, const(4.0))),
        (7, 11),
        lambda x: np.tanh(4 * x),
        "elementwise",
    ),
    "sigmoid": (
        lambda bb, x: op.sigmoid(op.multiply(x, const(30.0))),
        (2, 65),
        lambda x: 1 / (1 + np.exp(-30 * x)),
        "elementwise",
    ),
    "transpose": (
        lambda bb, x: op.permute_dims(x, [2, 0, 1]),
        (3, 5, 18),
        lambda x: x.transpose(2, 0, 1),
        "elementwise",
    ),
    "hard swish": (
        lambda bb, x: op.multiply(x, op.clip(op.add(x, const(3.0)), 0, 6)),
        (1, 2, 3, 5, 8),
        lambda x: x * np.clip(x + 3, 0, 6),
        "elementwise",
    ),
    "center": (
        lambda bb, x: op.subtract(x, op.mean(x, axis=[-1], keepdims=True)),
        (3, 19),
        lambda x: x - x.mean(-1, keepdims=True),
        "rows",
    ),
}


@pytest.mark.parametrize("name", UNARY)
def test_kernels_of_one_input_are_right(name: str) -> None:
    build, shape, reference, rule = UNARY[name]
    (x,) = randoms(shape)
    expected = np.asarray(reference(x.astype("float64")))
    assert_close(run(scheduled(lower(build, shape), rule), [x], expected.shape), expected)


def test_layer_norm_is_right_at_a_prime_width() -> None:
    def build(bb: Any, x: Any, g: Any, b: Any) -> Any:
        return op.nn.layer_norm(x, g, b, axes=[-1], epsilon=1e-5)

    arrays = randoms((2, 3, 61), (61,), (61,))
    func = lower(build, *(a.shape for a in arrays))
    expected = layer_norm(*(a.astype("float64") for a in arrays))
    assert_close(run(scheduled(func, "rows"), arrays, expected.shape), expected)


def test_softmax_of_a_symbolic_number_of_rows_is_right() -> None:
    n = tirx.Var("n", "int64")
    func = lower(lambda bb, x: op.nn.softmax(x), (n, 21))
    kernel = kernels.build(scheduled(func, "rows"))
    for rows in (1, 9):
        (x,) = randoms((rows, 21))
        assert_close(run(kernel, [x], x.shape), softmax(x.astype("float64")))


def test_concatenation_writes_every_element() -> None:
    x, y = randoms((2, 3, 5, 8), (2, 4, 5, 8))
    func = lower(lambda bb, a, b: op.concat([a, b], axis=1), x.shape, y.shape)
    expected = np.concatenate([x, y], 1)
    assert_close(run(scheduled(func, "elementwise"), [x, y], expected.shape), expected)


@pytest.mark.parametrize(
    "shape", [((3, 17, 9), (3, 9, 21)), ((13, 16), (16, 32)), ((1, 40), (40, 48))]
)
def test_plain_matrix_products_are_right(shape: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, y = randoms(*shape)
    func = lower(lambda bb, a, b: op.nn.relu(op.matmul(a, b)), *shape)
    expected = np.maximum(x.astype("float64") @ y, 0)
    assert_close(run(schedule(func, BASELINE)[0], [x, y], expected.shape), expected)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_blocked_pooling_with_padding_is_right(pooling: str) -> None:
    shape = (1, 2, 9, 9, 8)
    start = float("-inf") if pooling == "max" else 0.0
    x = te.placeholder(shape)
    padded = te.compute(
        (1, 2, 11, 11, 8),
        lambda n, c, h, w, v: tirx.if_then_else(
            tirx.all(h >= 1, h < 10, w >= 1, w < 10),
            x[n, c, h - 1, w - 1, v],
            tirx.const(start, "float32"),
        ),
    )
    r, q = te.reduce_axis((0, 3)), te.reduce_axis((0, 3))
    reduce = te.max if pooling == "max" else te.sum
    y = te.compute(
        (1, 2, 5, 5, 8),
        lambda n, c, h, w, v: reduce(padded[n, c, h * 2 + r, w * 2 + q, v], axis=[r, q]),
    )
    (data,) = randoms(shape)
    filled = np.pad(
        data.astype("float64"), [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=start
    )
    taps = [filled[:, :, i : i + 9 : 2, j : j + 9 : 2] for i in range(3) for j in range(3)]
    expected = np.max(taps, 0) if pooling == "max" else np.sum(taps, 0)
    func = te.create_prim_func([x, y])
    assert_close(run(scheduled(func, "pool"), [data], expected.shape), expected)


@pytest.mark.parametrize("function", ["exp", "tanh", "sigmoid", "erf", "softmax", "gelu"])
def test_not_a_number_stays_one(function: str) -> None:
    made = {"softmax": op.nn.softmax, "gelu": op.nn.gelu}.get(function) or getattr(op, function)
    (x,) = randoms((2, 19))
    x[1, 7] = np.nan
    found = run(schedule(lower(lambda bb, a: made(a), x.shape), BASELINE)[0], [x], x.shape)
    assert np.isnan(found[1, 7])
    assert not np.isnan(found[0]).any()


def test_exp_reaches_zero_and_infinity() -> None:
    x = np.array([[-np.inf, -200.0, -87.0, 0.0, 88.5, 89.0, np.inf, 1.0]], "float32")
    found = run(schedule(lower(lambda bb, a: op.exp(a), x.shape), BASELINE)[0], [x], x.shape)
    assert found[0, 0] == found[0, 1] == 0.0
    assert found[0, 2] < 2e-38
    assert found[0, 5] == found[0, 6] == np.inf
    np.testing.assert_allclose(
        found[0, [3, 4, 7]], np.exp(x[0, [3, 4, 7]].astype("float64")), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.5, -0.5, 2.0, 3.0])
def test_powers_are_those_of_ieee(exponent: float) -> None:
    x = np.array([[-np.inf, -2.0, -0.0, 0.0, 1e-40, 0.3, 7.0, 3e38, np.inf, np.nan]], "float32")
    func, _ = schedule(lower(lambda bb, a: op.power(a, const(exponent)), x.shape), BASELINE)
    assert "T.pow" not in func.script()
    with np.errstate(all="ignore"):
        expected = np.power(x, np.full_like(x, exponent))  # one number would be made a `sqrt`
    found = run(func, [x], x.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(np.signbit(found[x == 0]), np.signbit(expected[x == 0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (op.nn.relu, lambda a: np.maximum(a, 0)),
        (lambda a: op.clip(a, 0, 6), lambda a: np.clip(a, 0, 6)),
        (lambda a: op.clip(a, -0.5, 0.5), lambda a: np.clip(a, -0.5, 0.5)),
        (lambda a: op.minimum(const(0.25), a), lambda a: np.minimum(a, 0.25)),
        (op.maximum, np.maximum),
        (op.minimum, np.minimum),
    ],
    ids=["relu", "relu6", "clip", "minimum of a number", "maximum", "minimum"],
)
def test_maxima_and_minima_keep_what_is_no_number(function: Any, expected: Any) -> None:
    a, b = randoms((3, 19), (3, 19))
    a[0, 7], b[0, 11], a[2, 18], b[2, 18] = [np.nan] * 4
    a[1, :4] = [np.inf, -np.inf, 0.0, 6.0]
    inputs = [a, b] if isinstance(expected, np.ufunc) else [a]
    func, _ = schedule(lower(lambda bb, *x: function(*x), *(x.shape for x in inputs)), BASELINE)
    np.testing.assert_array_equal(run(func, inputs, a.shape), expected(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("function", "most"), [("relu", 1), ("relu6", 2)])
def test_a_known_bound_costs_one_instruction_a_vector(function: str, most: int) -> None:
    def build(bb: Any, a: Any, b: Any) -> Any:
        y = op.add(a, b)
        return op.nn.relu(y) if function == "relu" else op.clip(y, 0, 6)

    func, _ = schedule(lower(build, (4, 8), (4, 8)), BASELINE)
    text = asm.assembly(func, BASELINE)
    vectors = len(re.findall(r"\bvaddps\b.*%ymm", text))
    assert vectors == 4
    assert len(re.findall(r"\bv(?:max|min)ps\b.*%ymm", text)) == most * vectors
    assert not re.findall(r"\bv(?:cmp|blend)", text)


@pytest.mark.parametrize("kind", ["dense", "conv", "conv 1-D", "depthwise"])
def test_kernels_of_four_megaflop_are_parallel_with_fma_and_no_allocation_in_loops(
    kind: str,
) -> None:
    def placed(x: tuple[int, ...], w: tuple[int, ...], make: Any) -> Any:
        a, b = te.placeholder(x), te.placeholder(w)
        return te.create_prim_func([a, b, make(a, b)])

    func = {
        "dense": lambda: placed((128, 64), (16, 64, 16), lambda a, b: te_ops.dense(a, b, 256)),
        "conv": lambda: placed(
            (1, 4, 20, 20, 8), (4, 4, 3, 3, 8, 8), lambda a, b: te_ops.conv(a, b, window(2, pad=1))
        ),
        "conv 1-D": lambda: placed(
            (1, 8, 128, 8), (8, 8, 5, 8, 8), lambda a, b: te_ops.conv(a, b, window(1))
        ),
        "depthwise": lambda: placed(
            (1, 32, 40, 40, 8), (32, 3, 3, 8), lambda a, b: te_ops.depthwise(a, b, window(2, pad=1))
        ),
    }[kind]()
    assert flops(func) >= 4e6
    facts = asm.facts(scheduled(func, kind.split()[0]), BASELINE)
    assert facts.innermost_fma >= 4
    assert facts.parallel
    assert facts.repeated == 0


def test_the_assembly_check_sees_a_missing_fma_and_a_missing_launch() -> None:
    x, w = te.placeholder((64, 64)), te.placeholder((4, 64, 16))
    facts = asm.facts(te.create_prim_func([x, w, te_ops.dense(x, w, 64)]), BASELINE)
    assert facts.innermost_fma == 0
    assert not facts.parallel


def test_an_opaque_kernel_is_shipped_as_it_is() -> None:
    x = te.placeholder((8,))
    func = te.create_prim_func(
        [
            x,
            te.extern(
                (8,),
                [x],
                lambda ins, outs: tvm.tirx.Evaluate(tvm.tirx.const(0, "int32")),
                dtype="float32",
            ),
        ]
    )
    assert schedule(func, BASELINE) == (func, "fallback")


def test_each_kernel_has_one_default_record_but_those_that_pack_weights() -> None:
    x = te.placeholder((4, 8))
    add = te.create_prim_func([x, te.compute((4, 8), lambda i, j: x[i, j] + 1.0)])
    mod = tvm.IRModule({"one": add, "two": add, "pack": add.with_attr("tapml.transform", 1)})
    found = default_records(mod, BASELINE)
    assert [(record.kernel, record.kind, record.rule) for record in found] == [
        ("one", "default", "elementwise"),
        ("two", "default", "elementwise"),
    ]
    assert found[0].workload == found[1].workload
