"""What the rules could have decided otherwise: replayed exactly, within the machine's limits, and
right whatever is decided.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import small_integers
from rules.kernels import assert_close, pack, randoms, run, window
from small_integers import integers, target

from tapml.stage import Target
from tapml.target import missing_here
from tapml_stages.compat import tvm
from tapml_stages.records import workload_hash
from tapml_stages.search_modules import Space
from tapml_stages.tensorir import te_ops
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.space import RULES, TILES
from tapml_stages.tensorir.te_ops import Band

te, tirx = tvm.te, tvm.tirx
BASELINE = target("x86-64-v3")


def dense(m: Any, k: int, n: int) -> Any:
    x, w = te.placeholder((m, k)), te.placeholder((-(-n // te_ops.PANEL), k, te_ops.PANEL))
    return te.create_prim_func([x, w, te_ops.dense(x, w, n)])


def conv(
    blocks: int, size: int, dtypes: tuple[str, ...] = ("float32", "float32"), lanes: int = 8
) -> Any:
    x = te.placeholder((1, blocks, size, size, lanes), dtypes[0])
    w = te.placeholder((blocks, blocks, 3, 3, lanes, lanes), dtypes[1])
    summed = None if dtypes[0].startswith("float") else "int32"
    return te.create_prim_func([x, w, te_ops.conv(x, w, window(2, pad=1), dtype=summed)])


def product(m: int, k: int, n: int) -> Any:
    a, b, axis = te.placeholder((m, k)), te.placeholder((k, n)), te.reduce_axis((0, k))
    c = te.compute((m, n), lambda i, j: te.sum(a[i, axis] * b[axis, j], axis=axis))
    return te.create_prim_func([a, b, c])


def depthwise(channels: int, size: int) -> Any:
    x = te.placeholder((1, channels // 8, size, size, 8))
    w = te.placeholder((channels // 8, 3, 3, 8))
    return te.create_prim_func([x, w, te_ops.depthwise(x, w, window(2, pad=1))])


def groups(inner: int, channels: int, size: int) -> Any:
    x, band = (
        te.placeholder((1, channels // 8, size, size, 8)),
        Band(channels // inner, inner, inner, 8),
    )
    slide = window(2, pad=1)
    if band.is_within:
        w = te.placeholder((channels // 8, 3, 3, inner, 8))
        return te.create_prim_func([x, w, te_ops.grouped(x, w, slide, band)])
    w = te.placeholder((channels // 8, band.blocks, 3, 3, 8, 8))
    return te.create_prim_func([x, w, te_ops.conv(x, w, slide, band=band)])


KERNELS: dict[str, Callable[[], Any]] = {
    "dense": lambda: dense(37, 24, 40),
    "dense of any rows": lambda: dense(tirx.Var("m", "int64"), 24, 40),
    "conv": lambda: conv(3, 9),
    "matmul": lambda: product(13, 24, 48),
    "depthwise": lambda: depthwise(16, 11),
    "groups in a block": lambda: groups(4, 16, 11),
    "groups of blocks": lambda: groups(24, 48, 9),
    "product of bytes": lambda: small_integers.product((13, 24, 48)),
    "product of bytes, any rows": lambda: small_integers.product((tirx.Var("m", "int64"), 24, 40)),
    "conv of bytes": lambda: conv(3, 9, ("uint8", "int8")),
}


def tiles(func: Any, where: Target = BASELINE) -> Space:
    space = TILES.space(func, where)
    assert space is not None
    return space


def points(space: Space, count: int) -> list[dict[str, Any]]:
    """Random legal decisions."""
    rng = random.Random(0)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        point = {name: rng.choice(options) for name, options in space.knobs.items()}
        if space.legal(point):
            found.append(point)
    return found


@pytest.mark.parametrize("name", KERNELS)
def test_what_the_rule_decides_leads_to_the_default_schedule(name: str) -> None:
    func = KERNELS[name]()
    space = tiles(func)
    scheduled, _ = schedule(func, BASELINE)
    assert space.legal(space.default)
    assert workload_hash(space.build(space.default)) == workload_hash(scheduled)


@pytest.mark.parametrize("name", KERNELS)
def test_equal_decisions_give_an_equal_schedule(name: str) -> None:
    func = KERNELS[name]()
    [point] = points(tiles(func), 1)
    first, second = tiles(func).build(point), tiles(KERNELS[name]()).build(point)
    assert workload_hash(first) == workload_hash(second)


def test_features_tell_apart_what_is_decided() -> None:
    space = tiles(dense(128, 64, 256))
    found = points(space, 40)
    different = {tuple(sorted(point.items())) for point in found}
    rows = {tuple(space.features(point)) for point in found}
    assert len(rows) == len(different)
    assert np.isfinite(np.array([*rows], "float64")).all()


def test_no_legal_tile_needs_more_registers_than_there_are() -> None:
    space = tiles(dense(128, 64, 256))  # 16 lanes: two registers a block
    for point in points(space, 200):
        sums = 2 * point["rows"] * point["cols"] * point["partials"]
        assert sums + 2 * point["cols"] + 1 <= BASELINE.vector_registers or sums == 2


def test_a_matrix_is_packed_or_read_as_it_lies() -> None:
    space = tiles(product(64, 24, 48))
    assert space.knobs["pack"] == (0, 1)
    packed, in_place = (space.build({**space.default, "pack": pack}) for pack in (1, 0))
    assert workload_hash(packed) != workload_hash(in_place)


def test_a_kernel_without_a_plan_has_no_tiles_but_other_rules() -> None:
    x = te.placeholder((96, 384))
    axis = te.reduce_axis((0, 384))
    func = te.create_prim_func([x, te.compute((96,), lambda i: te.sum(x[i, axis], axis=axis))])
    assert TILES.space(func, BASELINE) is None
    space = RULES.space(func, BASELINE)
    assert space is not None
    assert "fallback" in space.knobs["rule"]
    default, _ = schedule(func, BASELINE)
    made = space.build({"rule": "fallback", "vector_bits": 256})
    assert workload_hash(made) != workload_hash(default)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5, 37])
def test_every_tile_of_a_dense_kernel_is_right_for_any_number_of_rows(rows: int) -> None:
    x, w = randoms((rows, 24), (24, 40))
    space = tiles(KERNELS["dense of any rows"]())
    for point in points(space, 6):
        assert_close(run(space.build(point), [x, pack(w)], (rows, 40)), x.astype("float64") @ w)


@pytest.mark.slow
def test_every_plan_of_a_product_is_right() -> None:
    a, b = randoms((13, 24), (24, 48))
    space = tiles(KERNELS["matmul"]())
    for point in points(space, 8):
        assert_close(run(space.build(point), [a, b], (13, 48)), a.astype("float64") @ b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "depthwise", "groups in a block", "groups of blocks"])
def test_every_plan_of_a_window_gives_what_the_default_gives(name: str) -> None:
    func = KERNELS[name]()
    space = tiles(func)
    shapes = [tuple(int(size) for size in param.ty.shape) for param in func.params]
    inputs = randoms(*shapes[:-1])
    expected = run(space.build(space.default), inputs, shapes[-1])
    for point in points(space, 8):
        made = space.build(point)
        if made is not None:
            assert_close(run(made, inputs, shapes[-1]), expected.astype("float64"))


LEVELS = {  # lanes and depth of the best intrinsic
    "x86-64-v3": (8, 2),
    "skylake-avx512": (16, 2),
    "cascadelake": (16, 4),
    "alderlake": (8, 4),
}
INTEGERS = [name for name in KERNELS if "bytes" in name]


def decided(space: Space, name: str) -> set[Any]:
    return {point[name] for point in points(space, 60)}


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("mcpu", LEVELS)
def test_the_tile_of_an_intrinsic_is_decided_too(name: str, mcpu: str) -> None:
    where, func = target(mcpu), KERNELS[name]()
    space = tiles(func, where)
    scheduled, rule = schedule(func, where)
    assert rule == "tensorize"
    assert workload_hash(space.build(space.default)) == workload_hash(scheduled)
    for part in ("rows", "cols", "chunk", "partials"):
        assert len(decided(space, part)) > 1, part
    made = {workload_hash(space.build(point)) for point in points(space, 6)}
    assert len(made) > 3


def instruction(func: Any) -> bool:
    return any(name in func.script() for name in ("vpdpbusd", "pmaddw", "pmadd.wd"))


def panels(m: Any, k: int, n: int, tile: tuple[int, int]) -> Any:
    """A product with a weight that lies in tiles [N / lanes, K / depth, lanes, depth]."""
    lanes, depth = tile
    x = te.placeholder((m, k), "uint8", "x")
    w = te.placeholder((n // lanes, k // depth, lanes, depth), "int8", "w")
    outer, inner = te.reduce_axis((0, k // depth), "k"), te.reduce_axis((0, depth), "i")

    def element(row: Any, panel: Any, lane: Any) -> Any:
        left = x(row, outer * depth + inner).astype("int32")
        right = w(panel, outer, lane, inner).astype("int32")
        return te.sum(left * right, axis=[outer, inner])

    acc = te.compute((m, n // lanes, lanes), element, "product")
    y = te.compute((m, n), lambda i, j: acc(i, j // lanes, j % lanes) - 3, "epilogue")
    return te.create_prim_func([x, w, y])


@pytest.mark.slow
@pytest.mark.parametrize("mcpu", LEVELS)
@pytest.mark.parametrize("rows", [1, 37])
def test_every_tile_of_an_intrinsic_is_exact(mcpu: str, rows: int) -> None:
    """A packed weight is read where it lies, and the panels that come next are asked for ahead."""
    where, (lanes, depth) = target(mcpu), LEVELS[mcpu]
    rng = np.random.default_rng(rows)
    x, w = integers(rng, (rows, 24), "uint8"), integers(rng, (24, 96), "int8")
    expected = x.astype("int64") @ w.astype("int64") - 3
    packed = w.reshape(24 // depth, depth, 96 // lanes, lanes).transpose(2, 0, 3, 1)
    for size in (rows, tirx.Var("m", "int64")):
        space = tiles(panels(size, 24, 96, LEVELS[mcpu]), where)
        assert space.knobs["prefetch"] == (0, 1)
        for point in points(space, 5):
            made = space.build(point)
            assert instruction(made)
            if not missing_here(where):
                found = small_integers.run(made, where, [x, packed], expected.shape)
                assert np.array_equal(found, expected), point


@pytest.mark.slow
@pytest.mark.parametrize("mcpu", LEVELS)
def test_every_plan_of_a_window_of_an_intrinsic_is_exact(mcpu: str) -> None:
    """Borders copied by task or before, whatever the tile."""
    where = target(mcpu)
    rng = np.random.default_rng(0)
    lanes, _ = LEVELS[mcpu]
    x = integers(rng, (1, 2, 9, 9, lanes), "uint8")
    w = integers(rng, (2, 2, 3, 3, lanes, lanes), "int8")
    padded = np.pad(x.astype("int64"), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    taps = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    expected = np.einsum("nchwirq,ocrqiv->nohwv", taps, w.astype("int64"))
    space = tiles(conv(2, 9, ("uint8", "int8"), lanes), where)
    assert decided(space, "stage") == {0, 1}
    for point in points(space, 6):
        made = space.build(point)
        assert instruction(made)
        if not missing_here(where):
            found = small_integers.run(made, where, [x, w], expected.shape)
            assert np.array_equal(found, expected), point
