"""Timing in isolated workers: values, crashes, hangs, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from processes import wait_for

from tapml.errors import EnvironmentalError
from tapml.stage import Device, Target
from tapml_stages import codec
from tapml_stages.compat import tvm
from tapml_stages.measure import Arg, Bench, Job, Timing, interval, measure, ratio
from tapml_stages.measure_worker import MIN_BURSTS, random_values

TARGET = Target(kind="llvm", mcpu="x86-64-v3", cores=2, device=Device(kind="local", threads=1))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """A bench of one worker, which is gone after the last test."""
    before = psutil.Process().children()
    with Bench(TARGET, workers=1) as bench:
        yield bench
        children = [child for child in psutil.Process().children() if child not in before]
        assert children
    assert not [child for child in children if child.is_running()]


def times(bench: Bench, *jobs: Job) -> list[Timing]:
    found = {timing.id: timing for timing in bench.run(jobs, seconds=0.01)}
    return [found[job.id] for job in jobs]


def module(build: Any, kernel: str = "k") -> str:
    func = tvm.te.create_prim_func(build()).with_attr("global_symbol", kernel)
    return tvm.ir.save_json(tvm.IRModule({kernel: func}))


def scale(factor: float, n: Any = 64) -> str:
    def build() -> list[Any]:
        a = tvm.te.placeholder((n,), name="a")
        return [a, tvm.te.compute((n,), lambda i: a[i] * tvm.tirx.const(factor, "float32"))]

    return module(build)


def call(name: str, *args: Any) -> str:
    """A kernel that makes one call to the C library."""

    def build() -> list[Any]:
        a = tvm.te.placeholder((4,), name="a", dtype="int32")
        return [
            a,
            tvm.te.compute((4,), lambda i: tvm.tirx.call_pure_extern("int32", name, *args) + a[i]),
        ]

    return module(build)


def job(name: str, text: str, **facts: Any) -> Job:
    dtype = facts.pop("dtype", "float32")
    size = facts.pop("size", 64)
    args = facts.pop("args", (Arg((size,), dtype), Arg((size,), dtype)))
    return Job(id=name, module=text, kernel="k", args=args, **facts)


def test_a_timing_holds_every_burst_and_its_spread() -> None:
    [timing] = measure([job("a", scale(2.0))], TARGET, seconds=0.05)
    assert timing.error == ""
    assert len(timing.bursts_ms) >= 5
    assert 0 < timing.low_ms <= timing.ms <= timing.high_ms


def test_a_symbolic_kernel_is_timed_at_the_sizes_given(bench: Bench) -> None:
    [timing] = times(bench, job("a", scale(2.0, tvm.tirx.Var("n", "int64")), size=33))
    assert timing.error == ""


@pytest.mark.slow
def test_a_crash_a_hang_and_a_broken_build_each_cost_one_job() -> None:
    jobs = [
        job("good", scale(2.0), group="g"),
        job("abort", call("abort"), group="g", dtype="int32", size=4),
        job("hang", call("pause"), dtype="int32", size=4),
        job("missing", call("no_such_function_anywhere"), dtype="int32", size=4),
        job("broken", scale(2.0).replace('"k"', '"other"')),
        job("also good", scale(3.0), group="g"),
    ]
    with Bench(TARGET, run_timeout_s=1.5) as bench:
        found = {timing.id: timing for timing in bench.run(jobs, seconds=0.01)}
    assert len(found) == len(jobs)
    assert "SIGABRT" in found["abort"].error
    assert "no answer in 1.5 s" in found["hang"].error
    assert found["broken"].error.startswith("does not build")
    assert found["missing"].error
    assert [found[name].error for name in ("good", "also good")] == ["", ""]
    assert len(found["good"].bursts_ms) == len(found["also good"].bursts_ms)


def test_outputs_that_are_not_written_are_found_by_their_poison(bench: Bench) -> None:
    def build() -> list[Any]:
        a = tvm.te.placeholder((64,), name="a")
        out = tvm.te.extern(
            (64,),
            [a],
            lambda ins, outs: tvm.tirx.Evaluate(tvm.tirx.const(0, "int32")),
            dtype="float32",
        )
        return [a, out]

    [timing] = times(bench, job("a", module(build)))
    assert timing.error == "does not write all of its output"


def test_a_kernel_may_compute_nan_where_its_like_does(bench: Bench) -> None:
    def logarithm(factor: float) -> str:
        def build() -> list[Any]:
            a = tvm.te.placeholder((64,), name="a")
            return [a, tvm.te.compute((64,), lambda i: tvm.te.log(a[i] - factor))]

        return module(build)

    jobs = [
        job("base", logarithm(0.5), group="g"),
        job("same", logarithm(0.5), group="g", like="base"),
        job("more", logarithm(0.6), group="g", like="base"),
    ]
    base, same, more = times(bench, *jobs)
    assert (base.error, same.error, same.deviation) == ("", "", 0.0)
    assert more.error == "gives NaN or infinite values where others do not"


def test_a_candidate_that_differs_from_its_like_is_wrong(bench: Bench) -> None:
    jobs = [
        job("base", scale(2.0), group="g"),
        job("same", scale(2.0), group="g", like="base"),
        job("off", scale(2.1), group="g", like="base"),
    ]
    base, same, off = times(bench, *jobs)
    assert (base.deviation, same.deviation, same.error) == (None, 0.0, "")
    assert off.error.startswith("is wrong: off by 5.0e-02")


def test_stored_arrays_are_the_inputs_and_the_outputs_expected(
    bench: Bench, tmp_path: Path
) -> None:
    file = tmp_path / "arrays.npz"
    x = np.arange(64, dtype=np.float32)
    codec.write_npz(file, {"x": x, "y/ok": 2 * x, "y/bad": 2 * x + 1})
    jobs = [
        job(
            key,
            scale(2.0),
            args=(Arg((64,), "float32", str(file), "x"), Arg((64,), "float32", str(file), key)),
        )
        for key in ("y/ok", "y/bad")
    ]
    good, bad = times(bench, *jobs)
    assert good.error == ""
    assert good.deviation == 0
    assert bad.error.startswith("is wrong")


def test_an_array_of_another_shape_is_refused(bench: Bench, tmp_path: Path) -> None:
    codec.write_npz(tmp_path / "a.npz", {"x": np.zeros(3, np.float32)})
    args = (Arg((64,), "float32", str(tmp_path / "a.npz"), "x"), Arg((64,), "float32"))
    [timing] = times(bench, job("a", scale(2.0), args=args))
    assert "is not float32(64,)" in timing.error


def test_random_integers_index_no_axis_out_of_range() -> None:
    values = random_values((1000,), "int32", below=5, seed=0)
    assert set(values) == {0, 1, 2, 3, 4}


def test_the_ratio_of_two_timings_pairs_their_bursts() -> None:
    calm, disturbed = Timing("a", (1.0, 10.0, 1.0)), Timing("b", (2.0, 20.0, 2.0))
    assert ratio(calm, disturbed) == 0.5


def test_the_ratio_counts_the_bursts_that_both_had() -> None:
    long, short = Timing("a", (1.0, 1.0, 9.0, 9.0)), Timing("b", (2.0, 2.0))
    assert ratio(short, long) == 2.0


def test_the_interval_of_a_median_is_moved_by_no_outlier() -> None:
    values = [1.0 + 0.001 * (number % 7) for number in range(40)]
    low, high = interval([*values, 2719.0, 0.0001])
    assert 1.0 <= low <= high <= 1.006
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)  # few values say little


def test_what_is_clearly_slower_than_the_bar_is_timed_no_longer_than_that_takes(
    bench: Bench,
) -> None:
    jobs = [
        job("first", scale(2.0), group="g"),
        job("slow", scale(2.0, 1 << 20), group="g", size=1 << 20),
    ]
    found = {timing.id: timing for timing in bench.run(jobs, seconds=2.0, bar=1.0)}
    slow, first = (found[name].bursts_ms for name in ("slow", "first"))
    assert MIN_BURSTS <= len(slow) == len(first) < 100  # of about 500 in the time given
    assert ratio(found["slow"], found["first"]) > 10


@pytest.mark.slow
def test_a_run_may_be_given_less_time_than_the_bench_gives() -> None:
    with Bench(TARGET, workers=1) as bench:
        hang = job("hang", call("pause"), dtype="int32", size=4)
        [timing] = bench.run([hang], seconds=0.01, timeout_s=25)
    assert timing.error == "no answer in 25 s while it was run"


def test_more_work_takes_longer(bench: Bench) -> None:
    jobs = [
        job("small", scale(2.0), group="g"),
        job("large", scale(2.0, 1 << 20), group="g", size=1 << 20),
    ]
    small, large = times(bench, *jobs)
    assert ratio(large, small) > 10


@pytest.mark.slow
def test_no_worker_outlives_the_bench() -> None:
    before = psutil.Process().children()
    with Bench(TARGET) as bench:
        times(bench, job("a", scale(2.0)), job("b", scale(3.0)))
        children = [child for child in psutil.Process().children() if child not in before]
        assert len(children) == 2
    assert not [child for child in children if child.is_running()]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("at", ["its start", "a kernel that hangs"])
def test_workers_die_with_a_parent_that_is_killed(at: str) -> None:
    folders = [str(Path(__file__).parents[up]) for up in (0, 1)]
    script = f"""
import sys; sys.path[:0] = {folders!r}
from test_measure import Bench, TARGET, call, job, scale
jobs = [job("good", scale(2.0)), job("hang", call("pause"), dtype="int32", size=4)]
with Bench(TARGET, workers=1) as bench:
    for timing in bench.run(jobs, seconds=0.01):
        print(timing.id, flush=True)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        if at == "a kernel that hangs":
            assert parent.stdout.readline() == "good\n"  # the other one is next
        [worker] = wait_for(psutil.Process(parent.pid).children, limit_s=120)
        parent.kill()
        parent.wait()
        _, left = psutil.wait_procs([worker], timeout=120)  # it may have been about to import TVM
    assert not left


def test_a_worker_that_cannot_start_is_the_environments_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EnvironmentalError, match="does not work"):
        measure([job("a", scale(2.0))], TARGET)
