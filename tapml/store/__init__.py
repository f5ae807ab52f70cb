"""The content-addressed store: blobs, and records of what each action gave.

    cas/  tmp/  quarantine/     as in `tapml/store/blobs.py`
    ac/<stage>/<action>/<n>     records; the newest generation counts; its time is that of last use
    index/<stage>               what the records of a stage say, in short
    locks/  tuning/  runs/

It may lose, never lie. Blobs are written before the record that names them; of several writers of
a record the first one wins. Who finds a record touches it, and so notices when it was taken away
meanwhile: `tapml/store/garbage.py`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import disk, keys
from . import index
from .blobs import Blobs, DamagedError, Durability
from .record import DIGEST, Record, decode, encode, now

__all__ = ["DamagedError", "Durability", "Record", "Store", "now"]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_STALE_S = 24 * 3600  # age of a temporary file that has no owner any more
_TOUCH_S = 60  # how old a record's time may become before a lookup renews it


@dataclass(frozen=True)
class Store(Blobs):
    """A store at `root`, an absolute folder that is made when first written to."""

    @property
    def database(self) -> Path:
        """Where stages keep tuning records that outlive runs."""
        return self.root / "tuning"

    @property
    def runs(self) -> Path:
        """Where runs have their folders."""
        return self.root / "runs"

    # --- writing

    def prepare(self) -> None:
        """Makes the folders, removes temporary files that nobody owns any more."""
        with disk.guarded(self.root, errno.ENOENT):  # from file systems such as /proc
            for name in ("cas", "ac", "index", "locks", "tmp", "tuning", "runs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            for left in self.leftovers(time.time() - _STALE_S):
                disk.remove(left)

    def leftovers(self, oldest: float) -> list[Path]:
        """Temporary files that writers left when they were killed: those that nobody changed since
        a time. A stage may work in its folder for long, so that a folder has a day at least.
        """
        found: list[Path] = []
        for path in disk.listed(self.root / "tmp"):
            with suppress(FileNotFoundError):
                changed = path.lstat().st_ctime  # a blob's own time is its seal
                if changed < oldest and (path.is_file() or changed < time.time() - _STALE_S):
                    found.append(path)
        return found

    def publish(self, record: Record, *, force: bool = False) -> Record:
        """The record that counts: the first one. `force`: this one, as a new generation."""
        folder = self._actions(record.stage, record.key)
        record = replace(
            record,
            blobs=self.parts(record.outputs.values()),
            sides=self.parts(one for one in (record.log, record.views) if one),
        )
        data = encode(record)
        while True:
            # numbered before looking, so that whoever publishes after the look takes this number
            generation = max((int(path.name) for path in _generations(folder)), default=-1) + 1
            if not force and (first := self.lookup(record.stage, record.key)) is not None:
                return first
            with self.written("record", [data]) as (temporary, _):
                final, inode = folder / str(generation), temporary.stat().st_ino
                if not disk.place(temporary, final, "record", durable=self.durability == "each"):
                    continue
            with suppress(OSError):  # the index may lack it
                entry = index.entry(record, generation, inode)
                path = self.index(record.stage)
                while not index.append(path, entry):
                    if index.create(path, self.entries(record.stage)):
                        break
            return record

    def flush(self) -> None:
        """Everything written so far is on the disk."""
        with disk.guarded(self.root):
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(descriptor)

    # --- reading

    def lookup(self, stage: str, key: str, notes: list[str] | None = None) -> Record | None:
        """The newest whole record of an action, if its blobs are there too.

        What is damaged is set aside; `notes` gets a line about it.
        """
        for path in sorted(
            _generations(self._actions(stage, key)), key=lambda path: -int(path.name)
        ):
            if (record := self.record(path, notes)) is None:
                continue
            if damaged := self._lacks(record):
                if notes is not None:
                    notes.append(f"its stored {', '.join(damaged)} was damaged or lost; made again")
            elif self._is_used(path):
                return record
        return None

    def newest(self, stage: str, count: int) -> list[Record]:
        """The latest records of a stage, newest first, whether their blobs are there or not."""
        try:
            entries = index.newest(self.index(stage))
            found = list(islice(self._indexed(stage, entries), count))
        except FileNotFoundError:
            entries = self.entries(stage)
            if entries:
                with suppress(OSError):  # a store that cannot be written
                    index.create(self.index(stage), entries)
            found = list(islice(self._indexed(stage, reversed(entries)), count))
        return sorted(found, key=lambda record: record.made_at, reverse=True)

    def stages(self) -> list[str]:
        """The names of the stages that have results."""
        return [path.name for path in disk.listed(self.root / "ac") if _NAME.fullmatch(path.name)]

    def index(self, stage: str) -> Path:
        """Where the index of a stage's records is."""
        return self.root / "index" / _checked(stage)

    def entries(self, stage: str) -> list[index.Entry]:
        """What an index of all records would say, read one by one, the oldest first."""
        entries: list[index.Entry] = []
        for path in self.record_paths(stage):
            with suppress(FileNotFoundError):  # taken away since it was listed
                inode = path.stat().st_ino
                if (record := self.record(path)) is not None:
                    entries.append(index.entry(record, int(path.name), inode))
        return sorted(entries, key=lambda entry: entry.made_at)

    def record_paths(self, stage: str) -> Iterator[Path]:
        """Where the records of a stage are."""
        for key in disk.listed(self.root / "ac" / _checked(stage)):
            yield from _generations(key)

    def record_path(self, stage: str, key: str, generation: int) -> Path:
        """Where a record is, or was."""
        return self._actions(stage, key) / str(generation)

    def record(self, path: Path, notes: list[str] | None = None) -> Record | None:
        """The record in a file; None when it is gone, of another form, or damaged and set aside."""
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            self.set_aside(path)
            if notes is not None:
                notes.append(f"its record {path.parent.name[:12]}… was damaged; made again")
            return None

    def memo(
        self,
        name: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        fn: Callable[[Path], None],
    ) -> str:
        """The digest of what `fn` writes for these parameters and inputs, kept from then on."""
        stage = f"memo.{name}"
        preimage = {
            "schema": keys.SCHEMA,
            "stage": stage,
            "version": 0,
            "params": dict(params),
            "inputs": dict(inputs),
        }
        key = keys.digest(preimage)
        if (record := self.lookup(stage, key)) is None:
            folder = self.temporary(stage)
            try:
                fn(folder / "file")
                outputs = {"file": self.put(folder / "file")}
            finally:
                disk.remove(folder)
            record = self.publish(Record(stage, key, preimage, outputs, made_at=now()))
        return record.outputs["file"]

    def _actions(self, stage: str, key: str) -> Path:
        if not DIGEST.fullmatch(key):
            raise ValueError(f"{key!r} is no action key")
        return self.root / "ac" / _checked(stage) / key

    def _indexed(self, stage: str, entries: Iterable[index.Entry]) -> Iterator[Record]:
        """The records, read, of those entries that have one."""
        seen = set[tuple[str, int]]()
        for entry in entries:
            if (name := (entry.key, entry.generation)) not in seen:
                seen.add(name)
                if (record := self.record(self.record_path(stage, *name))) is not None:
                    yield record

    def _lacks(self, record: Record) -> list[str]:
        """The outputs that are not there as they were stored. Costs a `stat` for each file; only
        what was written to is read.
        """
        if all(self.seems_whole(digest, size) for digest, size in record.blobs.items()):
            return []
        return [name for name, digest in record.outputs.items() if not self.reads_whole(digest)]

    def _is_used(self, path: Path) -> bool:
        """Marks a record as used now; False when it was taken away meanwhile."""
        try:
            if path.stat().st_mtime < time.time() - _TOUCH_S:
                os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # a store that cannot be written, or a file of another user
            pass
        return True


def _generations(folder: Path) -> list[Path]:
    return [path for path in disk.listed(folder) if path.name.isdecimal()]


def _checked(stage: str) -> str:
    if not _NAME.fullmatch(stage):
        raise ValueError(f"{stage!r} is no name of a stage")
    return stage
