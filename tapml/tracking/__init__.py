"""MLflow, fed from run folders by a process of its own, so that no tracking server can slow a run
down or fail it.

`start` leaves that process behind (`syncer.py`), which ends within a minute; `sync` waits for it.
Replaying again changes nothing. The embedded database is `<store>/mlflow/mlflow.db`. Nothing here
imports MLflow.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .. import runs
from ..errors import TrackingError
from ..mask import mask
from ..settings import Tracking

TRACKED = "tracked.json"  # in a run's folder: where it is in MLflow
LOG = "tracking.log"  # beside it: was to be brought; why that failed, when it did
DEADLINE_S = 55  # of the detached process, from its start, which is after the run's last event
COMPARED = 100  # runs on one page, at most: beyond, MLflow's page is slow and its link very long
_LATER = "later: `tapml track sync`"
_FORCED = {  # must be there before MLflow is imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENCE = {  # a replay that failed is tried again whole, which makes no run twice
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


@dataclass(frozen=True)
class Place:
    """A run in MLflow."""

    uri: str
    experiment_id: str
    run_id: str


def uri(store: Path, where: Tracking) -> str:
    """MLflow's tracking URI: the one that is set, else the store's embedded database."""
    return where.uri or f"sqlite:///{database(store)}"


def database(store: Path) -> Path:
    return store.resolve() / "mlflow" / "mlflow.db"


def environment(store: Path, where: Tracking) -> dict[str, str]:
    """The environment of every process of ours that imports MLflow; also says where it is, as a
    command line is for all to see.
    """
    named = {"MLFLOW_TRACKING_URI": uri(store, where)}
    if where.experiment:
        named["MLFLOW_EXPERIMENT_NAME"] = where.experiment
    others = {name: text for name, text in os.environ.items() if name != "MLFLOW_EXPERIMENT_NAME"}
    return {**_PATIENCE, **others, **_FORCED, **named}


def start(store: Path, folders: Sequence[Path], where: Tracking) -> None:
    """Leaves a process behind that replays the runs in `folders`; returns at once.

    A shell starts it and ends, so that it is nobody's child: it outlives us, and leaves no zombie.
    """
    for folder in folders:
        (folder / LOG).touch()
    subprocess.run(
        ["sh", "-c", '"$@" >/dev/null 2>&1 &', "sh", *_command(store, folders, DEADLINE_S)],
        stdin=subprocess.DEVNULL,
        env=environment(store, where),
        cwd=runs.folder_of(store),
        start_new_session=True,
        check=False,
    )


def sync(store: Path, folders: Sequence[Path], where: Tracking) -> None:
    """Replays runs and waits. Raises: TrackingError with what MLflow said."""
    if not folders:
        return
    done = subprocess.run(
        _command(store, folders, 0),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(store, where),
        cwd=runs.folder_of(store),
        check=False,
    )
    if done.returncode == -signal.SIGALRM:
        raise TrackingError(message=f"{told(store, where)} is too slow", hint=_LATER)
    if done.returncode != 0:
        *_, last = done.stderr.strip().splitlines() or [f"syncer ended with {done.returncode}"]
        raise TrackingError(message=last, hint=_LATER)


def told(store: Path, where: Tracking) -> str:
    """`MLflow at URI`, without a password."""
    return f"MLflow at {mask(uri(store, where))}"


def pending(store: Path, where: Tracking) -> list[Path]:
    """Folders of the runs that ended, or were killed, and are not in MLflow yet, oldest first."""
    there, root = mask(uri(store, where)), runs.folder_of(store)
    dead = [name for name in runs.unfinished(store) if runs.killed(root / name)]
    folders = [root / name for name in reversed([*runs.ids(store), *dead])]
    return [folder for folder in folders if (found := place(folder)) is None or found.uri != there]


def missed(store: Path) -> str:
    """How many runs were to be brought to MLflow and are not there, and why; or nothing."""
    logs = [
        log
        for log in runs.folder_of(store).glob(f"*/{LOG}")
        if not (log.parent / TRACKED).is_file() and _is_over(log)
    ]
    if not logs:
        return ""
    newest = max(logs, key=lambda log: log.stat().st_mtime)
    *_, why = newest.read_text(encoding="utf-8").splitlines() or ["it did not end in time"]
    count = "1 run is" if len(logs) == 1 else f"{len(logs)} runs are"
    return f"{count} not in MLflow: {why}"


def _is_over(log: Path) -> bool:
    """Whether the process that was to bring the run has failed, or must have ended by now."""
    found = log.stat()
    return found.st_size > 0 or time.time() - found.st_mtime > DEADLINE_S + 5


def place(folder: Path) -> Place | None:
    """Where the run in a folder is in MLflow, once it is there."""
    path = folder / TRACKED
    return Place(**json.loads(path.read_bytes())) if path.is_file() else None


def link(base: str, found: Sequence[Place]) -> str:
    """The page of one run, or the page that compares several."""
    if len(found) == 1:
        return f"{base}/#/experiments/{found[0].experiment_id}/runs/{found[0].run_id}"
    names = json.dumps([one.run_id for one in found], separators=(",", ":"))
    experiments = json.dumps(list(dict.fromkeys(one.experiment_id for one in found)))
    query = {"runs": names, "experiments": experiments, "workflowType": "machine_learning"}
    return f"{base}/#/compare-runs?{_encoded(query)}"


def list_link(base: str, found: Place, sweep: str = "", order: str = "") -> str:
    """The page that lists and charts the runs of an experiment, or those of a sweep.

    It draws the first ten only, so that `order` is the metric whose least values are to be seen.
    """
    query = {"workflowType": "machine_learning", "compareRunsMode": "CHART"}
    if order:
        query |= {"orderByKey": f"metrics.`{order}`", "orderByAsc": "true"}
    if sweep:
        query["searchFilter"] = f"tags.`tapml.sweep` = '{sweep}'"
    return f"{base}/#/experiments/{found.experiment_id}/runs?{_encoded(query)}"


def _encoded(query: dict[str, str]) -> str:
    return urllib.parse.urlencode(query, quote_via=urllib.parse.quote)


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite database, None for any other place."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check(database: Path) -> None:
    """Looks at the version of MLflow's database, as MLflow would upgrade some unasked.

    Raises: TrackingError when it is not that of the installed MLflow, or is damaged.
    """
    hint = "move it away, and `tapml track sync` fills a new one"
    try:
        with closing(sqlite3.connect(database)) as connection:
            found = str(connection.execute("select version_num from alembic_version").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return
        raise TrackingError(message=f"{database}: {error}", hint=hint) from error
    except (sqlite3.DatabaseError, TypeError) as error:
        raise TrackingError(message=f"{database} is damaged: {error}", hint=hint) from error
    check_revision(found, f"sqlite:///{database}")


def check_revision(found: str, uri: str) -> None:
    """Raises: TrackingError when the installed MLflow's database is of another revision."""
    known, head = _revisions()
    if found == head:
        return
    if found in known:
        mend = f"keep a copy, then: {sys.executable} -m mlflow db upgrade {uri}"
        raise TrackingError(message=f"{uri} is of an older MLflow; {mend}", hint=_LATER)
    mend = f"{sys.executable} -m pip install --upgrade mlflow"
    raise TrackingError(message=f"{uri} is of a newer MLflow; {mend}", hint=_LATER)


def _revisions() -> tuple[set[str], str]:
    """The versions of databases that the installed MLflow knows, and its own."""
    spec = find_spec("mlflow")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]

    def named(what: str) -> set[str]:
        found = (re.search(rf"^{what}\b[^=\n]*= *[\"'](\w+)", text, re.MULTILINE) for text in texts)
        return {match[1] for match in found if match}

    known = named("revision")
    return known, next(iter(known - named("down_revision")), "")


def _command(store: Path, folders: Sequence[Path], deadline_s: int) -> list[str]:
    root = runs.folder_of(store)
    names = [one.name if one.parent == root else str(one.resolve()) for one in folders]
    return [
        sys.executable,
        "-m",
        "tapml.tracking.syncer",
        str(deadline_s),
        str(store.resolve()),
        *names,
    ]
