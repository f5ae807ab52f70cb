"""What is in a store and which runs use it, without reading every record."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import journal, runs
from ..errors import RecipeError, nearest
from . import Store, index
from .blobs import DamagedError, is_sealed
from .index import Entry
from .record import DIGEST

_NAMED = re.compile(rb"\b[0-9a-f]{64}\b")


@dataclass(frozen=True, slots=True)
class Result:
    """A stored result.

    used_ns: when it was last looked up or made
    bytes:   of its record
    """

    stage: str
    entry: Entry
    used_ns: int
    bytes: int

    @property
    def name(self) -> str:
        """`stage/key`, and the generation where it is not the first."""
        one = self.entry
        return f"{self.stage}/{one.key}{f'#{one.generation}' if one.generation else ''}"


@dataclass(frozen=True)
class Use:
    """What a run uses.

    started:  Unix time; `changed`: of its last event
    keys:     of the results that it has made or found so far, or means to; `outputs` are theirs
    goes_on:  its process lives
    is_kept:  pinned, or a baseline
    """

    run_id: str
    recipe: str
    folder: Path
    started: float
    changed: float
    keys: frozenset[str]
    outputs: frozenset[str]
    goes_on: bool = False
    is_kept: bool = False


def results(store: Store, stage: str = "") -> Iterator[Result]:
    """Every stored result (of a stage). Their names and times are the disk's; what they say comes
    from the index, or from the record where the index lacks it, which then gets it.
    """
    for name in [stage] if stage else store.stages():
        known = {(one.key, one.generation): one for one in index.read(store.index(name))}
        for found in _found(store, name, names(store.root / "ac" / name)):
            entry = known.get((found.key, found.generation))
            if entry is None or entry.inode != found.inode:
                if (entry := _read(store, found)) is None:
                    continue
                if entry.made_at:
                    with suppress(OSError):  # a store that cannot be written
                        index.append(store.index(name), entry)
            yield Result(name, entry, found.used_ns, found.bytes)


def results_of(store: Store, keys: Collection[str]) -> Iterator[Result]:
    """The results of these actions."""
    for stage in store.stages():
        for found in _found(store, stage, sorted(keys)):
            if (entry := _read(store, found)) is not None:
                yield Result(stage, entry, found.used_ns, found.bytes)


@dataclass(frozen=True, slots=True)
class _File:
    """A record's file, unread."""

    stage: str
    key: str
    generation: int
    inode: int
    used_ns: int
    bytes: int


def _found(store: Store, stage: str, keys: Iterable[str]) -> Iterator[_File]:
    folder = store.root / "ac" / stage
    for key in filter(DIGEST.fullmatch, keys):
        for number in filter(str.isdecimal, names(f"{folder}/{key}")):
            try:
                facts = os.stat(f"{folder}/{key}/{number}")
            except FileNotFoundError:
                continue
            inode, used, size = facts.st_ino, facts.st_mtime_ns, facts.st_size
            yield _File(stage, key, int(number), inode, used, size)


def _read(store: Store, file: _File) -> Entry | None:
    """What a record says. One of another version of tapml counts as using whatever it names."""
    path = store.record_path(file.stage, file.key, file.generation)
    if (record := store.record(path)) is not None:
        return index.entry(record, file.generation, file.inode)
    try:
        named = {one.decode() for one in _NAMED.findall(path.read_bytes())}
    except FileNotFoundError:  # it was damaged
        return None
    return Entry(file.key, file.generation, file.inode, "", 0.0, {}, parts(store, named))


def parts(store: Store, digests: Iterable[str]) -> dict[str, int]:
    """Digest → bytes of these blobs and of what they consist of, as far as they are there."""
    found: dict[str, int] = {}
    for digest in digests:
        with suppress(DamagedError):
            found |= store.parts([digest])
    return found


def uses(store: Store) -> list[Use]:
    """What each run uses, the newest first."""
    found = (use(store.runs / name) for name in names(store.runs))
    return sorted(filter(None, found), key=lambda one: one.started, reverse=True)


def use(folder: Path) -> Use | None:
    """What the run of a folder uses; None when it is no run's."""
    path = folder / "events.jsonl"
    try:
        goes_on = journal.is_written(folder)  # first: what is told after this is not missed
        told = [row for line in path.read_bytes().splitlines() for row in _told(line)]
        changed = path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    start = told[0] if told else {}
    ended = [row for row in told if row["event"] == "StageFinished"]
    keys = {str(row["key"]) for row in ended}
    if goes_on:
        with suppress(OSError, ValueError):
            planned: list[dict[str, Any]] = json.loads((folder / "plan.json").read_bytes())
            keys |= {str(row["key"] or "") for row in planned}
    return Use(
        run_id=folder.name,
        recipe=str(start.get("recipe", "")),
        folder=folder,
        started=float(start.get("time", changed)),
        changed=changed,
        keys=frozenset(keys) - {""},
        outputs=frozenset(str(digest) for row in ended for digest in row["outputs"].values()),
        goes_on=goes_on,
        is_kept=(folder / runs.PINNED).exists() or (folder / runs.BASELINE).exists(),
    )


def _told(line: bytes) -> Iterator[dict[str, Any]]:
    """The event of a line, when it is one that counts here; a torn line has none."""
    if line.startswith((b'{"event": "RunStarted"', b'{"event": "StageFinished"')):
        with suppress(ValueError):
            yield json.loads(line)


def select(store: Store, texts: Iterable[str], *, recipe: str = "") -> list[Result]:
    """The results that `STAGE`, `STAGE/KEY` (the start of a key) or a run name, and those of the
    runs of a recipe.

    Raises: RecipeError when one of them names nothing.
    """
    found: dict[str, Result] = {}
    for text in texts:
        stage, slash, start = text.partition("/")
        if stage in (stages := store.stages()):
            chosen = [one for one in results(store, stage) if one.entry.key.startswith(start)]
        elif slash:
            hint = nearest(stage, stages, noun="stages with results")
            raise RecipeError(message=f"no results of a stage {stage!r}", hint=hint)
        else:
            folder = runs.find(text, store.root).folder
            chosen = list(results_of(store, one.keys if (one := use(folder)) else ()))
        if not chosen:
            raise RecipeError(message=f"{text} has no results in {store.root}")
        found |= {one.name: one for one in chosen}
    if recipe:
        known = uses(store)
        keys = {key for one in known if one.recipe == recipe for key in one.keys}
        if not keys:
            recipes = sorted({one.recipe for one in known})
            hint = nearest(recipe, recipes, noun="recipes")
            raise RecipeError(message=f"no run of recipe {recipe}", hint=hint)
        found |= {one.name: one for one in results_of(store, keys)}
    return list(found.values())


def beside(store: Store) -> int:
    """Bytes that run folders hold of their own: links to blobs, and to each other, do not count."""
    sizes: dict[int, int] = {}
    for folder, _, files in os.walk(store.runs):
        for name in files:
            with suppress(FileNotFoundError):
                facts = os.lstat(f"{folder}/{name}")
                if not is_sealed(facts):
                    sizes[facts.st_ino] = facts.st_size
    return sum(sizes.values())


def total(found: Iterable[Result]) -> int:
    """Bytes of these results; what several share counts once."""
    blobs: dict[str, int] = {}
    records = 0
    for one in found:
        blobs |= one.entry.blobs
        records += one.bytes
    return sum(blobs.values()) + records


@dataclass(frozen=True)
class Share:
    """What a stage or a recipe has in the store; what its results share counts once."""

    name: str
    count: int
    bytes: int


def by_stage(found: Iterable[Result]) -> list[Share]:
    """Shares of the stages, the largest first."""
    groups: dict[str, list[Result]] = {}
    for one in found:
        groups.setdefault(one.stage, []).append(one)
    return _shares(groups)


def by_recipe(found: Iterable[Result], known: Iterable[Use]) -> list[Share]:
    """Shares of the recipes whose runs used the results, the largest first; a result of several
    counts for each.
    """
    owners: dict[str, set[str]] = {}
    for one in known:
        for key in one.keys:
            owners.setdefault(key, set()).add(one.recipe)
    groups: dict[str, list[Result]] = {}
    for one in found:
        for recipe in owners.get(one.entry.key, {"(no run)"}):
            groups.setdefault(recipe, []).append(one)
    return _shares(groups)


def _shares(groups: dict[str, list[Result]]) -> list[Share]:
    shares = [Share(name, len(found), total(found)) for name, found in groups.items()]
    return sorted(shares, key=lambda one: (-one.bytes, one.name))


def names(folder: str | Path) -> list[str]:
    """Names in a folder; none when it is not there, or is no folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
