"""Results and runs in a store, made by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tapml import events, journal, keys
from tapml.store import Record, Store, inventory, now

DAY_S = 86400.0


def publish(
    store: Store,
    number: int = 0,
    *,
    stage: str = "text",
    text: str = "",
    days: float = 0.0,
    force: bool = False,
    **facts: Any,
) -> Record:
    """A result of one file, last used so many days ago."""
    preimage = {"stage": stage, "number": number}
    outputs = {"out": store.put_bytes((text or f"output {number} of {stage}").encode())}
    record = Record(stage, keys.digest(preimage), preimage, outputs, made_at=now(), **facts)
    record = store.publish(record, force=force)
    used = time.time() - days * DAY_S
    path = newest_file(store, record)
    os.utime(path, (used, used))
    return record


def newest_file(store: Store, record: Record) -> Path:
    folder = store.root / "ac" / record.stage / record.key
    return max(folder.iterdir(), key=lambda path: int(path.name))


class RunOf:
    """A run that has used these results, so many days ago; as a context it goes on meanwhile."""

    def __init__(self, store: Store, *used: Record, recipe: str = "mlp", days: float = 0.0) -> None:
        self._days, self._ended = days, False
        began = time.time() - days * DAY_S
        self.run_id, self.folder = journal.new_run(store, recipe)
        self._journal = journal.Journal(self.folder)
        path = f"{recipe}.yaml"
        self._journal.write(events.RunStarted(began, self.run_id, recipe, path, 1, ("one",)))
        for one in used:
            self._journal.write(
                events.StageFinished(began, one.stage, "ran", key=one.key, outputs=one.outputs)
            )

    def __enter__(self) -> RunOf:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def die(self) -> None:
        """It was killed."""
        self._journal.__exit__()

    def end(self) -> RunOf:
        """It has ended, as long ago as it began; once."""
        if self._ended:
            return self
        self._ended = True
        ended = time.time() - self._days * DAY_S
        self._journal.write(events.RunFinished(ended, self.run_id, 0, 1.0))
        self._journal.__exit__()
        os.utime(self.folder / "events.jsonl", (ended, ended))
        return self


def stored(store: Store) -> set[str]:
    """Keys of the results that are there, whole."""
    found = {(one.stage, one.entry.key) for one in inventory.results(store)}
    return {key for stage, key in found if Store(store.root).lookup(stage, key) is not None}
