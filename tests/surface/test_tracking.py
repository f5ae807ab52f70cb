from __future__ import annotations

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml import journal, runs, settings, tracking
from tapml.errors import RecipeError, TrackingError
from tapml.runs import RunResult
from tapml.settings import Engine, Tracking
from tapml.stage import Report
from tapml.tracking import logged

EMBEDDED = Tracking()


@pytest.fixture
def result(project: Path) -> RunResult:
    return tapml.run("little.yaml", jobs=0, track="off")


def points(run: RunResult) -> list[logged.Point]:
    return logged.metrics(run, {}, 2.0)


# --- what is logged


def test_the_headline_metric_is_the_first(result: RunResult) -> None:
    names = [name for name, *_ in points(result)]
    assert names[:2] == ["latency/p50_ms", "speedup/vs_numpy"]
    expected = {"quality/same", "error/relative", "size/bundle_mib", "stage_s/scale"}
    assert expected | {"rss_mib/scale", "scale/factor"} <= set(names)


def test_a_curve_has_steps(result: RunResult) -> None:
    curve = [
        (step, value) for name, value, _, step in points(result) if name == "search/ms_best_ms"
    ]
    assert curve == [(1, 10.0), (2, 5.0), (3, pytest.approx(10 / 3))]


def test_what_is_not_finite_is_a_tag_and_no_metric(result: RunResult) -> None:
    step = replace(result.steps[0], report=Report(metrics={"a/b": math.inf, "a/c": 1.0}))
    run = replace(result, steps=(step,))
    assert {name for name, *_ in points(run) if name.startswith("a/")} == {"a/c"}
    assert logged.tags(run)["tapml.not_finite.a/b"] == "inf"


def test_parameters_are_the_recipes_dotted_fields(result: RunResult) -> None:
    parameters = logged.parameters(result)
    assert parameters["scaling.factor"] == "3.0"
    assert not any("sha256" in name for name in parameters)


def test_tags_hold_digests_versions_and_verdicts(result: RunResult) -> None:
    tags = logged.tags(result)
    assert tags["tapml.run_uid"] == result.run_id
    assert tags["tapml.key.pack"] == result.steps[1].key
    assert tags["tapml.digest.pack.bundle"] == result.steps[1].outputs["bundle"]
    assert tags["tapml.gate.metric.same"] == "passed"
    assert tags["tapml.env.apache-tvm"]
    assert "tapml.sweep" not in tags


def test_a_run_of_a_sweep_is_flat_tagged_and_named_by_what_differs(result: RunResult) -> None:
    run = replace(result, sweep="s1", label="factor=3")
    tags = logged.tags(run)
    assert tags["tapml.sweep"] == "s1"
    assert tags["mlflow.runName"] == "factor=3"
    assert "mlflow.parentRunId" not in tags


def test_neither_secrets_nor_control_characters_are_sent(result: RunResult, tmp_path: Path) -> None:
    key, escape = "AKIA" + "Z" * 16, "\x1b[31m"
    step = replace(result.steps[0], report=Report(f"{key}{escape}"))
    run = replace(
        result,
        steps=(step, *result.steps[1:]),
        fields={"a.url": f"https://u:{key}@h/{escape}", "a.token": "hunter2hunter2"},
        tags={"team": f"{escape}{key}"},
        environment={"note": f"password={key}", "env.API_KEY": "hunter2hunter2"},
        label=f"{key}{escape}",
        sweep="s",
    )
    (run.folder / "logs" / "scale.log").write_text(f"token={key}\n{escape}red\n")
    (run.folder / runs.VIEWS).mkdir()
    (run.folder / runs.VIEWS / "x.py").write_text(f"# {key}")
    (sent := tmp_path / "sent").mkdir()
    logged.write_files(run, sent)
    files = {path.relative_to(sent).as_posix() for path in sent.rglob("*")}
    expected = {"log.txt", "views/x.py", "stages.json", "recipe.yaml", "report.html", "facts.json"}
    assert expected | {"bundle/manifest.json", "plan.json"} <= files
    said = json.dumps([logged.parameters(run), logged.tags(run), logged.text(logged.name(run))])
    said += "".join(path.read_text() for path in sent.rglob("*") if path.is_file())
    assert key not in said
    assert "hunter2" not in said
    run = replace(result, fields={"model.tokenizer": "bert", "model.inputs.token_type_ids": "i"})
    assert set(logged.parameters(run).values()) == {"bert", "i"}
    assert "\x1b" not in said
    assert "\\u001b" not in said


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
    assert logged.sanitised(name) == taken


# --- where it goes


def test_a_sweeps_link_compares_all_its_runs_and_the_list_is_narrowed_to_it() -> None:
    places = [tracking.Place("sqlite:", "7", f"{n:032x}") for n in range(50)]
    link = tracking.link("http://h", places)
    assert link.startswith("http://h/#/compare-runs?runs=%5B%22" + "0" * 32)
    assert "experiments=%5B%227%22%5D" in link
    assert len(link) < 2500
    listed = tracking.list_link("http://h", places[0], "s", logged.LATENCY)
    assert listed.startswith("http://h/#/experiments/7/runs?workflowType=machine_learning&")
    assert "searchFilter=tags.%60tapml.sweep%60%20%3D%20%27s%27" in listed
    assert "orderByKey=metrics.%60latency%2Fp50_ms%60&orderByAsc=true" in listed
    assert tracking.link("http://h", places[:1]) == f"http://h/#/experiments/7/runs/{'0' * 32}"


def test_flag_then_environment_then_the_file_then_the_embedded_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    monkeypatch.chdir(project)
    file = tmp_path / "workflows.yaml"
    said = {"uri": "sqlite:///x/m.db", "experiment": "ours", "mode": "required"}
    engine = Engine.model_validate({"tracking": said})
    assert settings.tracking(Engine(), file) == Tracking()
    assert tracking.uri(Path("s"), Tracking()) == f"sqlite:///{project}/s/mlflow/mlflow.db"
    at = f"sqlite:///{tmp_path}/x/m.db"
    assert settings.tracking(engine, file) == Tracking(uri=at, experiment="ours", mode="required")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("TAPML_TRACK", "auto")
    found = settings.tracking(engine, file)
    assert found == Tracking(uri="http://elsewhere", experiment="theirs", mode="auto")
    assert settings.tracking(engine, file, "off").mode == "off"
    monkeypatch.setenv("TAPML_TRACKING_URI", "sqlite:///y.db")
    assert settings.tracking(engine, file).uri == f"sqlite:///{project}/y.db"
    monkeypatch.setenv("TAPML_TRACK", "sometimes")
    with pytest.raises(RecipeError, match="sometimes"):
        settings.tracking(engine, file)


def test_a_run_goes_on_without_waiting_for_tracking(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Path, ...]] = []
    monkeypatch.setattr(
        tracking, "start", lambda store, folders, where: started.append(tuple(folders))
    )
    result = tapml.run("little.yaml", jobs=0)
    assert started == [(result.folder,)]
    assert tracking.pending(project / "artifacts", EMBEDDED) == [result.folder]


def test_one_process_brings_all_runs_of_a_sweep(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = project / "little.yaml"
    recipe.write_text(recipe.read_text() + "matrix: {scaling.factor: [1.0, 2.0, 3.0]}\n")
    started: list[list[Path]] = []
    monkeypatch.setattr(
        tracking, "start", lambda store, folders, where: started.append(list(folders))
    )
    results = tapml.run_all(["little.yaml"], jobs=0)
    assert started == [[result.folder for result in results]]


def test_secrets_of_a_uri_are_on_no_command_line_and_in_no_message(tmp_path: Path) -> None:
    where = Tracking(uri="https://u:hunter2@h")
    assert tracking.environment(tmp_path, where)["MLFLOW_TRACKING_URI"] == where.uri
    assert "hunter2" not in tracking.told(tmp_path, where)


def test_telemetry_is_off_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    found = tracking.environment(tmp_path, EMBEDDED)
    assert found["MLFLOW_DISABLE_TELEMETRY"] == found["DO_NOT_TRACK"] == "true"
    assert found["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"


# --- what did not come there is told


def test_runs_and_doctor_tell_what_did_not_come_to_mlflow(
    result: RunResult, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = result.folder.parents[1]
    assert tracking.missed(store) == ""  # it was not to go there
    log = result.folder / tracking.LOG
    log.touch()
    assert tracking.missed(store) == ""  # it may be on its way
    os.utime(log, (time.time() - 90,) * 2)
    assert tracking.missed(store) == "1 run is not in MLflow: it did not end in time"
    log.write_text("a trace\nMLflow at http://h: refused\n")
    assert cli("runs").err == ""  # as tracking is off
    monkeypatch.setenv("TAPML_TRACK", "auto")
    told = cli("runs").err
    assert "1 run is not in MLflow: MLflow at http://h: refused" in told
    assert "`tapml track sync` brings them" in told
    assert "tapml track sync" in cli("doctor").out
    (result.folder / tracking.TRACKED).write_text("{}")
    assert tracking.missed(store) == ""


# --- journals that are damaged


def test_whatever_is_left_of_a_journal_can_be_read(result: RunResult) -> None:
    (result.folder / runs.RECORD).unlink()
    path = result.folder / "events.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(journal.read_events(result.folder)) == len(lines)
    for end in range(0, len(whole), 97):  # killed at any point
        path.write_bytes(whole[:end])
        told = journal.read_events(result.folder)
        assert len(told) == whole[:end].count(b"\n")
        assert (runs.killed(result.folder) is not None) == bool(told)
    torn = [*lines[:2], lines[2][:20], *lines[3:]]  # a full disk, then space again
    path.write_bytes(b"".join(torn))
    assert len(journal.read_events(result.folder)) == len(lines) - 2
    path.write_bytes(b'\xff\n{"event": "Other"}\n[]\n{}\n' + whole)
    assert len(journal.read_events(result.folder)) == len(lines)


def test_a_run_that_died_while_its_report_was_written_counts_as_killed(result: RunResult) -> None:
    (result.folder / runs.RECORD).unlink()
    assert runs.killed(result.folder) is None  # its process, this one, may still write it
    path = result.folder / "events.jsonl"
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {dead.pid}'))
    run = runs.killed(result.folder)
    assert run is not None
    assert run.state == "killed"
    assert [step.state for step in run.steps] == ["ran"] * 3


# --- databases of other versions


def database(store: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(tracking.database(store))) as connection:
        return connection.execute(query).fetchall()


def make_database(path: Path, revision: str) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create table alembic_version (version_num text)")
        connection.execute("insert into alembic_version values (?)", (revision,))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("revision", "mend"),
    [
        ("451aebb31d03", "db upgrade sqlite:///"),
        ("ffffffffffff", "install --upgrade mlflow"),
    ],
)
def test_a_database_of_another_mlflow_is_left_alone_and_what_mends_it_is_told(
    result: RunResult, monkeypatch: pytest.MonkeyPatch, revision: str, mend: str
) -> None:
    store = result.folder.parents[1]
    before = make_database(tracking.database(store), revision)
    with pytest.raises(TrackingError, match=mend):
        tracking.sync(store, [result.folder], EMBEDDED)
    assert tracking.pending(store, EMBEDDED) == [result.folder]
    assert mend in tracking.missed(store)
    assert tapml.run("little.yaml", jobs=0, check=False).exit_code == 0
    required = tapml.run("little.yaml", jobs=0, track="required", check=False)
    assert required.exit_code == 5
    assert mend in str(required.error)
    assert tracking.database(store).read_bytes() == before


def test_so_is_one_behind_another_driver(result: RunResult) -> None:
    store = result.folder.parents[1]
    before = make_database(tracking.database(store), "451aebb31d03")
    where = Tracking(uri=f"sqlite+pysqlite:///{tracking.database(store)}")
    with pytest.raises(TrackingError, match="db upgrade sqlite"):
        tracking.sync(store, [result.folder], where)
    assert tracking.database(store).read_bytes() == before


def test_the_code_of_a_run_that_failed_goes_before_trackings(project: Path) -> None:
    make_database(tracking.database(project / "artifacts"), "ffffffffffff")
    failed = {"scaling.factor": 0.0}
    result = tapml.run("little.yaml", set=failed, jobs=0, track="required", check=False)
    assert result.exit_code == 1
    assert result.untracked


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(TrackingError, match="damaged"):
        tracking.check(path)


def test_the_installed_mlflow_has_one_newest_revision() -> None:
    known, head = tracking._revisions()
    assert "451aebb31d03" in known
    assert head in known
    assert len(known) > 30


# --- replay into the embedded database


@pytest.mark.slow
def test_replaying_twice_leaves_one_run_with_the_same_points(
    result: RunResult, project: Path
) -> None:
    store = project / "artifacts"
    seen: list[list[tuple[object, ...]]] = []
    for _ in range(2):
        tracking.sync(store, [result.folder], EMBEDDED)
        seen.append(
            database(store, "select key, value, step, timestamp from metrics order by 1, 3")
        )
    assert len(database(store, "select run_uuid from runs")) == 1
    assert seen[0] == seen[1]
    assert ("search/ms_best_ms", 5.0, 2) in [row[:3] for row in seen[0]]
    first = database(store, "select key from latest_metrics order by rowid limit 1")
    assert first == [(logged.LATENCY,)]
    assert database(store, "pragma journal_mode") == [("wal",)]
    assert tracking.pending(store, EMBEDDED) == []
    files = {path.name for path in (store / "mlflow/artifacts").rglob("*") if path.is_file()}
    assert {"report.html", "recipe.yaml", "manifest.json", "stages.json"} <= files


@pytest.mark.slow
def test_runs_killed_at_any_point_come_into_mlflow_as_killed_beside_one_that_is_damaged(
    result: RunResult, project: Path
) -> None:
    (result.folder / runs.RECORD).unlink()
    lines = (result.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    store = project / "artifacts"
    for count in range(1, len(lines)):
        folder = store / "runs" / f"killed-{count}"
        folder.mkdir()
        told = b"".join(lines[:count]).replace(result.run_id.encode(), folder.name.encode())
        (folder / "events.jsonl").write_bytes(told + lines[count][:10])
    (store / "runs" / "empty").mkdir()
    (store / "runs" / "empty" / "events.jsonl").touch()
    (result.folder / runs.RECORD).write_text("{}")
    with pytest.raises(TrackingError, match="damaged"):
        tracking.sync(store, tracking.pending(store, EMBEDDED), EMBEDDED)
    states = database(store, "select distinct status, count(*) from runs group by 1")
    assert states == [("KILLED", len(lines) - 1)]
    assert tracking.pending(store, EMBEDDED) == [result.folder]


@pytest.mark.slow
def test_many_syncers_on_a_fresh_store_all_succeed(project: Path) -> None:
    store = project / "artifacts"
    results = [
        tapml.run("little.yaml", set={"scaling.factor": float(i)}, jobs=0, track="off")
        for i in range(1, 4)
    ]
    syncers = [
        subprocess.Popen(
            [sys.executable, "-m", "tapml.tracking.syncer", "0", str(store), result.run_id],
            env=tracking.environment(store, EMBEDDED),
            cwd=project,
        )
        for result in [*results, results[0], results[0]]
    ]
    assert [syncer.wait() for syncer in syncers] == [0] * 5
    assert len(database(store, "select run_uuid from runs")) == 3


@pytest.mark.slow
def test_the_process_that_a_run_leaves_behind_brings_it_and_ends(project: Path) -> None:
    recipe = project / "little.yaml"
    recipe.write_text(recipe.read_text() + "matrix: {scaling.factor: [1.0, 2.0]}\n")
    results = tapml.run_all(["little.yaml"], jobs=0)
    end = time.monotonic() + tracking.DEADLINE_S + 30
    while time.monotonic() < end and tracking.pending(project / "artifacts", EMBEDDED):
        time.sleep(0.2)
    tags = database(project / "artifacts", "select value from tags where key = 'tapml.sweep'")
    assert tags == [(results[0].sweep,)] * 2
    names = database(project / "artifacts", "select name from runs order by name")
    assert names == [(result.label,) for result in results]
