"""Schedules carried over to PrimFuncs of other sizes."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metaschedule_programs import matmul, softplus

from tapml.stage import Target
from tapml_stages.compat import tvm
from tapml_stages.metaschedule.transfer import _tiles, distance, fitted, plain, replayed, skeleton
from tapml_stages.search_modules import Space
from tapml_stages.target import tvm_target


def space(*, legal: bool = True) -> Space:
    return Space(
        knobs={"rows": (1, 2, 4, 6), "stage": (0, 1), "rule": ("dense", "rows")},
        default={"rows": 4, "stage": 1, "rule": "dense"},
        build=lambda decisions: None,
        legal=lambda decisions: legal,
        features=lambda decisions: (),
    )


def test_decisions_stay_where_they_fit_and_move_to_the_next_option_else() -> None:
    there = {"rows": 8, "stage": 0, "rule": "columns"}
    assert fitted(there, space()) == {"rows": 6, "stage": 0, "rule": "dense"}
    assert fitted({**there, "rows": 2, "rule": "rows"}, space()) == {
        "rows": 2,
        "stage": 0,
        "rule": "rows",
    }


def test_decisions_of_another_kind_or_that_are_not_legal_do_not_fit() -> None:
    there = {"rows": 8, "stage": 0, "rule": "dense"}
    assert fitted({"rows": 8}, space()) is None
    assert fitted(there, space(legal=False)) is None


@given(st.integers(1, 4096), st.lists(st.integers(1, 64), min_size=2, max_size=4))
def test_tiles_fill_the_loop_and_keep_to_the_innermost_bound(extent: int, sizes: list[int]) -> None:
    found = _tiles(extent, sizes, 64)
    assert math.prod(found) == extent
    assert len(found) == len(sizes)
    assert found[-1] <= 64


@given(st.lists(st.integers(1, 16), min_size=2, max_size=4))
def test_tiles_of_an_equal_loop_are_the_same(sizes: list[int]) -> None:
    assert _tiles(math.prod(sizes), sizes, 64) == sizes


def test_primfuncs_of_one_operator_differ_in_sizes_only() -> None:
    one, other = skeleton(matmul(32, 64, 64)), skeleton(matmul(48, 96, 128))
    assert one[0] == other[0]
    assert one[0] != skeleton(softplus(32, 64))[0]
    assert distance(one[1], one[1]) == 0 < distance(one[1], other[1])


@pytest.fixture(scope="module")
def trace(target: Target) -> str:
    """A trace of MetaSchedule's rules for a matmul, as a search writes it."""
    from tvm.s_tir import meta_schedule as ms

    mod = tvm.IRModule({"main": matmul(32, 64, 64).with_attr("global_symbol", "main")})
    context = ms.TuneContext(
        mod,
        target=tvm_target(target),
        space_generator="post-order-apply",
        search_strategy="replay-trace",
        rand_state=1,
        num_threads=1,
    )
    context.pre_tuning(4, 4, database=ms.database.MemoryDatabase())
    found = context.generate_measure_candidates()
    assert found
    assert found[0].sch.trace is not None
    return json.dumps(plain(found[0].sch.trace.as_json()))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(48, 96, 128), (31, 64, 20), (1, 7, 1)])
def test_a_trace_computes_what_the_other_primfunc_says(
    trace: str, target: Target, sizes: tuple[int, int, int]
) -> None:
    m, k, n = sizes
    found = replayed(trace, matmul(32, 64, 64), matmul(m, k, n), tvm_target(target))
    assert found is not None
    scheduled, own = found
    assert json.loads(own)[1]  # decisions of its own
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((m, k), (k, n)))
    out = tvm.runtime.tensor(np.full((m, n), np.nan, "float32"))
    built: Any = tvm.compile(tvm.IRModule({"main": scheduled}), tvm_target(target))
    built["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), out)
    np.testing.assert_allclose(out.numpy(), a.astype("float64") @ b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_trace_of_another_operator_or_no_trace_gives_none(trace: str, target: Target) -> None:
    from_matmul = replayed(trace, matmul(32, 64, 64), softplus(32, 64), tvm_target(target))
    assert from_matmul is None
    assert replayed("[1]", matmul(8, 8, 8), matmul(8, 8, 8), tvm_target(target)) is None
