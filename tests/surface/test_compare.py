from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml import compare, runs, summary
from tapml.errors import RecipeError
from tapml.runs import RunResult
from tapml.store import Record, Store
from tapml.verdicts import Verdict

Made = Callable[..., RunResult]
Cli = Callable[..., Any]


@pytest.fixture
def of(tmp_path: Path) -> Callable[..., compare.Comparison]:
    return lambda *results: compare.of(results, Store(tmp_path / "store"))


Of = Callable[..., compare.Comparison]


def row(found: compare.Comparison, name: str) -> compare.Row:
    return next(one for one in found.rows if one.name.startswith(name))


def test_fields_that_differ_are_shown_old_to_new(made: Made, of: Of) -> None:
    a = made(fields={"tuning.trials": 0, "tuning.seed": 1, "relax.old": True})
    b = made(fields={"tuning.trials": 64, "tuning.seed": 1, "relax.new": "x"})
    found = of(a, b)
    assert found.fields == {
        "relax.new": (None, "x"),
        "relax.old": (True, None),
        "tuning.trials": (0, 64),
    }
    text = summary.of_comparison(found)
    assert "tuning.trials  0 → 64" in text
    assert "tuning.seed" not in text


def test_long_values_are_shown_from_where_they_differ(made: Made, of: Of) -> None:
    same = "layer, " * 40
    found = of(made(fields={"s.layers": f"{same}a"}), made(fields={"s.layers": f"{same}b"}))
    text = summary.of_comparison(found)
    assert "s.layers  …layer, layer, a → …layer, layer, b" in text


def test_a_latency_outside_the_noise_has_a_winner(made: Made, of: Of) -> None:
    found = of(made(2.0), made(1.0))
    latency = row(found, "latency batch 1")
    assert (latency.words, latency.tones, latency.best) == (("2.00x faster",), ("good",), 1)
    assert "2 ms (1.9 … 2.1)" in summary.of_comparison(found)


def test_a_latency_within_the_noise_has_no_winner(made: Made, of: Of) -> None:
    found = of(made(1.0), made(1.15))
    assert row(found, "latency").words == ("within noise",)
    assert row(found, "latency").best is None
    assert "within noise" in summary.of_comparison(found)
    assert "faster" not in summary.of_comparison(found)


@pytest.mark.parametrize("place", [{"on": {"cpu": "abacus"}}, {"machine": "0123456789ab"}])
def test_between_machines_there_is_no_winner_on_time(
    made: Made, of: Of, place: dict[str, Any]
) -> None:
    found = of(made(2.0), made(1.0, **place))
    assert row(found, "latency").words == ("other machine",)
    assert row(found, "latency").best is None
    text = summary.of_comparison(found)
    assert "timed on several machines: no winner on time" in text
    assert "faster" not in text


def test_the_ratio_to_the_peer_has_the_spread_of_both(made: Made, of: Of) -> None:
    near = row(of(made(1.0), made(1.1)), "vs peer")
    far = row(of(made(1.0), made(3.0)), "vs peer")
    assert near.words == ("within noise",)
    assert far.words == ("3.00x slower",)
    assert far.tones == ("bad",)


def test_only_equal_sizes_are_compared(made: Made, of: Of) -> None:
    found = of(made(1.0, sizes=(1, 16)), made(0.5, sizes=(1, 64)))
    assert row(found, "latency batch 16").words == ("",)
    assert row(found, "latency batch 1,").words == ("2.00x faster",)


def test_a_metric_has_a_winner_only_where_a_gate_says_which_way(made: Made, of: Of) -> None:
    gate = (Verdict("metric.same", 0.9, "≥", 0.5, True),)
    plain = row(of(made(metric=0.9), made(metric=0.95)), "metric same")
    gated = row(of(made(metric=0.9, verdicts=gate), made(metric=0.95)), "metric same")
    assert (plain.words, plain.tones, plain.best) == (("+0.05",), ("",), None)
    assert (gated.words, gated.tones, gated.best) == (("+0.05",), ("good",), 1)


def test_error_and_size_say_how_much(made: Made, of: Of) -> None:
    found = of(made(error=1e-6, bundle_mib=4.0), made(error=1e-5, bundle_mib=3.0))
    assert row(found, "error").words == ("10x larger",)
    assert row(found, "bundle").words == ("25.0% smaller",)
    assert row(of(made(), made()), "bundle").words == ("equal",)


def test_of_several_runs_the_best_is_named_outside_the_noise(made: Made, of: Of) -> None:
    clear = summary.of_comparison(of(made(3.0), made(1.0), made(2.0)))
    near = summary.of_comparison(of(made(3.0), made(1.0), made(1.1)))
    assert "B is best" in next(x for x in clear.splitlines() if x.startswith("latency"))
    assert "within noise" in next(x for x in near.splitlines() if x.startswith("latency"))


def test_stages_with_other_keys_are_listed_and_equal_bytes_are_said(made: Made, of: Of) -> None:
    (stage,) = of(made(key="a"), made(key="b")).stages
    assert stage.name == "judge"
    assert stage.equal
    assert not of(made(key="a"), made(key="a")).stages


def test_a_failed_run_is_compared_by_its_recipe(made: Made, of: Of) -> None:
    failed = made(None, exit_code=1, fields={"tuning.trials": 1})
    text = summary.of_comparison(of(made(fields={"tuning.trials": 0}), failed))
    assert "tuning.trials  0 → 1" in text
    assert "failed" in text


def test_no_value_can_draw_on_the_terminal(made: Made, of: Of) -> None:
    evil = "\x1b[2J\u202e"
    found = of(made(fields={f"a.{evil}": evil}, label=evil), made())
    text = summary.of_comparison(found)
    assert "\x1b[2J" not in text
    assert "\u202e" not in text


def test_the_command_compares_by_name_and_age(cli: Cli) -> None:
    cli("run", "little.yaml")
    cli("run", "little.yaml", "--set", "scaling.factor=5")
    done = cli("compare", "last~1", "little")
    assert done.code == 0, done.err
    assert "scaling.factor  3.0 → 5.0" in done.out
    assert "latency n 1000, 1 threads" in done.out
    data = json.loads(cli("compare", "last~1", "last", "--json").out)
    assert data["one_machine"] is True
    assert data["fields"] == {"scaling.factor": [3.0, 5.0]}
    assert {stage["name"] for stage in data["stages"]} == {"scale", "pack", "judge"}
    assert len(data["figures"][0]["values"]) == 2


def test_equal_bytes_of_a_stage_with_another_key_are_told(cli: Cli) -> None:
    cli("run", "little.yaml")
    cli("run", "little.yaml", "--set", "scaling.shipped=3")
    (pack,) = json.loads(cli("compare", "last~1", "last", "--json").out)["stages"]
    assert (pack["name"], pack["equal_outputs"]) == ("pack", True)


def test_files_and_versions_that_differ_are_named(made: Made, of: Of, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    for key, digest, version in (("a", "1" * 64, "0.26"), ("b", "2" * 64, "0.27")):
        preimage = {
            "stage": "judge",
            "version": 1,
            "params": {"inputs": {"path": "x.npz", "sha256": digest}, "repeats": key},
            "tools": {"apache-tvm": version},
        }
        store.publish(Record("judge", key * 64, preimage, {}))
    (stage,) = of(made(key="a"), made(key="b")).stages
    assert [(change.kind, change.field) for change in stage.changes] == [
        ("file", "inputs"),
        ("tool", "apache-tvm"),
    ]
    text = summary.of_comparison(of(made(key="a"), made(key="b")))
    assert "inputs: the file changed" in text
    assert "0.26 → 0.27" in text


def test_the_baseline_of_the_other_runs_recipe_is_meant(made: Made, tmp_path: Path) -> None:
    store = tmp_path / "store"
    mine, other = made(), made(recipe="other")
    runs.set_baseline(mine, store)
    runs.set_baseline(other, store)
    newest = made(recipe="other")
    found = compare.find(("baseline", "last"), store)
    assert [run.run_id for run in found.runs] == [other.run_id, newest.run_id]


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="name two runs"):
        compare.find(("last",), tmp_path)
