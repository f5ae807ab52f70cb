"""What the room tells: where kernels stand, what to tune next, curves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from metaschedule_programs import matmul
from small_programs import HOST

from tapml import events
from tapml.stage import Amount
from tapml_stages import records
from tapml_stages.measure import Arg, Timing
from tapml_stages.metaschedule.advice import LINES, advise
from tapml_stages.metaschedule.choose import Outcome, Shipped
from tapml_stages.metaschedule.contest import Entry
from tapml_stages.metaschedule.kernels import Kernel, Site
from tapml_stages.metaschedule.position import positions
from tapml_stages.metaschedule.report import draw
from tapml_stages.metaschedule.stage import TRIALS_PER_S, MetaSchedule, Tuning
from tapml_stages.metaschedule.tune import Searched, Tuned
from tapml_stages.records import Candidate, Choices, KernelChoice
from tapml_stages.roofline import Limits

FUNC = matmul(32, 64, 64)
ARGS = (Arg((32, 64), "float32"), Arg((64, 64), "float32"), Arg((32, 64), "float32"))
OPERATIONS = 2 * 32 * 64 * 64
LIMITS = Limits(OPERATIONS * 1e3, ((2**20, 1e12),))  # a call takes a millisecond at best


def shipped(name: str, ms: float, kind: Any = "default", **changes: Any) -> Shipped:
    record = records.Record(f"{name}-{kind}", name, "", "default", "dense", "")
    site = Site("main", ARGS, 1, changes.pop("calls", 1))
    kernel = Kernel(name, FUNC, record, (site,), "", **{"symbolic": False, **changes})
    return Shipped(kernel, site, Entry(kind, record.id, Timing(record.id, (ms,))), "dense")


def outcome(*ones: Shipped, default_ms: float = 1.0) -> Outcome:
    choices = [
        KernelChoice(
            one.kernel.name,
            one.entry.id,
            (
                Candidate("default", "first", default_ms),
                Candidate(one.entry.kind, one.entry.id, one.entry.timing.ms),
            ),
        )
        for one in ones
    ]
    return Outcome(Choices(tuple(choices)), (), ones, ())


def told(*ones: Shipped, tuned: Tuned | None = None, trials: int = 0) -> list[str]:
    found = positions(outcome(*ones), LIMITS)
    advice = advise(found, tuned or Tuned(), Tuning(trials=trials), {"batch": 8})
    return [f"{one.position.shipped.kernel.name}: {one.why}; {one.recipe}" for one in advice]


def test_a_kernel_stands_at_its_share_of_the_limit_that_binds_it() -> None:
    fast, slow = positions(outcome(shipped("slow", 4, calls=2), shipped("fast", 2)), LIMITS)[::-1]
    assert (slow.binds, slow.reached, slow.to_win_ms) == ("FMA", pytest.approx(0.25), 6)
    assert (fast.reached, fast.share) == (pytest.approx(0.5), pytest.approx(0.2))
    assert fast.to_win == pytest.approx(0.1)


def test_a_sparse_implementation_has_no_place_below_the_limits_of_the_dense_kernel() -> None:
    [one] = positions(outcome(shipped("a", 4, "sparse")), LIMITS)
    assert (one.work, one.reached, one.to_win) == (None, None, 0)


def test_the_gain_is_the_default_s_time_over_the_tuned_one_s() -> None:
    [one] = positions(outcome(shipped("a", 2, "tuned"), default_ms=3), LIMITS)
    assert one.gain == pytest.approx(1.5)


def test_time_times_headroom_ranks_what_to_tune_next() -> None:
    at_the_limit, large, small = shipped("limit", 1), shipped("large", 8), shipped("small", 3)
    assert told(at_the_limit, small, large) == [
        "large: not tuned; tuning: {trials: 64}",
        "small: not tuned; tuning: {trials: 64}",
    ]


@pytest.mark.parametrize(
    ("searched", "advice"),
    [
        (
            Searched(("a",), 8, (9.0, None)),
            "2 trials so far; tuning: {trials: 32}",
        ),
        (Searched(("b",), 8, (9.0,)), "no trial yet; tuning: {trials: 32}"),
        (
            Searched(("a",), 8, (9.0,), "its space is exhausted"),
            "its space is exhausted after 1 trials; a rule or a module of the space has to offer "
            "more",
        ),
    ],
)
def test_the_recipe_line_follows_from_the_trials_so_far(searched: Searched, advice: str) -> None:
    assert told(shipped("a", 8), tuned=Tuned(searched=(searched,)), trials=16) == [f"a: {advice}"]


def test_a_kernel_at_its_own_cap_of_trials_needs_a_higher_one() -> None:
    tuned = Tuned(searched=(Searched(("a",), 8, (9.0,)),))
    found = positions(outcome(shipped("a", 8)), LIMITS)
    [one] = advise(found, tuned, Tuning(trials=16, max_trials_per_kernel=2), {})
    assert one.recipe == "tuning: {max_trials_per_kernel: 4, trials: 32}"


def test_a_kernel_of_any_size_that_nothing_searches_is_tuned_as_a_bucket() -> None:
    tuned = Tuned(searched=(Searched(("a",), 8, (), "its space is exhausted"),))
    [advice] = told(shipped("a", 8, symbolic=True), tuned=tuned, trials=16)
    assert advice.endswith("but those of a bucket; add {batch: 8} to model.buckets")


def test_the_report_goes_through_the_journal_unchanged() -> None:
    kernels = [shipped(f"kernel_{i}", 2.0 + i, "tuned" if i % 2 else "default") for i in range(90)]
    tuned = Tuned(
        trials=3,
        measured=2,
        seconds=4.0,
        curves={"main": ((0.0, 5.0), (1.0, 4.0))},
        searched=(Searched(("kernel_0",), 4.0, (None, 8.0, 3.0)),),
    )
    report = draw(outcome(*kernels), tuned, Tuning(trials=3), LIMITS, {})
    assert events.report_from_data(events.report_to_data(report)) == replace(
        report, curves=tuple(replace(c, lines=dict(c.lines)) for c in report.curves)
    )
    assert len(report.advice) == LINES
    assert len(report.bars[0].bars) == len(report.scatters[0].dots) == 90
    assert report.metrics["tuning/trials_per_s"] == 0.5
    assert report.metrics["tuning/main_gain"] < 1  # default 1 ms, tuned ones slower
    by_kernel = report.curves[1]
    assert by_kernel.lines["kernel_0"] == ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 0.75))


def test_without_a_search_there_are_neither_its_curves_nor_its_figures() -> None:
    report = draw(outcome(shipped("a", 8)), Tuned(), Tuning(), LIMITS, {})
    assert not report.curves
    assert not [name for name in report.metrics if name.startswith("tuning/")]


def test_the_trials_of_a_recipe_are_its_amount_and_none_where_nothing_is_tuned() -> None:
    stage = MetaSchedule(target=HOST, tuning=Tuning(trials=64, max_seconds=9.0))
    assert stage.amount() == Amount("tuning", "trials", 64, 9.0, TRIALS_PER_S)
    assert MetaSchedule(target=HOST).amount() is None
