"""MLflow, fed from run folders by a process of its own, so that no tracking server can slow a run
down or fail it.

`start` leaves a detached process behind that replays one run and ends within a minute; `sync` waits
for it. Replaying again changes nothing: a run is found by its tag `tapml.run_uid`, and its points
keep the journal's times. The embedded store is `<store>/mlflow/mlflow.db`. Only the process itself
(`python -m tapml.tracking`) imports MLflow.
"""

from __future__ import annotations

import fcntl
import getpass
import importlib
import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bundle, events, journal, runs
from .errors import TrackingError
from .runs import RunResult

TRACKED = "tracked.json"  # in a run's folder: where it is in MLflow
DEADLINE_S = 55  # of the detached process, from its start, which is after the run's last event
_LOG, _LOCK = "tracking.log", "tracking.lock"
_BUNDLE_MIB = 32.0  # a larger bundle is tracked by manifest and path
_BATCH = 400  # metrics in one request; the server's limit is 1000
_LINES = 24  # of one stage's curves
_ENVIRONMENT = {  # must be there before MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Place:
    """A run in MLflow."""

    uri: str
    experiment_id: str
    run_id: str


# --- the side that never imports MLflow


def environment() -> dict[str, str]:
    """The environment of every process of ours that imports MLflow."""
    return {**os.environ, **_ENVIRONMENT}


def uri(store: Path) -> str:
    """`TAPML_TRACKING_URI`, else MLflow's own `MLFLOW_TRACKING_URI`, else the store's embedded
    database.
    """
    named = os.environ.get("TAPML_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{database(store)}"


def database(store: Path) -> Path:
    return store.resolve() / "mlflow" / "mlflow.db"


def start(folder: Path, store: Path) -> None:
    """Leaves a process behind that replays the run in `folder`; returns at once.

    A shell starts it and ends, so that it is nobody's child: it outlives us, and leaves no zombie.
    """
    subprocess.run(
        ["sh", "-c", '"$@" >>"$0" 2>&1 &', _LOG, *_command(store, [folder], DEADLINE_S)],
        stdin=subprocess.DEVNULL,
        env=environment(),
        cwd=folder,
        start_new_session=True,
        check=False,
    )


def sync(store: Path, folders: Sequence[Path]) -> None:
    """Replays runs and waits. Raises: TrackingError with what MLflow said."""
    if not folders:
        return
    done = subprocess.run(
        _command(store, folders, 0),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folders[0],
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the syncer ended with {done.returncode}"]
        raise TrackingError(
            message=f"MLflow at {uri(store)}: {lines[-1]}", hint="later: `tapml track sync`"
        )


def pending(store: Path) -> list[Path]:
    """Folders of the runs that ended, or were killed, and are not in MLflow yet, oldest first."""
    where, root = uri(store), runs.folder_of(store)
    dead = [name for name in runs.unfinished(store) if runs.killed(root / name)]
    folders = [root / name for name in reversed([*runs.ids(store), *dead])]
    return [folder for folder in folders if (found := place(folder)) is None or found.uri != where]


def place(folder: Path) -> Place | None:
    """Where the run in a folder is in MLflow, once it is there."""
    path = folder / TRACKED
    return Place(**json.loads(path.read_bytes())) if path.is_file() else None


def deep_link(base: str, where: Place | None, run_uid: str = "") -> str:
    """The page that compares the runs of an experiment, narrowed to one run where `run_uid` names
    it.
    """
    if where is None:
        return f"{base}/#/experiments?workflowType=machine_learning"
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART"}
    if run_uid:
        query["searchFilter"] = f"tags.`tapml.run_uid` = '{run_uid}'"
    pairs = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    return f"{base}/#/experiments/{where.experiment_id}/runs?{pairs}"


def _command(store: Path, folders: Sequence[Path], deadline_s: int) -> list[str]:
    return [sys.executable, "-m", "tapml.tracking", str(deadline_s), str(store), *map(str, folders)]


# --- what a run looks like in MLflow: plain data, no MLflow needed

Point = tuple[str, float, int, int]  # name, value, time in ms, step


def parameters(run: RunResult) -> dict[str, str]:
    """The recipe's dotted fields; compared and charted in MLflow."""
    return {sanitised(name): str(value)[:6000] for name, value in run.fields.items()}


def metrics(run: RunResult, ended: Mapping[str, float], finished: float) -> list[Point]:
    """All points, the headline first. In: when each stage, and the run, ended (Unix time)."""
    end = _ms(finished)
    points = [(name, value, end, 0) for name, value in _headline(run)]
    for step in run.steps:
        if step.state in ("ran", "hit"):
            at = _ms(ended.get(step.name, finished))
            points.append((f"stage_s/{step.name}", step.seconds, at, 0))
            points.append((f"rss_mib/{step.name}", step.rss_mib, at, 0))
            points += [(name, value, at, 0) for name, value in step.report.metrics.items()]
            lines = [
                (f"{curve.title}/{curve.y_label}_{name}".lower().replace(" ", "_"), line)
                for curve in step.report.curves
                for name, line in curve.lines.items()
            ]
            points += [(name, y, at, int(x)) for name, line in lines[:_LINES] for x, y in line]
    return [
        (sanitised(name), value, at, n) for name, value, at, n in points if math.isfinite(value)
    ]


def _headline(run: RunResult) -> Iterator[tuple[str, float]]:
    facts = run.facts
    if facts is None:
        return
    for index, row in enumerate(facts.latency):
        at = "" if index == 0 else "_".join(f"{name}_{size}_" for name, size in row.sizes.items())
        yield f"latency/{at}p50_ms", row.ours.p50
        if row.ratio:
            yield f"speedup/{at}vs_{(row.peer.split() or ['peer'])[0]}", 1 / row.ratio
    yield from ((f"quality/{name}", value) for name, value in facts.metric.items())
    if facts.error is not None:
        for name in ("relative", "max_abs"):
            value: float | None = getattr(facts.error, name)
            if value is not None:
                yield f"error/{name}", value
        if facts.error.relative:  # MLflow shows two decimals
            yield "error/log10_relative", math.log10(facts.error.relative)
    if facts.bundle_mib is not None:
        yield "size/bundle_mib", facts.bundle_mib


def tags(run: RunResult) -> dict[str, str]:
    """What identifies a run but is no parameter: digests, versions, machine, states."""
    found = {
        **run.tags,
        "mlflow.runName": _name(run),
        "mlflow.source.name": run.recipe_path,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "mlflow.note.content": _note(run),
        "tapml.run_uid": run.run_id,
        "tapml.state": run.state,
        "tapml.exit_code": str(run.exit_code),
        "tapml.folder": str(run.folder),
        "tapml.cached": ", ".join(step.name for step in run.cached) or "none",
        "tapml.foreign_timings": str(run.foreign).lower(),
    }
    found |= {f"tapml.env.{name}": str(value) for name, value in run.environment.items()}
    found |= {f"tapml.key.{step.name}": step.key for step in run.steps if step.key}
    for step in run.steps:
        found |= {
            f"tapml.digest.{step.name}.{name}": digest for name, digest in step.outputs.items()
        }
    for verdict in run.verdicts:
        found[f"tapml.gate.{verdict.gate}"] = "passed" if verdict.passed else f"FAILED: {verdict}"
    for step in run.steps:
        for name, value in step.report.metrics.items():
            if not math.isfinite(value):
                found[f"tapml.not_finite.{name}"] = str(value)
    return {sanitised(name): value[:5000] for name, value in found.items()}


def sanitised(name: str) -> str:
    """A name that MLflow takes: its characters only, no relative part, at most 250."""
    text = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)
    parts = [re.sub(r"^\.+$", "_", part) for part in text.split("/") if part]
    return "/".join(parts)[:250] or "_"


def _note(run: RunResult) -> str:
    from .report import sentence

    gates = "".join(f"\n- {'✓' if verdict.passed else '✗'} {verdict}" for verdict in run.verdicts)
    where = f"Report: artifact `{runs.REPORT}`, or `{run.report}`"
    return f"**{run.recipe}** – {sentence(run)}\n{gates}\n\n{where}"


def _name(run: RunResult) -> str:
    """When the run began, short enough for MLflow's columns; the experiment names the recipe."""
    return f"{time.strftime('%m-%d %H:%M:%S', time.localtime(run.started))} {run.run_id[-4:]}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in a container run with a foreign uid
        return str(os.getuid())


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# --- the process that talks to MLflow


def main(arguments: Sequence[str]) -> int:
    """`python -m tapml.tracking DEADLINE_S STORE RUN_FOLDER...`; 0 when every run is in MLflow."""
    deadline, store = int(arguments[0]), Path(arguments[1])
    signal.alarm(deadline)  # ends this process; what is left is replayed by the next sync
    os.environ.update(_ENVIRONMENT)
    where = uri(store)
    if where == f"sqlite:///{database(store)}":
        initialise(database(store))
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(tracking_uri=where)
    for argument in arguments[2:]:
        folder = Path(argument)
        with _locked(folder / _LOCK):
            _replay(client, where, store, folder)
    return 0


def initialise(path: Path) -> None:
    """Makes the embedded database, once: MLflow's migrations race, and a broken database stays
    broken.

    It is made beside its place and moved there whole: being killed meanwhile leaves no harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent / "init.lock"):
        if path.exists():
            return
        draft = path.with_name("draft.db")
        for left in path.parent.glob("draft.db*"):
            left.unlink()
        stores: Any = importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        made = stores.SqlAlchemyStore(f"sqlite:///{draft}", _artifacts(path.parent.parent).as_uri())
        made.engine.dispose()
        with sqlite3.connect(draft) as connection:
            connection.execute("pragma journal_mode=wal")
        connection.close()
        draft.rename(path)


def _replay(client: Any, where: str, store: Path, folder: Path) -> None:
    """One run, whole: found by its tag, or made."""
    run = runs.load(folder)
    told = journal.read_events(folder)
    ended = {event.stage: event.time for event in told if isinstance(event, events.StageFinished)}
    finished = next(
        (e.time for e in told if isinstance(e, events.RunFinished)), run.started + run.seconds
    )
    experiment = _experiment(client, run.recipe, where, store)
    of_run = f"tags.`tapml.run_uid` = '{run.run_id}'"
    known = client.search_runs([experiment], filter_string=of_run, max_results=1)
    if known:
        run_id = known[0].info.run_id
    else:
        made = client.create_run(
            experiment,
            start_time=_ms(run.started),
            tags={"tapml.run_uid": run.run_id, "mlflow.user": _user()},
            run_name=_name(run),
        )
        run_id = made.info.run_id
    _log(client, run_id, run, metrics(run, ended, finished))
    _log_artifacts(client, run_id, run)
    status = {"ok": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}
    client.set_terminated(run_id, status=status.get(run.state, "FAILED"), end_time=_ms(finished))
    found = {"uri": where, "experiment_id": str(experiment), "run_id": run_id}
    draft = folder / f"{TRACKED}.tmp"
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.replace(folder / TRACKED)


def _experiment(client: Any, name: str, where: str, store: Path) -> str:
    """The id of the recipe's experiment. In the embedded store artifacts have an absolute place of
    ours.
    """
    if (found := client.get_experiment_by_name(name)) is not None:
        return found.experiment_id
    errors: Any = importlib.import_module("mlflow.exceptions")
    location = (
        (_artifacts(store) / sanitised(name)).as_uri() if where.startswith("sqlite:") else None
    )
    kind = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return client.create_experiment(name, artifact_location=location, tags=kind)
    except errors.MlflowException:  # another syncer was first
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _artifacts(store: Path) -> Path:
    return database(store).parent / "artifacts"


def _log(client: Any, run_id: str, run: RunResult, points: list[Point]) -> None:
    """Headline, then parameters and tags, then the rest: MLflow shows metrics in the order of their
    first point.
    """
    entities: Any = importlib.import_module("mlflow.entities")
    all_points = [entities.Metric(*point) for point in points]
    all_params = [entities.Param(*pair) for pair in parameters(run).items()]
    all_tags = [entities.RunTag(*pair) for pair in tags(run).items()]
    if all_points:
        client.log_batch(run_id, metrics=all_points[:1])
    for some in _batches(all_params, 100):
        client.log_batch(run_id, params=some)
    for some in _batches(all_tags, 100):
        client.log_batch(run_id, tags=some)
    for some in _batches(all_points[1:], _BATCH):
        client.log_batch(run_id, metrics=some)


def _log_artifacts(client: Any, run_id: str, run: RunResult) -> None:
    for name in (runs.REPORT, runs.RECIPE, "plan.json", runs.FACTS):
        if (run.folder / name).is_file():
            client.log_artifact(run_id, str(run.folder / name))
    for name in ("logs", "views"):
        if (run.folder / name).is_dir() and any((run.folder / name).iterdir()):
            client.log_artifacts(run_id, str(run.folder / name), name)
    columns = ("stage", "state", "seconds", "rss_mib", "key", "summary")
    rows = [[s.name, s.state, s.seconds, s.rss_mib, s.key, s.report.summary] for s in run.steps]
    client.log_dict(run_id, {"columns": columns, "data": rows}, "stages.json")
    folder = run.bundle
    if folder is None or not (folder / bundle.MANIFEST).is_file():
        return
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    if size <= float(os.environ.get("TAPML_TRACK_BUNDLE_MIB", _BUNDLE_MIB)):
        client.log_artifacts(run_id, str(folder), "bundle")
    else:
        client.log_artifact(run_id, str(folder / bundle.MANIFEST), "bundle")
        client.log_text(run_id, f"{folder}\n", "bundle/path.txt")


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Holds a lock file against other syncers; the kernel frees it when this process ends."""
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
