"""Run folders: everything that one `tapml run` left behind, written once and read back by every
later command.

    runs/<id>/  run.json  facts.json  bundle/  report.html  [pinned]  [baseline]
                and what the executor and the journal keep
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from . import events, facts, host, journal, verdicts
from .errors import RecipeError, StageError, TapmlError, TrackingError, from_data, nearest, to_data
from .facts import Facts
from .results import StepResult
from .verdicts import Verdict

RECORD, FACTS, REPORT, BUNDLE = "run.json", "facts.json", "report.html", "bundle"
VIEWS = "views"  # readable IR, of `--dump-ir`
RECIPE = "recipe.yaml"  # resolved: every default and the full target
PINNED, BASELINE = "pinned", "baseline"  # files that mark a run: gc keeps it; gates compare with it
Scalar = str | int | float | bool | None
_KILLED = 137  # what a shell says of a process that SIGKILL ended


@dataclass(frozen=True)
class RunResult:
    """One finished run: what each stage did, what validation measured, how the gates judged it,
    where the bundle is.

    started:      Unix time
    steps:        one per stage, in the order of the plan
    reasons:      why each stage that ran did so
    facts:        what validation measured, or None when it did not get there
    foreign:      the timings in `facts` come from another machine
    bundle:       the deployable folder, or None
    fields:       the recipe's dotted fields, defaults included
    environment:  versions, CPU, git commit of the recipe's folder
    untracked:    why tracking, where it was required, failed
    label:        what makes it differ from the other runs of its sweep; "" without a matrix
    sweep:        the id that the runs of one batch share; "" for a single run
    """

    run_id: str
    recipe: str
    recipe_path: str
    workflow: str
    started: float
    seconds: float
    folder: Path
    exit_code: int
    steps: tuple[StepResult, ...]
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])
    facts: Facts | None = None
    foreign: bool = False
    verdicts: tuple[Verdict, ...] = ()
    bundle: Path | None = None
    fields: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    environment: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    untracked: str = ""
    label: str = ""
    sweep: str = ""

    @property
    def ran(self) -> tuple[StepResult, ...]:
        return tuple(step for step in self.steps if step.state == "ran")

    @property
    def cached(self) -> tuple[StepResult, ...]:
        return tuple(step for step in self.steps if step.state == "hit")

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @property
    def machine(self) -> str:
        """An opaque id of the machine that timed it; empty when that is not known."""
        timed = [step for step in self.steps if "facts" in step.outputs]
        return str(timed[-1].made_on.get("machine", "")) if timed else ""

    @property
    def state(self) -> str:
        """One word: ok, gate (one failed), failed, interrupted or killed."""
        return {
            0: "ok",
            4: "gate",
            130: "interrupted",
            143: "interrupted",
            _KILLED: "killed",
        }.get(self.exit_code, "failed")

    @property
    def error(self) -> TapmlError | None:
        """What `raise_for_failure` raises: the first failed stage's error, else the failed gates,
        else None.
        """
        failed = [step for step in self.steps if step.state == "failed"]
        if failed:
            return failed[0].error or StageError(
                stage=failed[0].name, message=f"{failed[0].name} failed"
            )
        if self.state in ("interrupted", "killed"):
            return StageError(message=f"the run was {self.state}")
        if self.exit_code == TrackingError.exit_code:
            return TrackingError(message=self.untracked, hint="later: `tapml track sync`")
        return verdicts.error(self.verdicts)

    def raise_for_failure(self) -> None:
        """Raises the error that made `exit_code` other than 0, if there is one."""
        if (error := self.error) is not None:
            raise error


def save(run: RunResult) -> Path:
    """Writes `run.json`, whole or not at all."""
    data = {
        name: value for name, value in vars(run).items() if name not in ("folder", "facts", "steps")
    }
    data["steps"] = [_step_to_data(step) for step in run.steps]
    data["verdicts"] = [asdict(verdict) for verdict in run.verdicts]
    data["bundle"] = str(run.bundle) if run.bundle else None
    path = run.folder / RECORD
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(data), encoding="utf-8")
    draft.replace(path)
    return path


def load(folder: Path) -> RunResult:
    """The run in a folder, killed ones too. Raises: RecipeError when there is none."""
    path = folder / RECORD
    if not path.is_file():
        if (dead := killed(folder)) is not None:
            return dead
        raise RecipeError(message=f"{folder} is no finished run: it has no {RECORD}")
    try:
        return _from_data(json.loads(path.read_bytes()), folder)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            message=f"{path} is damaged, or of another version of tapml: {error}",
            hint="run the recipe again, and remove this folder",
        ) from error


def _from_data(data: dict[str, Any], folder: Path) -> RunResult:
    measured = folder / FACTS
    rebuilt: dict[str, Any] = {
        **data,
        "folder": folder,
        "steps": tuple(_step_from_data(row) for row in data["steps"]),
        "verdicts": tuple(Verdict(**row) for row in data["verdicts"]),
        "facts": facts.load(measured) if measured.is_file() else None,
        "bundle": Path(data["bundle"]) if data["bundle"] else None,
    }
    return RunResult(**rebuilt)


def killed(folder: Path) -> RunResult | None:
    """What the journal tells of a run that was killed; None when it goes on, or came to its end."""
    if not (folder / "events.jsonl").is_file() or journal.is_written(folder):
        return None
    told = journal.read_events(folder)
    if not told or not isinstance(start := told[0], events.RunStarted):
        return None
    if any(isinstance(event, events.RunFinished) for event in told) and _concludes(start):
        return None
    begun = {event.stage for event in told if isinstance(event, events.StageStarted)}
    ended = {event.stage: event for event in told if isinstance(event, events.StageFinished)}
    return RunResult(
        run_id=start.run_id,
        recipe=start.recipe,
        recipe_path=start.path,
        workflow="",
        started=start.time,
        seconds=told[-1].time - start.time,
        folder=folder,
        exit_code=_KILLED,
        steps=tuple(
            step_of(ended[name])
            if name in ended
            else StepResult(name, "interrupted" if name in begun else "cancelled")
            for name in start.stages
        ),
        fields=start.fields,
        label=start.label,
        sweep=start.sweep,
    )


def _concludes(start: events.RunStarted) -> bool:
    """Whether the process of a run whose stages ended may still write its record."""
    if start.host.get("machine") != host.machine():
        return True
    try:
        os.kill(start.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def find(run: str | Path, store: Path, *, recipe: str = "") -> RunResult:
    """The run of an id, the start of an id, `last`, `last~1` (the one before), a recipe's name (its
    newest run), `baseline` (that of `recipe`, or the only one), or a folder.

    Raises: RecipeError when there is none, or when it could be several.
    """
    if (Path(run) / RECORD).is_file():
        return load(Path(run).resolve())
    known = ids(store)
    if (counted := re.fullmatch(r"last(?:~(\d{1,9}))?", str(run))) and known:
        back = int(counted[1] or 0)
        if back >= len(known):
            raise RecipeError(message=f"no run {run!s}: there are {len(known)} finished runs")
        return load(folder_of(store) / known[back])
    if run == BASELINE:
        return _the_baseline(recipe, store)
    finished = known
    known = known + unfinished(store)
    matches = [name for name in known if run and name.startswith(str(run))]
    if str(run) in known:
        matches = [str(run)]
    if len(matches) == 1:
        return load(folder_of(store) / matches[0])
    if matches:
        raise RecipeError(message=f"several runs start with {run!s}", hint=", ".join(matches[:8]))
    recipes: dict[str, None] = {}
    for one in each(store, finished):
        if one.recipe == run:
            return one
        recipes[one.recipe] = None
    hint = (
        nearest(str(run), [*recipes, *known[:8]], noun="recipes and newest runs")
        if known
        else "none yet: `tapml run RECIPE` makes one"
    )
    raise RecipeError(message=f"no run {run!s} in {folder_of(store)}", hint=hint)


def each(store: Path, names: list[str]) -> Iterator[RunResult]:
    """The runs of these ids, read one by one; those whose record is damaged are left out."""
    for name in names:
        try:
            yield load(folder_of(store) / name)
        except TapmlError:
            continue


def baseline(recipe: str, store: Path) -> RunResult | None:
    """The run of this recipe that `set_baseline` marked."""
    return next((run for run in _baselines(store) if run.recipe == recipe), None)


def _baselines(store: Path) -> list[RunResult]:
    marked = [path.parent.name for path in folder_of(store).glob(f"*/{BASELINE}")]
    return sorted(each(store, marked), key=lambda run: run.started, reverse=True)


def _the_baseline(recipe: str, store: Path) -> RunResult:
    marked = [run for run in _baselines(store) if run.recipe == recipe or not recipe]
    if len(marked) == 1:
        return marked[0]
    if marked:
        names = ", ".join(f"{run.run_id} of {run.recipe}" for run in marked[:8])
        raise RecipeError(message="several recipes have a baseline", hint=f"name one: {names}")
    of = f"recipe {recipe} has" if recipe else "there is"
    raise RecipeError(
        message=f"{of} no baseline", hint="`tapml runs --baseline RUN` marks a run as one"
    )


def set_baseline(run: RunResult, store: Path) -> None:
    """Makes it the baseline of its recipe, in place of another one, and pins it.

    Raises: RecipeError when it did not pass, or timed nothing.
    """
    if run.state != "ok" or run.facts is None or not run.facts.latency:
        raise RecipeError(
            message=f"run {run.run_id} is no baseline: it ended {run.state}"
            + ("" if run.facts and run.facts.latency else " and timed nothing"),
            hint="name one that passed and was timed: `tapml runs --state ok`",
        )
    (run.folder / BASELINE).touch()
    pin(run)
    for old in _baselines(store):
        if old.recipe == run.recipe and old.run_id != run.run_id:
            unpin(old)


def pin(run: RunResult) -> None:
    """`tapml cache gc` keeps what the run uses."""
    (run.folder / PINNED).touch()


def unpin(run: RunResult) -> None:
    """The run is no baseline any more, and gc may take what it uses."""
    (run.folder / BASELINE).unlink(missing_ok=True)
    (run.folder / PINNED).unlink(missing_ok=True)


def marks(run: RunResult) -> tuple[str, ...]:
    """`baseline` and `pinned`, where it is so marked; the first says the second."""
    if (run.folder / BASELINE).exists():
        return (BASELINE,)
    return (PINNED,) if (run.folder / PINNED).exists() else ()


def ids(store: Path) -> list[str]:
    """Ids of the finished runs, newest first."""
    folder = folder_of(store)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if (path / RECORD).is_file()]
    return [path.name for path in sorted(found, key=_started, reverse=True)]


def unfinished(store: Path) -> list[str]:
    """Ids of the runs that go on, or were killed, newest first."""
    found = folder_of(store).glob("*/events.jsonl")
    return sorted((p.parent.name for p in found if not (p.parent / RECORD).is_file()), reverse=True)


def folder_of(store: Path) -> Path:
    return store / "runs"


def when(started: float) -> str:
    """`2026-11-22 21:18`, local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(started))


def local(moment: str) -> str:
    """An ISO time, to the minute, in local time; as it is when it is no ISO time."""
    try:
        return when(datetime.fromisoformat(moment).timestamp())
    except ValueError:
        return moment


def _started(path: Path) -> tuple[float, str]:
    """By the record's time: the folder's own changes with every report that is rewritten."""
    return (path / RECORD).stat().st_mtime, path.name


def step_of(event: events.StageFinished) -> StepResult:
    facts = {name: one for name, one in vars(event).items() if name not in ("time", "stage")}
    facts["error"] = None if event.error is None else from_data(dict(event.error))
    facts["log"] = Path(event.log) if event.log else None
    return StepResult(name=event.stage, **facts)


def _step_to_data(step: StepResult) -> dict[str, Any]:
    data = dict(vars(step))
    data["report"] = events.report_to_data(step.report)
    data["error"] = None if step.error is None else to_data(step.error)
    data["log"] = None if step.log is None else str(step.log)
    return data


def _step_from_data(data: dict[str, Any]) -> StepResult:
    rebuilt: dict[str, Any] = {
        **data,
        "report": events.report_from_data(data["report"]),
        "error": None if data["error"] is None else from_data(data["error"]),
        "log": None if data["log"] is None else Path(data["log"]),
        "notes": tuple(data["notes"]),
    }
    return StepResult(**rebuilt)
