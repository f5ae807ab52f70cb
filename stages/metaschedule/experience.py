"""What was measured in other searches: `tuning.reuse`, an input of the stage by its digest.

Searches of another target or toolchain are left out, and that is said. A search counts only if the
PrimFunc that it holds is the one that its hash names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tapml.errors import StageError
from tapml.stage import File, Target
from tapml.tuning import database
from tapml.tuning.search import Search

from ..compat import load_json
from ..records import workload_hash
from ..search_modules import Space, Variants
from .database import toolchain
from .stage import Reused
from .transfer import skeleton


@dataclass(frozen=True)
class Past:
    """A search of another run, on a target and with tools equal to ours."""

    search: Search

    @property
    def workload(self) -> str:
        return self.search.header.identity.workload

    @cached_property
    def func(self) -> Any | None:
        """The unscheduled PrimFunc; None when the file has another one than it says."""
        try:
            func = load_json(self.search.header.func)["main"]
        except Exception:  # TVM's reader raises whatever it likes, and it is a stranger's file
            return None
        return func if workload_hash(func) == self.workload else None

    @cached_property
    def skeleton(self) -> tuple[str, tuple[int, ...]]:
        """What the PrimFunc is without its sizes, and its sizes."""
        return skeleton(self.func)

    def relative(self, ms: float | None) -> float | None:
        """A time as a share of the default schedule's, when it was measured."""
        return None if ms is None else ms / self.search.header.default_ms


@dataclass(frozen=True)
class Experience:
    """The past searches that count, and in words what does not."""

    pasts: tuple[Past, ...]
    target: Target
    notes: tuple[str, ...]
    digest: str
    pretrain: bool

    def spaces(self, name: str, module: Variants) -> Iterator[tuple[Past, Space]]:
        """The spaces that a module has today for the workloads of the past."""
        known = self._spaces.setdefault(name, {})
        for past in self.pasts:
            if past.workload not in known:
                func = past.func
                known[past.workload] = None if func is None else module.space(func, self.target)
            if (space := known[past.workload]) is not None:
                yield past, space

    @cached_property
    def _spaces(self) -> dict[str, dict[str, Space | None]]:
        return {}


def load(reused: Reused, target: Target) -> Experience:
    """The searches of the database that was reused, as they were when the run was planned.

    Raises: StageError when it has changed since.
    """
    source = reused.source
    files = {"": source} if isinstance(source, File) else source.files
    for one in files.values():
        _demand_unchanged(one)
    names = None if isinstance(source, File) else set(files)
    found = database.load(Path(source.path), names)
    equal = [
        one
        for one in found.searches
        if one.header.identity.target == target.model_dump_json()
        and one.header.identity.toolchain == toolchain()
    ]
    pasts = [Past(one) for one in equal if one.ranked]
    whole = tuple(past for past in pasts if past.func is not None)
    notes = tuple(_notes(found, equal, pasts, whole))
    return Experience(whole, target, notes, reused.digest, reused.pretrain)


def _demand_unchanged(file: File) -> None:
    try:
        with Path(file.path).open("rb") as opened:
            same = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except FileNotFoundError:
        same = False
    if not same:
        raise StageError(
            message=f"{file.path} has changed since the run was planned",
            hint="reuse a file that nobody writes to: `tapml db export FILE` makes one",
        )


def _notes(
    found: database.Database,
    equal: Sequence[Search],
    pasts: Sequence[Past],
    whole: Sequence[Past],
) -> Iterator[str]:
    trials = sum(len(past.search.trials) for past in whole)
    yield f"reuse: {trials} trials of {len(whole)} searches are of this target and toolchain"
    if foreign := len(found.searches) - len(equal):
        yield f"reuse: {foreign} searches of another target or toolchain are left out"
    if wrong := len(pasts) - len(whole):
        yield f"reuse: {wrong} searches hold another PrimFunc than they say, and are left out"
    yield from (f"reuse: {fault}" for fault in found.faults)
