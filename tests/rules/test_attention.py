"""Attention as one kernel against float64: what exporters write is found, every size but the depth
may be symbolic, outputs start as NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import kernels
from rules.kernels import BASELINE, assert_close, randoms, run

from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name, remove_dead_code
from tapml_stages.tensorir.attention import fuse_attention
from tapml_stages.tensorir.schedule import schedule

relax, tirx = tvm.relax, tvm.tirx
op = relax.op
HEADS, DEPTH = 4, 12
B, N, M = (tirx.Var(name, "int64") for name in ("b", "n", "m"))


def function(build: Callable[..., Any], *shapes: Sequence[Any], dtypes: Sequence[str] = ()) -> Any:
    """A module whose `main` is built from parameters of these shapes."""
    builder = relax.BlockBuilder()
    kinds = [*dtypes, *["float32"] * (len(shapes) - len(dtypes))]
    params = [
        relax.Var(f"x{i}", relax.TensorType(shape, kind))
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(build(builder.emit, *params))
        builder.emit_func_output(out)
    return builder.get()


def attend(
    emit: Any, q: Any, k: Any, v: Any, change: Callable[[Any], Any], sizes: Sequence[Any]
) -> Any:
    """As torch.export writes it: heads apart, batch and heads as one axis, heads together."""
    b, h, n, m, d = sizes
    apart = [emit(op.permute_dims(x, axes)) for x, axes in ((q, (0, 2, 1, 3)), (v, (0, 2, 1, 3)))]
    keys = emit(op.permute_dims(k, [0, 2, 3, 1]))
    left = emit(op.reshape(apart[0], [b * h, n, d]))
    product = emit(op.matmul(left, emit(op.reshape(keys, [b * h, d, m]))))
    scores = change(emit(op.reshape(product, [b, h, n, m])))
    powers = emit(op.reshape(emit(op.nn.softmax(scores, axis=-1)), [b * h, n, m]))
    mixed = emit(op.matmul(powers, emit(op.reshape(apart[1], [b * h, m, d]))))
    return emit(op.permute_dims(emit(op.reshape(mixed, [b, h, n, d])), [0, 2, 1, 3]))


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, change: Any) -> np.ndarray:
    q, k, v = (x.astype("float64").transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = change(q @ k.transpose(0, 1, 3, 2))
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return (powers / powers.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def fused(mod: Any) -> Any:
    """The scheduled kernel of a module that is nothing but one attention."""
    mod = remove_dead_code(fuse_attention(mod))
    calls = [value for _, value in bindings(mod["main"]) if op_name(value) == "relax.call_tir"]
    assert [call.args[0].name_hint for call in calls] == ["attention"]
    assert not any(op_name(value) == "relax.matmul" for _, value in bindings(mod["main"]))
    kernel, rule = schedule(mod["attention"], BASELINE)
    assert rule == "attention"
    assert not kernel.body.block.alloc_buffers  # scratch of a chunk only
    return kernel


@pytest.fixture(scope="module")
def symbolic() -> Any:
    """Scaled and masked, rows and columns of different symbolic sizes."""

    def build(emit: Any, q: Any, k: Any, v: Any, mask: Any) -> Any:
        def change(scores: Any) -> Any:
            scaled = emit(op.multiply(scores, relax.const(0.3, "float32")))
            return emit(op.add(scaled, mask))

        return attend(emit, q, k, v, change, (B, HEADS, N, M, DEPTH))

    shapes = [(B, size, HEADS, DEPTH) for size in (N, M, M)]
    return kernels.build(fused(function(build, *shapes, (B, 1, 1, M))))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    rows=st.sampled_from([1, 2, 7, 8, 9, 16, 23, 41]),
    columns=st.sampled_from([1, 5, 11, 12, 13, 24, 37]),
)
def test_one_kernel_serves_every_batch_and_length(
    symbolic: Any, batch: int, rows: int, columns: int
) -> None:
    q, k, v, mask = randoms(
        (batch, rows, HEADS, DEPTH),
        (batch, columns, HEADS, DEPTH),
        (batch, columns, HEADS, DEPTH),
        (batch, 1, 1, columns),
        seed=rows * 100 + columns,
    )
    expected = reference(q, k, v, lambda s: s.astype("float64") * np.float32(0.3) + mask)
    assert_close(run(symbolic, [q, k, v, mask], q.shape), expected)


def test_an_empty_batch_writes_nothing(symbolic: Any) -> None:
    q, k, mask = randoms((0, 3, HEADS, DEPTH), (0, 5, HEADS, DEPTH), (0, 1, 1, 5))
    assert run(symbolic, [q, k, k, mask], q.shape).shape == q.shape


def test_columns_masked_by_minus_infinity_take_no_part(symbolic: Any) -> None:
    q, k, v, mask = randoms(*[(1, 9, HEADS, DEPTH)] * 3, (1, 1, 1, 9))
    mask[...] = 0
    mask[..., 4:] = -np.inf
    expected = reference(q, k[:, :4], v[:, :4], lambda s: s * np.float32(0.3))
    assert_close(run(symbolic, [q, k, v, mask], q.shape), expected)


def test_a_number_that_is_none_spoils_its_row_only(symbolic: Any) -> None:
    q, k, v, mask = randoms(*[(1, 9, HEADS, DEPTH)] * 3, (1, 1, 1, 9))
    q[0, 2, 1, 3] = np.nan
    found = run(symbolic, [q, k, v, mask], q.shape)
    assert np.isnan(found[0, 2, 1]).all()
    found[0, 2, 1] = 0
    assert not np.isnan(found).any()


def test_repeated_heads_causal_masks_and_soft_caps_are_read_in_place() -> None:
    groups, size = 2, HEADS // 2

    def build(emit: Any, keep: Any, q: Any, k: Any, v: Any) -> Any:
        def repeated(x: Any) -> Any:
            heads = emit(op.expand_dims(emit(op.permute_dims(x, [0, 2, 1, 3])), [2]))
            wide = emit(op.broadcast_to(heads, [B, size, groups, N, DEPTH]))
            flat = emit(op.reshape(wide, [B, HEADS, N, DEPTH]))
            return emit(op.permute_dims(flat, [0, 2, 1, 3]))

        def change(scores: Any) -> Any:
            capped = emit(op.tanh(emit(op.multiply(scores, relax.const(0.2, "float32")))))
            capped = emit(op.multiply(capped, relax.const(5.0, "float32")))
            return emit(op.where(keep, capped, relax.const(-1e9, "float32")))

        return attend(emit, q, repeated(k), repeated(v), change, (B, HEADS, N, N, DEPTH))

    few = (B, N, size, DEPTH)
    mod = function(build, (1, 1, N, N), (B, N, HEADS, DEPTH), few, few, dtypes=["bool"])
    kernel = kernels.build(fused(mod))
    for n in (1, 6, 19):
        q, k, v = randoms((2, n, HEADS, DEPTH), *[(2, n, size, DEPTH)] * 2)
        keep = np.tril(np.ones((n, n), "bool"))[None, None]

        def change(scores: np.ndarray, keep: np.ndarray = keep) -> np.ndarray:
            return np.where(keep, np.tanh(scores * np.float32(0.2)) * 5, -1e9)

        expected = reference(q, k.repeat(groups, 2), v.repeat(groups, 2), change)
        assert_close(run(kernel, [q, k, v, keep], q.shape), expected)


def test_plain_products_of_four_axes_and_fixed_sizes_are_found() -> None:
    shape = (2, HEADS, 9, 10)

    def build(emit: Any, q: Any, k: Any, v: Any) -> Any:
        scores = emit(op.matmul(q, emit(op.permute_dims(k, [0, 1, 3, 2]))))
        return emit(op.matmul(emit(op.nn.softmax(scores, axis=-1)), v))

    mod = fuse_attention(function(build, shape, shape, shape))
    kernel, rule = schedule(mod["attention"], BASELINE)
    assert rule == "attention"
    q, k, v = randoms(shape, shape, shape)
    moved = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
    expected = reference(*moved, lambda s: s)
    assert_close(run(kernel, [q, k, v], expected.shape), expected)


@pytest.mark.slow
def test_a_result_by_heads_is_left_to_other_rules() -> None:
    te = tvm.te
    q, k, v = (te.placeholder((2, 3, 5, 8)) for _ in range(3))
    d, *over = [te.reduce_axis((0, n)) for n in (8, 5, 5, 5)]
    scores = te.compute(
        (2, 3, 5, 5), lambda b, h, i, j: te.sum(q[b, h, i, d] * k[b, h, j, d], axis=d)
    )
    top = te.compute((2, 3, 5), lambda *at: te.max(scores[(*at, over[0])], axis=over[0]))
    powers = te.compute(scores.shape, lambda *at: tirx.exp(scores[at] - top[at[:3]]))
    total = te.compute((2, 3, 5), lambda *at: te.sum(powers[(*at, over[1])], axis=over[1]))
    mixed = te.compute(
        v.shape,
        lambda b, h, i, e: te.sum(powers[b, h, i, over[2]] * v[b, h, over[2], e], axis=over[2]),
    )
    result = te.compute(v.shape, lambda *at: mixed[at] / total[at[:3]])
    kernel, rule = schedule(te.create_prim_func([q, k, v, result]), BASELINE)
    assert rule == "fallback"
    arrays = randoms(*[(2, 3, 5, 8)] * 3)
    expected = reference(*(x.transpose(0, 2, 1, 3) for x in arrays), lambda scores: scores)
    assert_close(run(kernel, arrays, (2, 3, 5, 8)), expected.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("what", ["one row", "another softmax", "another operator"])
def test_what_is_no_attention_stays_as_it_is(what: str) -> None:
    rows = 1 if what == "one row" else 8
    axis = 1 if what == "another softmax" else -1

    def build(emit: Any, q: Any, k: Any, v: Any) -> Any:
        scores = emit(op.matmul(q, k))
        if what == "another operator":
            scores = emit(op.nn.relu(scores))
        return emit(op.matmul(emit(op.nn.softmax(scores, axis=axis)), v))

    mod = function(build, (2, rows, 8), (2, 8, 8), (2, 8, 8))
    assert tvm_ffi.structural_equal(fuse_attention(mod)["main"], mod["main"])
