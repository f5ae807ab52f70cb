"""The folder of a run: its events as JSON lines, the resolved recipe, the plan, logs.

    runs/<id>/  events.jsonl  recipe.yaml  plan.json  logs/<stage>.log  views/<stage>/

MLflow is fed from the events later, by another process; a torn last line is no error.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from . import disk, events
from .events import Event, RunFinished, RunStarted, StageFinished
from .store import Store


class Journal:
    """Appends events to `<folder>/events.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(
            folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )

    def write(self, event: Event) -> None:
        """Appends one line, which outlives this process; at the run's end all are on the disk."""
        line = json.dumps(events.to_data(event), ensure_ascii=False, allow_nan=False, default=str)
        disk.write_all(self._descriptor, line.encode() + b"\n")
        if isinstance(event, RunFinished):
            os.fsync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run from its folder.

    exit_code: None when it has not ended, or was killed
    stages: the last word about each stage, in the order of the plan
    """

    run_id: str
    folder: Path
    recipe: str
    started: float
    seconds: float
    exit_code: int | None
    pid: int
    fields: dict[str, Any]
    stages: dict[str, StageFinished] = field(default_factory=dict[str, StageFinished])


def new_run(store: Store, recipe: str) -> tuple[str, Path]:
    """The id and the new folder of a run; ids sort by time."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", recipe).strip("-")[:40] or "run"
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{uuid4().hex[:4]}"
    folder = store.runs / run_id
    (folder / "logs").mkdir(parents=True)
    return run_id, folder


def list_runs(store: Store) -> list[Path]:
    """Folders of runs, the newest first."""
    return sorted((path.parent for path in store.runs.glob("*/events.jsonl")), reverse=True)


def read_events(folder: Path) -> list[Event]:
    """The events of a run, up to a torn line."""
    found: list[Event] = []
    for line in (folder / "events.jsonl").read_bytes().split(b"\n")[:-1]:
        try:
            found.append(events.from_data(json.loads(line)))
        except ValueError:
            break
    return found


def read_run(folder: Path) -> RunFacts | None:
    """What the events of a run say; None when there are none."""
    found = read_events(folder)
    if not found or not isinstance(start := found[0], RunStarted):
        return None
    ended = {event.stage: event for event in found if isinstance(event, StageFinished)}
    end = next((event for event in reversed(found) if isinstance(event, RunFinished)), None)
    return RunFacts(
        run_id=start.run_id,
        folder=folder,
        recipe=start.recipe,
        started=start.time,
        seconds=found[-1].time - start.time,
        exit_code=None if end is None else end.exit_code,
        pid=start.pid,
        fields=dict(start.fields),
        stages={name: ended[name] for name in start.stages if name in ended},
    )
