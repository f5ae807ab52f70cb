"""A database: a folder of searches, one file each, or all of them in one file (an export).

    {"format": "tapml.tuning.export", "version": 1, "records": 2}

An export is the rows of its searches one after the other, below a line that counts them, so that a
cut is noticed. Rows are never run or unpickled: a trace is applied by the compiler, which refuses
what is none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .. import disk
from ..errors import RecipeError
from ..stage import Target
from ..target import missing_here
from . import lines
from .search import Header, Parsed, Search, Trial, parse

EXPORT, EXPORT_VERSION = "tapml.tuning.export", 1


@dataclass(frozen=True)
class Database:
    """The searches of a folder or an export, those of an operator side by side.

    faults: what of it could not be read, in words
    """

    searches: tuple[Search, ...]
    faults: tuple[str, ...] = ()


class Change(NamedTuple):
    """What became of one search: its trials before and after, None when it was or is not there."""

    header: Header
    before: int | None
    after: int | None


def load(path: Path, names: Collection[str] | None = None) -> Database:
    """A folder's searches, or an export's; what is damaged is skipped and told.

    In: `names`: of the files of the folder that count; all when None.
    Raises: RecipeError when there is no such folder or file, or a newer tapml wrote it.
    """
    if path.is_file():
        return Database(_sorted(_exported(path)))
    if not path.is_dir():
        raise RecipeError(message=f"no tuning database {path}")
    searches: list[Search] = []
    faults: list[str] = []
    for file in _files(path):
        if names is None or file.name in names:
            search = _whole(parse(lines.read(file)), file, faults)
            if search is not None:
                searches.append(search)
    return Database(_sorted(searches), tuple(faults))


def export(searches: Iterable[Search], path: Path) -> None:
    """Writes searches to one file. Equal searches give an equal file.

    Raises: RecipeError when there is a file already.
    """
    if path.exists() or not path.absolute().parent.is_dir():
        why = "is there already" if path.exists() else "is in no folder"
        raise RecipeError(message=f"{path} {why}", hint="name a new file")
    rows = [row for search in _sorted(searches) for row in search.rows()]
    head = {"format": EXPORT, "version": EXPORT_VERSION, "records": len(rows)}
    with disk.guarded(path):
        lines.replace(path, [head, *rows])


def merge(folder: Path, searches: Iterable[Search]) -> list[Change]:
    """Brings searches into a folder: trials that are there already count once, new ones follow."""
    changes: list[Change] = []
    for new in searches:
        path = folder / f"{new.header.identity.digest}.jsonl"
        with disk.guarded(path), lines.locked(path):
            here = parse(lines.read(path))
            pairs = zip((*here.trials, *new.trials), (*here.times, *new.times), strict=True)
            joined: dict[str, tuple[Trial, int]] = {}
            for trial, when in pairs:
                joined.setdefault(trial.key, (trial, when))
            search = _of(here.header or new.header, joined.values())
            before = len(here.trials) if here.header else None
            changes.append(Change(new.header, before, len(search.trials)))
            if before != len(search.trials):
                lines.replace(path, search.rows())
    return changes


def prune(
    folder: Path, left: Callable[[Search], Search | None], *, dry_run: bool = False
) -> list[Change]:
    """Replaces each search of a folder by what is `left` of it, and damaged lines by nothing.

    Out: the searches that change. A search that is under way loses no trial to it.
    """
    changes: list[Change] = []
    for file in _files(folder):
        with disk.guarded(file), lines.locked(file):
            search = _whole(parse(lines.read(file)), file, [])
            if search is None:
                continue
            kept = left(search)
            after = None if kept is None else len(kept.trials)
            if after == len(search.trials) and not search.damaged:
                continue
            changes.append(Change(search.header, len(search.trials), after))
            if dry_run:
                continue
            if kept is None:
                file.unlink()
            else:
                lines.replace(file, kept.rows())
    return changes


def keep_best(search: Search, count: int) -> Search:
    """A search with its fastest trials only, in their order."""
    best = {trial.key for trial in search.ranked[:count]}
    pairs = zip(search.trials, search.times, strict=True)
    return _of(search.header, ((t, when) for t, when in pairs if t.key in best))


def is_of_here(search: Search) -> bool:
    """Whether its target can run on this machine, and the tools that are installed are its own."""
    words = search.header.identity.toolchain.split()
    try:
        target = Target.model_validate_json(search.header.identity.target)
        same = all(
            metadata.version(tool) == version
            for tool, version in zip(words[::2], words[1::2], strict=True)
        )
    except (ValueError, metadata.PackageNotFoundError):
        return False
    return same and not missing_here(target)


def _files(folder: Path) -> list[Path]:
    found = disk.listed(folder)
    return [one for one in found if one.suffix == ".jsonl" and not one.name.startswith(".")]


def _exported(path: Path) -> Iterator[Search]:
    """The searches of an export. Raises: RecipeError when any of it is not as it was written."""
    numbered = list(lines.read(path))
    if not numbered or (head := numbered[0][1]) is None or head.get("format") != EXPORT:
        raise _refused(path, "it has no such first line")
    if head.get("version") != EXPORT_VERSION:
        raise _refused(path, f"it is of version {head.get('version')}")
    if damaged := [number for number, row in numbered if row is None]:
        raise _refused(path, f"line {damaged[0]} is damaged")
    if head.get("records") != len(numbered) - 1:
        raise _refused(path, f"{len(numbered) - 1} of {head.get('records')} records are there")
    groups: list[list[tuple[int, lines.Row | None]]] = []
    for number, row in numbered[1:]:
        if row is not None and "format" in row:
            groups.append([])
        if not groups:
            raise _refused(path, f"line {number} belongs to no search")
        groups[-1].append((number, row))
    for group in groups:
        found = parse(group)
        if found.header is None or found.damaged:
            raise _refused(path, f"line {(*found.damaged, group[0][0])[0]} is no record")
        yield _of(found.header, zip(found.trials, found.times, strict=True))


def _refused(path: Path, why: str) -> RecipeError:
    return RecipeError(
        message=f"{path} is no export of a tuning database, or is damaged: {why}",
        hint="`tapml db export` writes one; nothing of this one counts",
    )


def _whole(found: Parsed, file: Path, faults: list[str]) -> Search | None:
    """A file's search; None when nobody can tell what it was of."""
    if found.header is None:
        faults.append(f"{file}: no line says what was searched; its trials are left out")
        return None
    if found.header.identity.digest != file.stem:
        faults.append(f"{file}: holds another search than its name says; left out")
        return None
    if found.damaged:
        at = ", ".join(map(str, found.damaged[:9])) + " …" * (len(found.damaged) > 9)
        faults.append(f"{file}: line {at} is torn or damaged; all others count")
    return Search(found.header, found.trials, found.times, found.damaged)


def _of(header: Header, pairs: Iterable[tuple[Trial, int]]) -> Search:
    pairs = list(pairs)
    return Search(header, tuple(t for t, _ in pairs), tuple(w for _, w in pairs))


def _sorted(searches: Iterable[Search]) -> tuple[Search, ...]:
    return tuple(sorted(searches, key=lambda one: (one.header.kernel, one.header.identity.digest)))
