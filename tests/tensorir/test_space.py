"""What the rules could have decided otherwise: replayed exactly, within the machine's limits, and
right whatever is decided.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rules.kernels import BASELINE, assert_close, pack, randoms, run, window

from tapml_stages.compat import tvm
from tapml_stages.records import workload_hash
from tapml_stages.search_modules import Space
from tapml_stages.tensorir import te_ops
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.space import RULES, TILES
from tapml_stages.tensorir.te_ops import Band

te, tirx = tvm.te, tvm.tirx


def dense(m: Any, k: int, n: int) -> Any:
    x, w = te.placeholder((m, k)), te.placeholder((-(-n // te_ops.PANEL), k, te_ops.PANEL))
    return te.create_prim_func([x, w, te_ops.dense(x, w, n)])


def conv(channels: int, size: int) -> Any:
    x = te.placeholder((1, channels // 8, size, size, 8))
    w = te.placeholder((channels // 8, channels // 8, 3, 3, 8, 8))
    return te.create_prim_func([x, w, te_ops.conv(x, w, window(2, pad=1))])


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
    "conv": lambda: conv(24, 9),
    "matmul": lambda: product(13, 24, 48),
    "depthwise": lambda: depthwise(16, 11),
    "groups in a block": lambda: groups(4, 16, 11),
    "groups of blocks": lambda: groups(24, 48, 9),
}


def tiles(func: Any) -> Space:
    space = TILES.space(func, BASELINE)
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
