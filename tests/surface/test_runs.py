from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml import listing, runs, summary
from tapml.errors import RecipeError
from tapml.events import RunStarted
from tapml.journal import Journal
from tapml.listing import Query
from tapml.report import sweep
from tapml.runs import RunResult

Made = Callable[..., RunResult]
Cli = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def ids(found: listing.Listing) -> list[str]:
    return [run.run_id for run in found.runs]


def where(*texts: str) -> tuple[listing.Condition, ...]:
    return tuple(listing.condition(text) for text in texts)


def test_a_run_comes_back_as_it_was_saved(made: Made) -> None:
    run = made(2.0, label="density=0.5", sweep="s1", tags={"team": "vision"})
    assert (run.label, run.sweep, run.tags) == ("density=0.5", "s1", {"team": "vision"})
    assert run.facts is not None
    assert run.facts.latency[0].ours.p50 == 2.0


def test_a_run_of_before_labels_is_read(made: Made) -> None:
    run = made()
    record = run.folder / runs.RECORD
    data = json.loads(record.read_text())
    del data["label"], data["sweep"]
    record.write_text(json.dumps(data))
    assert runs.load(run.folder).label == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"run_id": 1}', '{"steps": [], "verdicts": 1}'])
def test_a_damaged_record_is_named_and_hides_no_other_run(
    made: Made, store: Path, text: str
) -> None:
    damaged, whole = made(), made()
    (damaged.folder / runs.RECORD).write_text(text)
    with pytest.raises(RecipeError, match="damaged"):
        runs.find(damaged.run_id, store)
    found = listing.select(Query(), store)
    assert ids(found) == [whole.run_id]
    assert found.others == {damaged.run_id: "its record is damaged"}


def test_a_killed_run_of_a_sweep_is_still_of_that_sweep(made: Made, store: Path) -> None:
    whole = made(sweep="s1", label="a=1")
    folder = store / "runs" / "20261101-000001-little-0001"
    folder.mkdir()
    start = RunStarted(1793000000.0, folder.name, "little", "", 1, (), label="a=2", sweep="s1")
    with Journal(folder) as journal:
        journal.write(start)
    found = sweep.members("s1", store)
    assert [(run.state, run.label) for run in found] == [("ok", "a=1"), ("killed", "a=2")]
    assert found[0].run_id == whole.run_id


def test_runs_are_found_by_id_start_age_and_recipe(made: Made, store: Path) -> None:
    first, second, third = made(recipe="other"), made(), made()
    assert runs.find(first.run_id, store).run_id == first.run_id
    assert runs.find(second.run_id[:15], store).run_id == second.run_id
    assert runs.find("last", store).run_id == third.run_id
    assert runs.find("last~1", store).run_id == second.run_id
    assert runs.find("little", store).run_id == third.run_id
    assert runs.find("other", store).run_id == first.run_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last~9", "there are 1 finished runs"),
        ("litle", "did you mean 'little'"),
        ("baseline", "there is no baseline"),
        ("2026", "several runs start with"),
        ("", "no run "),
    ],
)
def test_a_run_that_is_not_there_is_told_with_what_is(
    made: Made, store: Path, name: str, message: str
) -> None:
    made()
    if name == "2026":
        made()
    with pytest.raises(RecipeError, match=message):
        runs.find(name, store)


def test_a_recipe_has_one_baseline_which_is_pinned(made: Made, store: Path) -> None:
    first, second, other = made(), made(), made(recipe="other")
    for run in (first, other, second):
        runs.set_baseline(run, store)
    found = runs.baseline("little", store)
    assert found is not None
    assert found.run_id == second.run_id
    assert [runs.marks(run) for run in (first, second, other)] == [(), ("baseline",), ("baseline",)]
    assert (second.folder / runs.PINNED).is_file()
    assert not (first.folder / runs.PINNED).exists()
    assert runs.find("baseline", store, recipe="other").run_id == other.run_id
    with pytest.raises(RecipeError, match="several recipes have a baseline"):
        runs.find("baseline", store)


@pytest.mark.parametrize(("ms", "code"), [(None, 0), (1.0, 4), (1.0, 1)])
def test_only_a_run_that_passed_and_was_timed_is_a_baseline(
    made: Made, store: Path, ms: float | None, code: int
) -> None:
    with pytest.raises(RecipeError, match="is no baseline"):
        runs.set_baseline(made(ms, exit_code=code), store)
    assert runs.baseline("little", store) is None


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(recipe="other"), [2]),
        (Query(state="gate"), [1]),
        (Query(sweep="s1"), [1, 0]),
        (Query(tags={"team": "vision"}), [0]),
        (Query(since=1793000000.0 + 60), [2, 1]),
        (Query(where=where("tuning.trials>=8")), [1]),
        (Query(where=where("latency<3", "tuning.trials=0")), [0]),
        (Query(where=where("metric.same>0.9")), [2, 0]),
        (Query(where=where("sparsity.format!=bsr")), [1]),
        (Query(limit=1), [2]),
        (Query(reverse=True), [0, 1, 2]),
        (Query(sort="latency"), [2, 0, 1]),
        (Query(sort="latency", reverse=True), [1, 0, 2]),
        (Query(sort="metric"), [2, 0, 1]),
        (Query(sort="size", limit=1), [1]),
    ],
)
def test_runs_are_filtered_and_sorted(
    made: Made, store: Path, query: Query, expected: list[int]
) -> None:
    bsr = {"tuning.trials": 0, "sparsity.format": "bsr"}
    csr = {"tuning.trials": 64, "sparsity.format": "csr"}
    all_of_them = [
        made(2.0, sweep="s1", tags={"team": "vision", "n": "1"}, fields=bsr, metric=0.95),
        made(5.0, sweep="s1", fields=csr, exit_code=4, metric=0.5, bundle_mib=1.0),
        made(1.0, recipe="other", metric=0.99),
    ]
    assert ids(listing.select(query, store)) == [all_of_them[i].run_id for i in expected]


@pytest.mark.parametrize("reverse", [False, True])
def test_runs_without_the_figure_are_sorted_last(made: Made, store: Path, reverse: bool) -> None:
    untimed, timed = made(None), made()
    found = listing.select(Query(sort="error", reverse=reverse), store)
    assert ids(found) == [timed.run_id, untimed.run_id]


@pytest.mark.parametrize(
    "text", ["", "trials", "trials >=", "a.b~c", ">=8", "__import__('os')", "a>b", "a>=1 or 1"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--where"):
        listing.condition(text)


def test_a_field_that_no_run_has_is_refused_with_the_nearest(made: Made, store: Path) -> None:
    made(fields={"tuning.trials": 8})
    with pytest.raises(RecipeError, match=r"did you mean 'tuning.trials'"):
        listing.select(Query(where=where("tuning.trals>=8")), store)


def test_since_takes_ages_and_dates() -> None:
    assert listing.moment("2d") == pytest.approx(time.time() - 2 * 86400, abs=5)
    assert listing.moment("90m") == pytest.approx(time.time() - 5400, abs=5)
    assert listing.moment("2026-11-02") - listing.moment("2026-11-01") == 86400
    for text in ("7", "d", "-1d", "yesterday", "99999-01-01"):
        with pytest.raises(RecipeError, match="--since"):
            listing.moment(text)


def test_the_command_filters_sorts_and_marks(cli: Cli) -> None:
    cli("run", "little.yaml")
    cli("run", "little.yaml", "--set", "scaling.factor=5")
    data = json.loads(cli("runs", "--where", "scaling.factor>=4", "--json").out)
    assert [run["ratio"] for row in data["runs"] for run in row["latency"]] != []
    assert len(data["runs"]) == 1
    assert cli("runs", "--baseline", "last~1").code == 0
    newest, oldest = cli("runs").out.splitlines()[1:]
    assert oldest.endswith("baseline")
    assert not newest.endswith("baseline")
    assert cli("runs", "--unpin", "baseline").code == 0
    assert "baseline" not in cli("runs").out
    assert cli("runs", "--pin", "last").code == 0
    assert cli("runs").out.splitlines()[1].endswith("pinned")


def test_no_name_of_a_run_can_draw_on_the_terminal(made: Made) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    run = made(recipe="little", label=f"a={evil}", sweep="s", tags={"t": evil})
    row = summary.table(summary.COLUMNS, [summary.of_row(run)])
    for text in (row, summary.of_sweep([run, run])):
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text
        assert "\x07" not in text
        assert "\u202e" not in text


def test_a_sweep_ends_with_a_line_per_run_and_the_fastest_beyond_the_noise(made: Made) -> None:
    slow, fast, broken = (
        made(2.0, label="density=0.5", sweep="s1"),
        made(1.0, label="density=0.3", sweep="s1"),
        made(None, label="density=0.1", sweep="s1", exit_code=1),
    )
    lines = summary.of_sweep([slow, fast, broken]).splitlines()
    assert lines[2].startswith("density=0.3  ok      1 ms (0.9 … 1.1)")
    assert lines[2].endswith("fastest")
    assert lines[3].split()[:3] == ["density=0.1", "failed", "–"]
    assert "fastest" not in lines[1]
    assert "tapml report s1" in lines[-1]


def test_a_run_that_failed_its_gate_is_not_called_the_fastest(made: Made) -> None:
    runs = [made(1.0, label="a", exit_code=4), made(2.0, label="b"), made(3.0, label="c")]
    _, failed, fastest, _ = summary.of_sweep(runs).splitlines()
    assert fastest.endswith("fastest")
    assert "fastest" not in failed


def test_no_run_of_a_sweep_is_the_fastest_within_the_noise(made: Made) -> None:
    text = summary.of_sweep([made(1.0, label="a"), made(1.1, label="b")])
    assert "no run is the fastest beyond the noise" in text
    far = summary.of_sweep([made(1.0, label="a"), made(9.0, label="b", on={"cpu": "abacus"})])
    assert "timed on several machines" in far


@pytest.mark.slow
def test_a_thousand_runs_are_listed_in_two_seconds(made: Made, store: Path) -> None:
    for _ in range(1000):
        made(sizes=(1, 16, 64), fields={f"section.field{i}": i for i in range(30)})
    start = time.process_time()
    found = listing.select(Query(sort="latency", where=where("section.field3>=1")), store)
    summary.table(summary.COLUMNS, [summary.of_row(run) for run in found.runs])
    assert time.process_time() - start < 2
