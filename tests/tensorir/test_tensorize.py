"""Described intrinsics: what matches them, and that what they compute is right.

This machine runs what it has the instructions for; what other CPUs would run is assembled for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import asm
from small_integers import call, integers, product, run, target
from tvm.script import tirx as T

from tapml.stage import Target
from tapml.target import TargetSection, missing_here, resolve
from tapml_stages.compat import tvm
from tapml_stages.target import tvm_target
from tapml_stages.tensorir.kernel import read
from tapml_stages.tensorir.rules.tensorize import tensorize
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.tensorize import x86
from tapml_stages.tensorir.tensorize.intrinsic import Intrinsic, usable
from tapml_stages.tensorir.tensorize.match import matches

te, tirx = tvm.te, tvm.tirx


@T.prim_func(s_tir=True)
def blocks(
    A: T.Buffer((4, 4), "float32"), B: T.Buffer((4, 4), "float32"), C: T.Buffer((4, 4), "float32")
) -> None:
    with T.sblock("root"):
        for i, j, k in T.grid(4, 4, 4):
            with T.sblock("block"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                C[vi, vj] = C[vi, vj] + A[vi, vk] * B[vk, vj]


@T.prim_func(s_tir=True)
def blocks_by_rows(
    A: T.Buffer((4, 4), "float32"), B: T.Buffer((4, 4), "float32"), C: T.Buffer((4, 4), "float32")
) -> None:
    with T.sblock("root"):
        for i, k in T.grid(4, 4):
            for j in T.vectorized(4):
                C[i, j] = C[i, j] + A[i, k] * B[k, j]


SYNTHETIC = Intrinsic("4x4x4", blocks, blocks_by_rows)
BASELINE = target("x86-64-v3")
LEVELS = ("x86-64-v3", "skylake-avx512", "cascadelake", "alderlake")


def here(names: tuple[str, ...]) -> list[Target]:
    """Those targets whose instructions this machine has."""
    return [one for one in map(target, names) if not missing_here(one)]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([8, 13, 16, 17, 24, 31])] * 3),
    transposed=st.tuples(st.booleans(), st.booleans()),
    batch=st.sampled_from([None, 1, 3]),
)
def test_a_synthetic_4x4x4_fits_products_in_any_layout(
    shape: tuple[int, int, int], transposed: tuple[bool, bool], batch: int | None
) -> None:
    func = product(shape, ("float32", "float32"), "float32", transposed=transposed, batch=batch)
    free = Intrinsic("4x4x4", blocks, blocks_by_rows, cost=0.0)
    scheduled = tensorize(func, BASELINE.model_copy(update={"vector_bits": 32}), known=[free])
    assert scheduled is not None
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    lead = () if batch is None else (batch,)
    x = rng.standard_normal((*lead, m, k)).astype("float32")
    w = rng.standard_normal((*lead, k, n)).astype("float32")
    expected = np.maximum(x.astype("float64") @ w - 3, 0)
    given_ = [a.swapaxes(-1, -2) if t else a for a, t in zip((x, w), transposed, strict=True)]
    found = run(scheduled, BASELINE, given_, expected.shape)
    assert np.abs(found - expected).max() <= 3e-6 * max(np.abs(expected).max(), 1)


def test_padding_is_refused_where_it_does_not_pay() -> None:
    kinds = ("float32", "float32")
    assert (
        tensorize(product((64, 64, 64), kinds, "float32"), BASELINE, known=[SYNTHETIC]) is not None
    )
    assert tensorize(product((1, 64, 64), kinds, "float32"), BASELINE, known=[SYNTHETIC]) is None
    assert tensorize(product((5, 5, 5), kinds, "float32"), BASELINE, known=[SYNTHETIC]) is None


def test_what_needs_other_features_is_not_used() -> None:
    wanted = {
        "x86-64": [],
        "x86-64-v3": ["maddwd_8x2"],
        "skylake-avx512": ["maddwd_16x2", "maddwd_8x2"],
        "cascadelake": ["vnni_16x4", "vnni_8x4", "maddwd_16x2", "maddwd_8x2"],
        "alderlake": ["avx_vnni_8x4", "maddwd_8x2"],
    }
    for mcpu, expected in wanted.items():
        assert [one.name for one in usable(x86.intrinsics(), target(mcpu))] == expected
    assert tensorize(product((8, 64, 64)), target("x86-64")) is None
    arm = resolve(TargetSection(preset="aarch64"))
    assert usable(x86.intrinsics(), arm) == ()


def test_a_description_that_adds_nothing_is_refused() -> None:
    a, b = te.placeholder((4,), "float32", "a"), te.placeholder((4,), "float32", "b")
    stores = te.create_prim_func([a, b, te.compute((4,), lambda i: a[i] * b[i])])
    with pytest.raises(ValueError, match="intrinsic stores: it adds nothing"):
        _ = Intrinsic("stores", stores, stores).step
    with pytest.raises(ValueError, match="two functions do not describe one block"):
        _ = Intrinsic("mixed", blocks, stores).step


def test_the_description_of_the_wheel_matches_as_ours_does() -> None:
    """Its implementation is not run: the LLVM of the wheel wants operands of other types."""
    theirs = x86.wheel("dot_16x4_vnni", frozenset({"avx512vnni"}))
    kernel = read(product((8, 64, 64)))
    assert kernel is not None
    found = list(matches(kernel.reductions[0], theirs))
    ours = list(matches(kernel.reductions[0], x86.intrinsics()[0]))
    assert [one.splits for one in found] == [one.splits for one in ours]
    scheduled: Any = tensorize(product((8, 64, 64)), target("cascadelake"), known=[theirs])
    assert scheduled.script().count("vpdpbusd") >= 4  # one for each block of the tile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mcpu", "instruction", "register"),
    [
        ("x86-64-v3", "vpmaddwd", "ymm"),
        ("skylake-avx512", "vpmaddwd", "zmm"),
        ("cascadelake", "vpdpbusd", "zmm"),
        ("alderlake", "vpdpbusd", "ymm"),
    ],
)
def test_the_inner_loop_holds_the_instruction_of_its_target(
    mcpu: str, instruction: str, register: str
) -> None:
    where = target(mcpu)
    scheduled, rule = schedule(product((64, 64, 64)), where)
    assert rule == "tensorize"
    loops = asm.innermost_loops(asm.assembly(scheduled, where))
    held = [sum(instruction in line and register in line for line in body) for body in loops]
    assert max(held) >= 8  # a register tile of them, …
    body = loops[held.index(max(held))]
    assert not any("rsp" in line and "vmov" in line for line in body)  # … in registers
    assert not any("vpmaddubsw" in line for body in loops for line in body)  # which saturates


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([1, 2, 3, 7, 16, 17, 31, 64])] * 3),
    dtypes=st.tuples(st.sampled_from(["uint8", "int8"]), st.just("int8")),
    transposed=st.tuples(st.booleans(), st.booleans()),
    batch=st.sampled_from([None, 3]),
)
def test_products_of_bytes_are_exact_at_every_level(
    shape: tuple[int, int, int],
    dtypes: tuple[str, str],
    transposed: tuple[bool, bool],
    batch: int | None,
) -> None:
    m, k, n = shape
    lead = () if batch is None else (batch,)
    rng = np.random.default_rng(m * k * n)
    x, w = integers(rng, (*lead, m, k), dtypes[0]), integers(rng, (*lead, k, n), dtypes[1])
    expected = np.maximum(x.astype("int64") @ w.astype("int64") - 3, 0)
    given_ = [a.swapaxes(-1, -2) if t else a for a, t in zip((x, w), transposed, strict=True)]
    func = product(shape, dtypes, transposed=transposed, batch=batch)
    for where in here(LEVELS):
        scheduled, _ = schedule(func, where)
        assert np.array_equal(run(scheduled, where, given_, expected.shape), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mcpu", LEVELS)
@pytest.mark.parametrize(("k", "n"), [(64, 48), (33, 50)])
def test_one_binary_serves_every_number_of_rows(mcpu: str, k: int, n: int) -> None:
    where = target(mcpu)
    func, rule = schedule(product((tirx.Var("m", "int64"), k, n)), where)
    assert rule == "tensorize"
    if missing_here(where):
        return
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(mod, tvm_target(where))["kernel"]
    rng = np.random.default_rng(k)
    w = integers(rng, (k, n), "int8")
    for rows in (0, 1, 2, 3, 5, 8, 31, 97, 113):
        x = integers(rng, (rows, k), "uint8")
        expected = np.maximum(x.astype("int64") @ w.astype("int64") - 3, 0)
        assert np.array_equal(call(kernel, [x, w], (rows, n), "int32"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("c", "o", "taps", "stride"), [(3, 10, 3, 2), (8, 32, 3, 1), (16, 16, 1, 1)]
)
def test_a_convolution_is_a_product_by_reindexing(
    layout: str, c: int, o: int, taps: int, stride: int
) -> None:
    n, h, w = 2, 11, 9
    out = [(size - taps) // stride + 1 for size in (h, w)]
    first = layout == "NCHW"
    x = te.placeholder((n, c, h, w) if first else (n, h, w, c), "uint8")
    weight = te.placeholder((o, c, taps, taps), "int8")
    i, r, q = (te.reduce_axis((0, size)) for size in (c, taps, taps))

    def value(b: Any, j: Any, y: Any, z: Any) -> Any:
        at = (i, y * stride + r, z * stride + q)
        data = x(b, *at) if first else x(b, at[1], at[2], at[0])
        element = data.astype("int32") * weight(j, i, r, q).astype("int32")
        return te.sum(element, axis=[i, r, q] if first else [r, q, i])

    shape = (n, o, *out) if first else (n, *out, o)
    build = value if first else (lambda b, y, z, j: value(b, j, y, z))
    func = te.create_prim_func([x, weight, te.compute(shape, build)])
    rng = np.random.default_rng(c)
    data, filters = integers(rng, (n, c, h, w), "uint8"), integers(rng, (o, c, taps, taps), "int8")
    windows = np.lib.stride_tricks.sliding_window_view(data, (taps, taps), (2, 3))
    windows = windows[:, :, ::stride, ::stride].astype("int64")
    expected = np.einsum("bihwrq,oirq->bohw", windows, filters.astype("int64"))
    given_ = data if first else data.transpose(0, 2, 3, 1)
    for where in here(LEVELS):
        scheduled, rule = schedule(func, where)
        assert rule == "tensorize"
        found = run(scheduled, where, [given_, filters], shape)
        assert np.array_equal(found if first else found.transpose(0, 3, 1, 2), expected)
