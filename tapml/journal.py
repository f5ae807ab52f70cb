"""The folder of a run: its events as JSON lines, the resolved recipe, the plan, logs.

    runs/<id>/  events.jsonl  recipe.yaml  plan.json  logs/<stage>.log  views/<stage>/

MLflow is fed from the events later, by another process; a torn last line is no error.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

from . import disk, events
from .events import Event, RunFinished
from .store import Store


class Journal:
    """Appends events to `<folder>/events.jsonl`, which is locked meanwhile: a sign of life."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(
            folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

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


def new_id(name: str) -> str:
    """An id with a name in it; ids sort by time."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "run"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{uuid4().hex[:4]}"


def new_run(store: Store, name: str) -> tuple[str, Path]:
    """The id and the new folder of a run."""
    run_id = new_id(name)
    folder = store.runs / run_id
    (folder / "logs").mkdir(parents=True)
    return run_id, folder


def read_events(folder: Path) -> list[Event]:
    """The events of a run; lines that are torn, or of another tapml, are left out."""
    path = folder / "events.jsonl"
    found: list[Event] = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(events.from_data(json.loads(line)))
    return found


def is_written(folder: Path) -> bool:
    """Whether the run of a folder goes on: its process holds the journal."""
    with (folder / "events.jsonl").open("rb") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
