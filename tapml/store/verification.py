"""Reads a whole store: what is damaged, and setting it right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from .. import disk
from . import Store, garbage, index, record
from .blobs import Blobs

Kind = Literal["blob", "record", "result", "superseded", "leftover", "stranger"]
_REMEDY: dict[Kind, str] = {
    "blob": "set aside",
    "record": "set aside",
    "result": "set aside",
    "superseded": "set aside",
    "leftover": "removed",
    "stranger": "left alone",
}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    kind: a blob whose bytes are not what its name says; a record that is torn; a result (a whole
          record) whose blobs are missing or damaged; the same, superseded by a later result of
          the action that is whole; a leftover of a writer that was killed; a stranger's file, or
          a record of another version of tapml
    done: what was done about it
    """

    kind: Kind
    path: Path
    what: str
    done: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}{f'; {self.done}' if self.done else ''}"

    @property
    def is_damage(self) -> bool:
        """Whether something that was stored is lost; the rest is only in the way."""
        return self.kind in ("blob", "record", "result")


def verify(store: Store, *, repair: bool = False, now: float | None = None) -> list[Finding]:
    """Everything that is not as it should be, having read all of the store. Changes nothing.

    In: `repair`: sets aside what is damaged, so that the next run makes it again, and what depends
        on it; removes what killed writers left; writes the index anew. `now`: Unix time from
        which ages count.
    """
    found = [*_blobs(store)]
    bad = {one.path.name for one in found if one.kind == "blob"}
    found += _records(store, bad)
    found += [
        Finding("leftover", path, "a writer that was killed left it")
        for path in store.leftovers((time.time() if now is None else now) - garbage.GRACE_S)
    ]
    if not repair:
        return found
    with garbage.alone(store):
        for one in found:
            if one.kind == "leftover":
                disk.remove(one.path)
            elif one.kind != "stranger":
                store.set_aside(one.path)
        for stage in store.stages():
            index.write(store.index(stage), store.entries(stage))
    return [Finding(one.kind, one.path, one.what, _REMEDY[one.kind]) for one in found]


def _blobs(store: Store) -> list[Finding]:
    found: list[Finding] = []
    blobs = Blobs(store.root)  # has read nothing yet, and so believes nothing
    for folder in disk.listed(store.root / "cas"):
        for path in disk.listed(folder):
            if not record.DIGEST.fullmatch(path.name):
                found.append(Finding("stranger", path, "its name is no digest"))
            elif not blobs.is_whole(path.name) and path.exists():
                found.append(Finding("blob", path, "its bytes are not what its name says"))
    return found


def _records(store: Store, bad: set[str]) -> list[Finding]:
    """In: `bad`: digests of blobs that are there and damaged."""
    return [
        finding
        for stage in store.stages()
        for _, paths in groupby(store.record_paths(stage), key=lambda path: path.parent)
        for finding in _results(store, list(paths), bad)
    ]


def _results(store: Store, paths: list[Path], bad: set[str]) -> Iterator[Finding]:
    """In: `paths`: the records of one action."""
    is_whole = False  # whether a later one is
    for path in sorted(paths, key=lambda path: -int(path.name)):
        try:
            made = record.decode(path.read_bytes())
        except ValueError:
            yield Finding("record", path, "the record is torn or changed")
            continue
        except FileNotFoundError:
            continue
        if made is None:
            yield Finding("stranger", path, "a record of another version of tapml")
            continue
        lost = [one for one in made.blobs if one in bad or not store.blob(one).exists()]
        if lost:
            what = f"{len(lost)} of its {len(made.blobs)} blobs missing or damaged"
            kind = "superseded" if is_whole else "result"
            yield Finding(kind, path, f"{what}, first {lost[0][:12]}…")
        else:
            is_whole = True
