from __future__ import annotations

import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tapml
from tapml import runs, tracking
from tapml.stage import Report


@pytest.fixture
def result(project: Path) -> tapml.RunResult:
    return tapml.run("little.yaml", jobs=0, track="off")


def points(run: tapml.RunResult) -> list[tracking.Point]:
    return tracking.metrics(run, {}, 2.0)


def test_the_headline_metric_is_the_first(result: tapml.RunResult) -> None:
    names = [name for name, *_ in points(result)]
    assert names[:2] == ["latency/p50_ms", "speedup/vs_numpy"]
    expected = {"quality/same", "error/relative", "size/bundle_mib", "stage_s/scale"}
    assert expected | {"rss_mib/scale", "scale/factor"} <= set(names)


def test_a_curve_has_steps(result: tapml.RunResult) -> None:
    curve = [
        (step, value) for name, value, _, step in points(result) if name == "search/ms_best_ms"
    ]
    assert curve == [(1, 10.0), (2, 5.0), (3, pytest.approx(10 / 3))]


def test_what_is_not_finite_is_a_tag_and_no_metric(result: tapml.RunResult) -> None:
    step = replace(result.steps[0], report=Report(metrics={"a/b": math.inf, "a/c": 1.0}))
    run = replace(result, steps=(step,))
    assert {name for name, *_ in points(run) if name.startswith("a/")} == {"a/c"}
    assert tracking.tags(run)["tapml.not_finite.a/b"] == "inf"


def test_parameters_are_the_recipes_dotted_fields(result: tapml.RunResult) -> None:
    parameters = tracking.parameters(result)
    assert parameters["scaling.factor"] == "3.0"
    assert not any("sha256" in name for name in parameters)


def test_tags_hold_digests_versions_and_verdicts(result: tapml.RunResult) -> None:
    tags = tracking.tags(result)
    assert tags["tapml.run_uid"] == result.run_id
    assert tags["tapml.key.pack"] == result.steps[1].key
    assert tags["tapml.digest.pack.bundle"] == result.steps[1].outputs["bundle"]
    assert tags["tapml.gate.metric.same"] == "passed"
    assert tags["tapml.env.apache-tvm"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("a[0]*", "a_0__"),
        ("../x", "_/x"),
        ("/etc//p", "etc/p"),
        ("", "_"),
        ("latency/p50_ms", "latency/p50_ms"),
        ("é" * 300, "_" * 250),
    ],
)
def test_names_become_what_mlflow_takes(name: str, taken: str) -> None:
    assert tracking.sanitised(name) == taken


def test_the_link_opens_the_comparing_view_at_one_run() -> None:
    link = tracking.deep_link("http://h", tracking.Place("sqlite:", "7", "r"), "id")
    assert link.startswith("http://h/#/experiments/7/runs?workflowType=machine_learning&")
    assert "searchFilter=tags.%60tapml.run_uid%60%20%3D%20%27id%27" in link


def test_the_store_is_absolute_unless_a_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.uri(Path("s")) == f"sqlite:///{tmp_path}/s/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert tracking.uri(Path("s")) == "http://elsewhere"


def test_a_run_goes_on_without_waiting_for_tracking(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    monkeypatch.setattr(tracking, "start", lambda folder, store: started.append(folder))
    result = tapml.run("little.yaml", jobs=0)
    assert started == [result.folder]
    assert tracking.pending(project / "artifacts") == [result.folder]


def database(store: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(tracking.database(store)) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


@pytest.mark.slow
def test_replaying_twice_leaves_one_run_with_the_same_points(
    result: tapml.RunResult, project: Path
) -> None:
    store = project / "artifacts"
    seen: list[list[tuple[object, ...]]] = []
    for _ in range(2):
        tracking.sync(store, [result.folder])
        seen.append(
            database(store, "select key, value, step, timestamp from metrics order by 1, 3")
        )
    assert len(database(store, "select run_uuid from runs")) == 1
    assert seen[0] == seen[1]
    assert ("search/ms_best_ms", 5.0, 2) in [row[:3] for row in seen[0]]
    assert database(store, "pragma journal_mode") == [("wal",)]
    assert tracking.pending(store) == []
    files = {path.name for path in (store / "mlflow/artifacts").rglob("*") if path.is_file()}
    assert {"report.html", "recipe.yaml", "manifest.json", "stages.json"} <= files


@pytest.mark.slow
def test_a_killed_run_comes_into_mlflow_as_killed(result: tapml.RunResult, project: Path) -> None:
    (result.folder / runs.RECORD).unlink()
    journal = result.folder / "events.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    store = project / "artifacts"
    tracking.sync(store, tracking.pending(store))
    assert database(store, "select status from runs") == [("KILLED",)]
    assert tracking.pending(store) == []


@pytest.mark.slow
def test_many_syncers_on_a_fresh_store_all_succeed(project: Path) -> None:
    store = project / "artifacts"
    results = [
        tapml.run("little.yaml", set={"scaling.factor": float(i)}, jobs=0, track="off")
        for i in range(1, 4)
    ]
    syncers = [
        subprocess.Popen(
            [sys.executable, "-m", "tapml.tracking", "0", str(store), str(result.folder)],
            env=tracking.environment(),
            cwd=project,
            stderr=subprocess.PIPE,
        )
        for result in results
    ]
    assert [syncer.communicate()[1] is not None and syncer.returncode for syncer in syncers] == [
        0
    ] * 3
    assert len(database(store, "select run_uuid from runs")) == 3


@pytest.mark.slow
def test_a_required_server_that_is_down_exits_with_5_and_an_optional_one_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound but not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TAPML_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        result = tapml.run("little.yaml", jobs=0, track="required", check=False)
        assert result.exit_code == 5
        assert "track sync" in str(result.error)
        start = time.monotonic()
        assert tapml.run("little.yaml", jobs=0, track="auto").exit_code == 0
        assert time.monotonic() - start < 5


@pytest.mark.slow
def test_the_detached_syncer_ends_at_its_deadline(result: tapml.RunResult, project: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tapml.tracking", "3", str(project), str(result.folder)],
            env={**os.environ, "TAPML_TRACKING_URI": address},
            check=False,
        )
    assert done.returncode != 0
    assert time.monotonic() - start < 20
    assert not (result.folder / tracking.TRACKED).exists()
    assert (result.folder / runs.RECORD).exists()
