"""`python -m tapml.tracking.syncer DEADLINE_S STORE RUN...`: brings runs into MLflow, and is the
only process that imports it.

A run is found by its tag `tapml.run_uid`, and its points keep the journal's times, so that doing it
twice changes nothing: what failed half-way is simply done again.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .. import events, journal, runs, tracking
from ..errors import TapmlError, TrackingError
from ..mask import mask
from ..runs import RunResult
from . import LOG, TRACKED, logged

RUN_S = 300  # longest that one run may take where someone waits
_NO_SQL = ("http://", "https://", "databricks", "file:", "/", ".")  # where others keep files
_PAUSE_S = 2.0
_LONGEST = 400  # characters of a reason
_LOCK = "tracking.lock"
_METRICS, _OTHERS = 800, 100  # in one request; a server takes 1000 in all, 100 of the others
_STATUS = {"ok": "FINISHED", "interrupted": "KILLED", "killed": "KILLED"}
_OF_THE_RUN = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


def main(arguments: Sequence[str]) -> int:
    """0 when every run is in MLflow; else why not is in each run's log, and on stderr."""
    deadline, store = int(arguments[0]), Path(arguments[1])
    folders = [runs.folder_of(store) / name for name in arguments[2:]]
    signal.alarm(deadline or RUN_S)  # ends this process; what is left is replayed by the next sync
    if deadline:
        os.nice(10)  # the next run may be timing
    uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        failed = Syncer(uri, store, os.environ.get("MLFLOW_EXPERIMENT_NAME")).bring(
            folders, each_s=0 if deadline else RUN_S
        )
    except Exception as error:  # this process's edge: all that MLflow raises becomes a line
        failed = dict.fromkeys(folders, _line(error, uri))
    for folder, why in failed.items():
        with suppress(OSError), (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{why}\n")
    if failed:
        print(next(iter(failed.values())), file=sys.stderr)
    return 1 if failed else 0


class Syncer:
    """An MLflow that is open."""

    def __init__(self, uri: str, store: Path, experiment: str | None = None) -> None:
        """Raises: TrackingError when its database is of another version."""
        if (path := tracking.sqlite_path(uri)) is not None:
            initialise(path, artifacts(store))
            tracking.check(path)
        elif (revision := _revision(uri)) is not None:
            tracking.check_revision(revision, mask(uri))
        mlflow: Any = importlib.import_module("mlflow")
        self.client: Any = mlflow.MlflowClient(tracking_uri=uri)
        self._uri, self._store, self._experiment = uri, store, experiment
        self._experiments: dict[str, str] = {}

    def bring(self, folders: Sequence[Path], *, each_s: int = 0) -> dict[Path, str]:
        """Replays runs; gives why for each that could not be.

        After a failure that is not the run's own the others are not tried.
        """
        failed: dict[Path, str] = {}
        for index, folder in enumerate(folders):
            if each_s:
                signal.alarm(each_s)
            try:
                with _locked(folder / _LOCK):
                    self._try(folder)
            except Exception as error:  # as in `main`
                failed[folder] = _line(error, self._uri)
                if _is_the_servers(error):
                    return failed | dict.fromkeys(folders[index + 1 :], failed[folder])
        return failed

    def _try(self, folder: Path) -> None:
        try:
            self.replay(folder)
        except Exception as error:
            if not _is_the_servers(error):
                raise
            time.sleep(_PAUSE_S)  # once more, as servers start anew; none of it is done twice
            self.replay(folder)

    def replay(self, folder: Path) -> None:
        """One run, whole: found by its tag, or made."""
        run = runs.load(folder)
        if run.exit_code == TrackingError.exit_code:  # that it was not here is all that it lacked
            run = replace(run, exit_code=0, untracked="")
        told = journal.read_events(folder)
        ended = {
            event.stage: event.time for event in told if isinstance(event, events.StageFinished)
        }
        finished = next(
            (event.time for event in told if isinstance(event, events.RunFinished)),
            run.started + run.seconds,
        )
        found = self._find(folder, run) or self._make(run)
        self._log(found.run_id, run, logged.metrics(run, ended, finished))
        with tempfile.TemporaryDirectory(prefix="tapml-") as draft:
            logged.write_files(run, Path(draft))
            self.client.log_artifacts(found.run_id, draft)
        status = _STATUS.get(run.state, "FAILED")
        self.client.set_terminated(found.run_id, status=status, end_time=logged.ms(finished))
        draft = folder / f"{TRACKED}.tmp"
        draft.write_text(json.dumps(vars(found)), encoding="utf-8")
        draft.replace(folder / TRACKED)

    def _find(self, folder: Path, run: RunResult) -> tracking.Place | None:
        """Where the run is, when an earlier replay began it."""
        experiment = self._experiment_of(run)
        query = f"tags.`tapml.run_uid` = '{run.run_id}'"
        known = self.client.search_runs([experiment], filter_string=query, max_results=1)
        if not known:
            return None
        return tracking.Place(mask(self._uri), experiment, known[0].info.run_id)

    def _make(self, run: RunResult) -> tracking.Place:
        experiment = self._experiment_of(run)
        made = self.client.create_run(
            experiment,
            start_time=logged.ms(run.started),
            tags={"tapml.run_uid": run.run_id, "mlflow.user": logged.user()},
            run_name=logged.text(logged.name(run)),
        )
        return tracking.Place(mask(self._uri), experiment, made.info.run_id)

    def _experiment_of(self, run: RunResult) -> str:
        """The id of the run's experiment. Beside a database artifacts have an absolute place of
        ours.
        """
        name = self._experiment or run.recipe
        if name in self._experiments:
            return self._experiments[name]
        errors: Any = importlib.import_module("mlflow.exceptions")
        found = self.client.get_experiment_by_name(name)
        if found is None:
            folder = artifacts(self._store) / logged.sanitised(name)
            try:
                self.client.create_experiment(
                    name,
                    artifact_location=None if self._uri.startswith(_NO_SQL) else folder.as_uri(),
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            except errors.MlflowException:  # another syncer was first
                if (found := self.client.get_experiment_by_name(name)) is None:
                    raise
            found = found or self.client.get_experiment_by_name(name)
        self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    def _log(self, run_id: str, run: RunResult, points: list[logged.Point]) -> None:
        """The headline first: MLflow shows metrics in the order of their first point."""
        entities: Any = importlib.import_module("mlflow.entities")
        all_points = [entities.Metric(*point) for point in points]
        all_params = [entities.Param(*pair) for pair in logged.parameters(run).items()]
        all_tags = [entities.RunTag(*pair) for pair in logged.tags(run).items()]
        batches = (
            [items[i : i + size] for i in range(0, len(items), size)]
            for items, size in (
                (all_points, _METRICS),
                (all_params, _OTHERS),
                (all_tags, _OTHERS),
            )
        )
        for metrics, params, tags in zip_longest(*batches, fillvalue=()):
            self.client.log_batch(run_id, metrics=metrics, params=params, tags=tags)


def initialise(path: Path, default_artifacts: Path) -> None:
    """Makes MLflow's database, once: its migrations race, and a broken database stays broken.

    It is made beside its place and moved there whole: being killed meanwhile leaves no harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")):
        if path.exists() and path.stat().st_size:
            return
        draft = path.with_name(f"{path.name}.draft")
        for left in path.parent.glob(f"{draft.name}*"):
            left.unlink()
        stores: Any = importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        made = stores.SqlAlchemyStore(f"sqlite:///{draft}", default_artifacts.as_uri())
        made.engine.dispose()
        with closing(sqlite3.connect(draft)) as connection:
            connection.execute("pragma journal_mode=wal")
        draft.rename(path)


def _revision(uri: str) -> str | None:
    """That of MLflow's database in another SQL server; None where none is made yet, or no SQL."""
    if uri.startswith(_NO_SQL):
        return None
    sqlalchemy: Any = importlib.import_module("sqlalchemy")
    engine = sqlalchemy.create_engine(uri)
    with closing(engine.connect()) as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None
        found = connection.exec_driver_sql("select version_num from alembic_version").scalar()
    engine.dispose()
    return str(found)


def artifacts(store: Path) -> Path:
    return tracking.database(store).parent / "artifacts"


def _is_the_servers(error: Exception) -> bool:
    """Whether every other run would fail with the same."""
    mlflow: Any = importlib.import_module("mlflow.exceptions")
    sqlalchemy: Any = importlib.import_module("sqlalchemy.exc")
    if isinstance(error, mlflow.MlflowException):
        return str(getattr(error, "error_code", "")) not in _OF_THE_RUN
    if isinstance(error, FileNotFoundError):
        return False
    return isinstance(error, OSError | sqlalchemy.SQLAlchemyError)


def _line(error: Exception, uri: str) -> str:
    """One line for a user; what nobody foresaw has its traceback before it."""
    if isinstance(error, TapmlError):
        return logged.text(error.message)
    foreseen = type(error).__name__ in ("MlflowException", "RestException")
    trace = "" if foreseen else "".join(traceback.format_exception(error))
    return logged.text(f"{trace}MLflow at {uri}: {_cause(error)}")


def _cause(error: BaseException) -> str:
    """The first line of an error; of a failed connection the cause that is wrapped in it."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    if found := re.search(r"Caused by \w+\(\W*(?:.*?: )?(.*?)['\"]?\)", first):
        first = found[1]
    return first[:_LONGEST]


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Holds a lock file against other syncers; the kernel frees it when this process ends."""
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
