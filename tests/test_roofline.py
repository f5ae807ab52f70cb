"""What a kernel has to do, and what the machine allows it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_programs import HOST

from tapml.errors import StageError
from tapml_stages import roofline
from tapml_stages.compat import tvm
from tapml_stages.measure import Arg, Bench, Timing
from tapml_stages.roofline import Limits, Work

te = tvm.te
LIMITS = Limits(100e9, ((2**20, 50e9), (2**25, 10e9)))


def product(rows: Any) -> Any:
    """`exp(x @ w) + 1` of [rows, 64] and [64, 32]."""
    x, w = te.placeholder((rows, 64)), te.placeholder((64, 32))
    axis = te.reduce_axis((0, 64))
    y = te.compute((rows, 32), lambda i, j: te.sum(x[i, axis] * w[axis, j], axis))
    out = te.compute((rows, 32), lambda i, j: tvm.tirx.exp(y[i, j]) + tvm.tirx.const(1, "float32"))
    return te.create_prim_func([x, w, out])


def args(*shapes: tuple[int, ...]) -> list[Arg | int]:
    return [Arg(shape, "float32") for shape in shapes]


def test_operations_and_bytes_are_those_of_the_sizes_static_or_not() -> None:
    shapes = args((8, 64), (64, 32), (8, 32))
    static = roofline.work(product(8), shapes)
    assert static == Work(2 * 8 * 64 * 32 + 8 * 32, 4 * (8 * 64 + 64 * 32 + 8 * 32))
    assert roofline.work(product(tvm.tirx.Var("n", "int64")), shapes) == static


def test_of_a_table_that_is_looked_up_only_the_rows_count() -> None:
    table, places = te.placeholder((1000, 16)), te.placeholder((5,), "int64")
    rows = te.compute((5, 16), lambda i, j: table[places[i], j])
    func = te.create_prim_func([table, places, rows])
    given_ = [Arg((1000, 16), "float32"), Arg((5,), "int64"), Arg((5, 16), "float32")]
    assert roofline.work(func, given_).bytes == 2 * 5 * 16 * 4 + 5 * 8


def test_narrow_types_count_by_their_width() -> None:
    x = te.placeholder((64,), "int8")
    func = te.create_prim_func([x, te.compute((64,), lambda i: x[i].astype("float16"))])
    assert roofline.work(func, [Arg((64,), "int8"), Arg((64,), "float16")]).bytes == 64 + 128


def test_the_limit_that_binds_is_the_one_that_takes_longer() -> None:
    assert LIMITS.binds(Work(1e6, 100)) == "FMA"
    assert LIMITS.least_ms(Work(1e6, 100)) == pytest.approx(1e-2)
    assert LIMITS.binds(Work(10, 1e6)) == "read"
    assert LIMITS.least_ms(Work(10, 1e6)) == pytest.approx(2e-2)
    assert LIMITS.least_ms(Work(10, 1e9)) == pytest.approx(100)  # too large for any cache measured


@given(st.floats(1, 1e12), st.floats(1, 1e11), st.floats(1, 2))
def test_more_work_is_never_allowed_less_time(operations: float, size: float, more: float) -> None:
    least = LIMITS.least_ms(Work(operations, size))
    assert 0 < least <= LIMITS.least_ms(Work(operations * more, size))
    assert least <= LIMITS.least_ms(Work(operations, size * more))


def test_a_limit_that_cannot_be_measured_is_named() -> None:
    class Failing:
        def run(self, jobs: Any, **_: Any) -> Any:
            return iter([Timing(job.id, error="does not build") for job in jobs])

    with pytest.raises(StageError, match="the limits of this machine: fma does not build; read"):
        roofline.measure(Failing(), HOST)  # pyright: ignore[reportArgumentType]  # no workers


@pytest.mark.slow
def test_the_machine_is_measured_at_the_threads_of_the_target() -> None:
    target = with_threads(2)
    with Bench(target) as bench:
        limits = roofline.measure(bench, target)
    assert limits.operations > 1e6  # far less than any machine does, however busy it is
    assert [size for size, _ in limits.reads] == [2 * size for size in roofline.READS]
    assert all(rate > 1e4 for _, rate in limits.reads)
    assert all(a < b for (a, _), (b, _) in pairwise(limits.reads))


def with_threads(threads: int) -> Any:
    return HOST.model_copy(update={"device": HOST.device.model_copy(update={"threads": threads})})
