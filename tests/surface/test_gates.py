from __future__ import annotations

import math
from typing import Any

import pytest

from tapml import facts, gates, host
from tapml.errors import RecipeError
from tapml.recipe.schema import Gates, LatencyLimit, Limits


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


def test_a_comparison_with_anything_but_the_peer_is_refused_beforehand() -> None:
    with pytest.raises(RecipeError, match="cannot compare with 'last-week'"):
        gates.check(Gates(latency_vs=LatencyLimit(run="last-week", max_ratio=1)))


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.5, "2.00x faster than onnxruntime"),
        (1.4, "1.40x SLOWER than onnxruntime"),
        (1.01, "as fast as onnxruntime"),
    ],
)
def test_speed_is_said_in_words(ratio: float, words: str) -> None:
    row = {**vars_of_latency(), "ratio": ratio}
    assert measured(latency=[row]).latency[0].words == words


def vars_of_latency() -> dict[str, Any]:
    return {
        "sizes": {},
        "threads": 1,
        "ours_ms": {"p50": 1.0},
        "peer": "onnxruntime 1.32.0",
        "peer_ms": {"p50": 1.0},
    }
