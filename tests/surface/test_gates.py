from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from tapml import facts, gates, host
from tapml.recipe.schema import Gates, LatencyLimit, Limits

Cli = Callable[..., Any]


def measured(**changes: Any) -> facts.Facts:
    error = {"max_abs": 1e-6, "relative": 2e-6, "tolerance": 1e-4, "reason": "", "passed": True}
    row = {
        "sizes": {"batch": 1},
        "threads": 2,
        "ours_ms": {"p50": 2.0, "low": 1.9, "high": 2.4, "n": 9},
        "peer": "onnxruntime 1.32.0",
        "peer_ms": {"p50": 1.0, "low": 0.9, "high": 1.1, "n": 9},
        "ratio": 2.0,
    }
    base = {
        "metric": {"top1": 0.99},
        "error": error,
        "latency": [row, {**row, "sizes": {"batch": 16}, "ratio": 0.5}],
        "bundle_mib": 4.0,
        "host": host.fingerprint(),
    }
    return facts.parse({**base, **changes})


def test_the_error_is_judged_without_any_gate_in_the_recipe() -> None:
    (verdict,) = gates.judge(Gates(), measured())
    assert verdict.builtin
    assert verdict.passed
    assert (verdict.figure, verdict.limit) == (2e-6, 1e-4)


def test_an_error_that_validation_did_not_pass_fails_whatever_its_figure() -> None:
    error = {"relative": math.nan, "tolerance": 1e-4, "passed": False}
    (verdict,) = gates.judge(Gates(), measured(error=error))
    assert not verdict.passed


def test_a_metric_below_its_limit_says_by_how_much() -> None:
    verdict = gates.judge(Gates(metric=Limits(min=0.995)), measured())[-1]
    assert not verdict.passed
    assert str(verdict) == "metric.top1 0.99, limit ≥ 0.995; 0.005 below"


def test_a_metric_on_its_limit_passes() -> None:
    assert gates.judge(Gates(metric=Limits(min=0.99, max=0.99)), measured())[-1].passed


def test_a_named_limit_without_a_figure_fails() -> None:
    verdict = gates.judge(Gates(metric={"iou": Limits(min=0.5)}), measured())[-1]
    assert not verdict.passed
    assert "no figure" in str(verdict)


def test_a_metric_gate_without_any_metric_fails() -> None:
    verdict = gates.judge(Gates(metric=Limits(min=0.5)), measured(metric={}))[-1]
    assert (verdict.gate, verdict.passed) == ("metric", False)


def test_a_metric_that_is_not_a_number_passes_no_limit() -> None:
    facts_with_nan = measured(metric={"top1": math.nan})
    assert not gates.judge(Gates(metric=Limits(min=0.1)), facts_with_nan)[-1].passed
    assert not gates.judge(Gates(metric=Limits(max=0.1)), facts_with_nan)[-1].passed


def test_the_slowest_size_is_held_to_the_latency_limit() -> None:
    verdict = gates.judge(Gates(latency_vs=LatencyLimit(max_ratio=1.5)), measured())[-1]
    assert (verdict.figure, verdict.passed) == (2.0, False)
    assert "batch 1" in verdict.note


def test_a_foreign_timing_satisfies_no_gate() -> None:
    limits = Gates(latency_vs=LatencyLimit(max_ratio=9.0))
    assert gates.judge(limits, measured())[-1].passed
    verdict = gates.judge(limits, measured(), foreign=True)[-1]
    assert not verdict.passed
    assert "another machine" in verdict.note


def test_facts_of_another_cpu_are_foreign() -> None:
    assert not gates.is_foreign(measured())
    assert gates.is_foreign(measured(host={**host.fingerprint(), "cpu": "abacus"}))


def test_size_and_error_have_gates_of_their_own() -> None:
    limits = Gates(max_error=1e-6, bundle_mib=4.5)
    verdicts = {v.gate: v.passed for v in gates.judge(limits, measured())}
    assert verdicts == {"error": True, "max_error": False, "bundle_mib": True}


def test_the_error_of_failed_gates_names_each_and_exits_with_4() -> None:
    failed = gates.error(gates.judge(Gates(max_error=1e-6, bundle_mib=1.0), measured()))
    assert failed is not None
    assert failed.exit_code == 4
    assert "max_error" in str(failed)
    assert "bundle_mib" in str(failed)
    assert "limit ≤ 0.0001" not in str(failed)


def test_no_error_when_all_passed() -> None:
    assert gates.error(gates.judge(Gates(), measured())) is None


def beside(run: str = "baseline", max_ratio: float = 1.1) -> Gates:
    return Gates(latency_vs=LatencyLimit(run=run, max_ratio=max_ratio))


def timed(p50: float, *, half: float = 0.1, batch: int = 1, threads: int = 2) -> dict[str, Any]:
    """A row of latency without a peer."""
    return {
        "sizes": {"batch": batch},
        "threads": threads,
        "ours_ms": {"p50": p50, "low": p50 - half, "high": p50 + half, "n": 9},
    }


def test_the_slowest_common_size_is_held_to_the_limit_beside_another_run() -> None:
    mine = measured(latency=[timed(2.0), timed(9.0, batch=16), timed(99.0, batch=64)])
    other = measured(latency=[timed(1.0), timed(3.0, batch=16)])
    verdict = gates.judge(beside(), mine, other=other)[-1]
    assert (verdict.figure, verdict.passed) == (3.0, False)
    assert "at batch 16" in verdict.note
    assert "which timed 2 of 3 sizes" in verdict.note
    assert verdict.distance == "2.73x above"


def test_a_run_within_the_limit_of_another_run_passes() -> None:
    other = measured(latency=[timed(1.0)])
    assert gates.judge(beside(), measured(latency=[timed(1.05)]), other=other)[-1].passed


def test_a_difference_inside_the_spreads_is_said_to_be() -> None:
    other = measured(latency=[timed(1.0)])
    near = gates.judge(beside(), measured(latency=[timed(1.15)]), other=other)[-1]
    far = gates.judge(beside(), measured(latency=[timed(1.5)]), other=other)[-1]
    assert "the difference lies inside the spreads" in near.note
    assert "spreads" not in far.note


@pytest.mark.parametrize("row", [timed(1.0, batch=2), timed(1.0, threads=1)])
def test_other_sizes_and_other_threads_are_not_compared(row: dict[str, Any]) -> None:
    verdict = gates.judge(
        beside(max_ratio=9.0), measured(latency=[timed(1.0)]), other=measured(latency=[row])
    )[-1]
    assert (verdict.figure, verdict.passed) == (None, False)
    assert "equal sizes and threads" in verdict.note


@pytest.mark.parametrize("elsewhere", [{"cpu": "abacus"}, {"machine": "0123456789ab"}])
def test_a_run_of_another_machine_gives_no_figure(elsewhere: dict[str, str]) -> None:
    other = measured(latency=[timed(1.0)], host={**host.fingerprint(), **elsewhere})
    verdict = gates.judge(beside(max_ratio=9.0), measured(latency=[timed(1.0)]), other=other)[-1]
    assert (verdict.figure, verdict.passed) == (None, False)
    assert "run it on this one too" in verdict.note


def test_foreign_timings_give_no_figure_beside_another_run() -> None:
    other = measured(latency=[timed(1.0)])
    mine = measured(latency=[timed(1.0)])
    verdict = gates.judge(beside(max_ratio=9.0), mine, foreign=True, other=other)[-1]
    assert (verdict.figure, verdict.passed) == (None, False)


def test_without_a_baseline_the_gate_fails_and_says_how_to_mark_one() -> None:
    verdict = gates.judge(beside(), measured())[-1]
    assert not verdict.passed
    assert "`tapml runs --baseline RUN` marks one" in str(verdict)


def test_an_unknown_run_is_refused_before_anything_runs_with_the_nearest_name(cli: Cli) -> None:
    assert cli("run", "little.yaml").code == 0
    limit = "validation.gates.latency_vs={run: litle, max_ratio: 2}"
    for command in ("run", "plan"):
        done = cli(command, "little.yaml", "--set", limit)
        assert done.code == 2
        assert "no run litle" in done.err
        assert "did you mean 'little'?" in done.err


def test_a_run_that_timed_nothing_is_refused_as_something_to_compare_with(cli: Cli) -> None:
    assert cli("run", "little.yaml", "--to", "scale").code == 0
    done = cli("plan", "little.yaml", "--set", beside_text("last"))
    assert done.code == 2
    assert "has no latency" in done.err


def beside_text(run: str, max_ratio: float = 1e9) -> str:
    return f"validation.gates.latency_vs={{run: {run}, max_ratio: {max_ratio}}}"


@pytest.mark.parametrize("name", ["little", "last", "baseline"])
def test_a_run_is_held_to_another_run_by_name_and_by_mark(cli: Cli, name: str) -> None:
    cli("run", "little.yaml")
    assert cli("runs", "--baseline", "last").code == 0
    passed = cli("run", "little.yaml", "--set", beside_text(name))
    assert passed.code == 0, passed.err
    assert "gate     passed  latency_vs 1, limit ≤ 1e+09" in passed.out
    failed = cli("run", "little.yaml", "--set", beside_text(name, 0.5))
    assert failed.code == 4
    assert "latency_vs 1, limit ≤ 0.5; 2x above; at n 1000, beside run 2" in failed.err


@pytest.mark.parametrize(("limit", "passed"), [(0, False), (1, True), (None, None)])
def test_kernels_that_differ_are_judged_where_the_recipe_says_so(
    limit: int | None, passed: bool | None
) -> None:
    carve = {"checked": 9, "failed": [{"kernel": "k"}]}
    verdicts = gates.judge(Gates(failed_kernels=limit), measured(carve=carve))
    found = {verdict.gate: verdict.passed for verdict in verdicts}
    assert found.get("failed_kernels") is passed


def test_what_was_not_carved_passes_no_gate() -> None:
    verdict = gates.judge(Gates(failed_kernels=9), measured())[-1]
    assert (verdict.figure, verdict.passed) == (None, False)


def test_a_recipe_without_a_baseline_fails_its_gate_with_4(cli: Cli) -> None:
    done = cli("run", "little.yaml", "--set", beside_text("baseline"))
    assert done.code == 4
    assert "latency_vs no figure, limit ≤ 1e+09; this recipe has no baseline" in done.err


@pytest.mark.parametrize(
    ("ours", "words", "tone"),
    [
        ((0.5, 0.45, 0.6), "2.00x faster than onnxruntime", "good"),
        ((1.4, 1.3, 1.5), "1.40x SLOWER than onnxruntime", "bad"),
        ((0.91, 0.85, 0.95), "within noise of onnxruntime", ""),
        ((1.3, 1.05, 1.5), "within noise of onnxruntime", ""),
    ],
)
def test_speed_is_said_in_words(ours: tuple[float, ...], words: str, tone: str) -> None:
    spread = dict(zip(("p50", "low", "high"), ours, strict=True))
    row = {**vars_of_latency(), "ours_ms": spread, "ratio": ours[0]}
    (found,) = measured(latency=[row]).latency
    assert (found.words, found.tone) == (words, tone)


def vars_of_latency() -> dict[str, Any]:
    return {
        "sizes": {},
        "threads": 1,
        "ours_ms": {"p50": 1.0},
        "peer": "onnxruntime 1.32.0",
        "peer_ms": {"p50": 1.0, "low": 0.9, "high": 1.1},
    }
