"""Who is told of a run: each recipe of it, in a folder of its own, and whoever watches.

A step that several recipes share is told to each by that recipe's own name for it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from . import disk, host, journal
from .errors import RecipeError
from .events import Event, RunFinished, RunStarted, StageFinished, StageProgress, StageStarted
from .plan import Plan
from .results import Result, StepResult
from .store import Store


class RunRecipe(Protocol):
    """What a run uses of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def dotted(self) -> Mapping[str, Any]: ...
    def resolved_yaml(self) -> str: ...
    def locate(self, error: RecipeError) -> RecipeError: ...


@dataclass(frozen=True)
class Part:
    """One recipe's share of a plan: its own names of stages → steps."""

    recipe: RunRecipe
    steps: Mapping[str, str]
    label: str = ""


@dataclass(frozen=True, eq=False)
class _Member:
    """A recipe of the run, with the folder that keeps what it is told."""

    part: Part
    run_id: str
    folder: Path
    journal: journal.Journal
    sweep: str

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def views(self, name: str) -> Path:
        return self.folder / "views" / name

    def write(self, event: Event) -> None:
        with disk.guarded(self.folder):
            self.journal.write(event)

    def started(self, moment: float) -> RunStarted:
        recipe = self.part.recipe
        return RunStarted(
            time=moment,
            run_id=self.run_id,
            recipe=recipe.name,
            path=str(recipe.path),
            pid=os.getpid(),
            stages=tuple(self.part.steps),
            fields=recipe.dotted(),
            host={**host.fingerprint(), "machine": host.machine()},
            label=self.part.label,
            sweep=self.sweep,
        )

    def ended(self, results: Mapping[str, StepResult]) -> dict[str, StepResult]:
        """How its stages ended, by its own names."""
        found: dict[str, StepResult] = {}
        for name, step in self.part.steps.items():
            log = self.log(name) if self.log(name).exists() else None
            found[name] = replace(results[step], name=name, log=log)
        return found


class Audience:
    """The recipes of a run, with new run folders; `emit` is told of the plan's steps, each once."""

    def __init__(
        self, plan: Plan, parts: Sequence[Part], store: Store, emit: Callable[[Event], None]
    ) -> None:
        self._plan, self._emit, self._started = plan, emit, time.time()
        self._open = ExitStack()
        several = len(parts) > 1
        self._sweep = journal.new_id(f"{parts[0].recipe.name}-sweep") if several else ""
        self._members: list[_Member] = []
        self._of: dict[str, list[tuple[str, _Member]]] = {step.name: [] for step in plan}
        rows = {row["name"]: row for row in plan.to_data()}
        with disk.guarded(store.root):
            for part in parts:
                member = self._member(part, store, rows)
                self._members.append(member)
                for name, step in part.steps.items():
                    self._of[step].append((name, member))

    def _member(self, part: Part, store: Store, rows: Mapping[str, Any]) -> _Member:
        name = f"{part.recipe.name}-{part.label}" if part.label else part.recipe.name
        run_id, folder = journal.new_run(store, name)
        log = self._open.enter_context(journal.Journal(folder))
        (folder / "recipe.yaml").write_text(part.recipe.resolved_yaml(), encoding="utf-8")
        own = [{**rows[step], "name": name} for name, step in part.steps.items()]
        (folder / "plan.json").write_text(json.dumps(own), encoding="utf-8")
        return _Member(part, run_id, folder, log, self._sweep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin(self) -> None:
        """Tells each recipe that its run begins, and who watches of all at once."""
        for member in self._members:
            member.write(member.started(self._started))
        first = self._members[0].started(self._started)
        if self._sweep:
            names = listed([member.part.recipe.name for member in self._members])
            first = replace(
                first,
                run_id=self._sweep,
                recipe=f"{len(self._members)} of {names}",
                stages=tuple(step.name for step in self._plan),
            )
        self._emit(first)

    def tell(self, event: StageStarted | StageProgress | StageFinished) -> None:
        """Writes an event to the journal of each recipe of its step, and passes it on."""
        for name, member in self._of[event.stage]:
            own = replace(event, stage=name)
            if isinstance(own, StageFinished) and own.log:
                own = replace(own, log=str(member.log(name)))
            member.write(own)
        self._emit(event)

    def end(self, results: Mapping[str, StepResult], interrupted: int) -> tuple[Result, ...]:
        """How each recipe's run ended, told to all. In: the exit code of an interruption, or 0."""
        moment = time.time()
        found: list[Result] = []
        for member in self._members:
            steps = member.ended(results)
            took = moment - self._started
            if self._sweep:
                took = sum(one.seconds for one in steps.values() if one.state == "ran")
            code = interrupted or _exit_code(steps.values())
            member.write(RunFinished(moment, member.run_id, code, round(took, 3)))
            ids = (self._started, self._sweep)
            found.append(Result(member.run_id, member.folder, steps, code, took, *ids))
        code = max(one.exit_code for one in found)
        run_id = self._sweep or found[0].run_id
        self._emit(RunFinished(moment, run_id, code, round(moment - self._started, 3)))
        return tuple(found)

    # --- the files of a step

    def log(self, step: str) -> Path:
        """Where a step's log is written: in the folder of the first of its recipes."""
        name, member = self._of[step][0]
        return member.log(name)

    def views(self, step: str) -> Path:
        """Where a step's views are written."""
        name, member = self._of[step][0]
        return member.views(name)

    def places(self, step: str) -> Iterator[tuple[Path, Path]]:
        """Log and views of a step in the folder of each of its recipes."""
        for name, member in self._of[step]:
            yield member.log(name), member.views(name)

    def share(self, step: str) -> None:
        """Links the log and the views of a step into the folders of all its recipes."""
        (log, views), *others = self.places(step)
        for own_log, own_views in others:
            with suppress(FileExistsError, FileNotFoundError), disk.guarded(own_log):
                disk.link(log, own_log)
            if views.is_dir() and not own_views.exists():
                with disk.guarded(own_views):
                    shutil.copytree(views, own_views, copy_function=os.link)

    def locate(self, error: RecipeError, step: str) -> RecipeError:
        """The error with its place in the first recipe of the step."""
        return self._of[step][0][1].part.recipe.locate(error)


def listed(names: Sequence[str]) -> str:
    """The first of some names."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:3]) + " …" * (len(unique) > 3)


def _exit_code(results: Iterable[StepResult]) -> int:
    failed = (
        one.error.exit_code for one in results if one.state == "failed" and one.error is not None
    )
    return next(failed, 0)
