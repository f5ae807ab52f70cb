"""Takes results away that nobody needs: mark and sweep, beside runs that go on.

Nothing goes that a run uses which goes on, is pinned or a baseline, or that was made, looked up,
stored or handed out within the grace period. What goes is decided first; then each file is moved
aside, looked at again, and put back if somebody used it since. Whoever finds a record touches it
after having looked at its blobs, and whoever stores a blob that is there already touches that: so
he either comes first and it is put back, or he sees that it is gone, and makes it again.
Records go before blobs, and a blob stays as long as any record or kept run names it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from .. import disk, locks
from ..errors import EnvironmentalError, RecipeError
from . import Store, index, inventory
from .index import Entry
from .inventory import Result, Use
from .record import DIGEST

GRACE_S = 3600.0  # what is younger, or was used within this time, never goes


@dataclass(frozen=True)
class Policy:
    """What may go. Alone, `keep_runs` takes all that no kept run uses; with a limit it only keeps.

    max_bytes:    the least recently used results go until the rest is no larger
    older_than_s: results not used for so long go
    keep_runs:    what the newest so many runs use is kept
    run_folders:  the folders of runs beyond those go too
    grace_s:      nothing goes that was used within this time; an hour at least while a run goes on
    """

    max_bytes: int | None = None
    older_than_s: float | None = None
    keep_runs: int | None = None
    run_folders: bool = False
    grace_s: float = GRACE_S


@dataclass(frozen=True)
class Outcome:
    """What went, or would go.

    blobs:   digest → bytes
    aside:   temporary files of killed writers, and what was set aside as damaged
    linked:  bytes of blobs that run folders still hold links to: the disk has them as before
    kept:    bytes of the results that stay
    """

    results: list[Result] = field(default_factory=list[Result])
    blobs: dict[str, int] = field(default_factory=dict[str, int])
    runs: list[str] = field(default_factory=list[str])
    aside: list[Path] = field(default_factory=list[Path])
    linked: int = 0
    kept: int = 0

    @property
    def freed(self) -> int:
        return sum(self.blobs.values()) + sum(one.bytes for one in self.results)


def is_kept(use: Use, rank: int, policy: Policy, now: float) -> bool:
    """Whether what a run uses stays. In: `rank`: 0 for the newest run."""
    recent = now - use.changed < policy.grace_s
    return use.goes_on or use.is_kept or recent or rank < (policy.keep_runs or 0)


def what_goes(
    results: Sequence[Result], uses: Sequence[Use], policy: Policy, now: float
) -> list[Result]:
    """The results that go, the least recently used first. In: `uses`: the newest run first."""
    needed: set[str] = set()
    last: dict[str, float] = {}
    for rank, use in enumerate(uses):
        if is_kept(use, rank, policy, now):
            needed |= use.keys
        for key in use.keys:
            last[key] = max(last.get(key, 0.0), use.changed)

    def used(one: Result) -> float:
        return max(one.used_ns / 1e9, last.get(one.entry.key, 0.0))

    free = [
        one for one in results if one.entry.key not in needed and now - used(one) > policy.grace_s
    ]
    free.sort(key=used)
    if policy.max_bytes is None and policy.older_than_s is None:
        return free if policy.keep_runs is not None else []
    old = policy.older_than_s
    going = [one for one in free if old is not None and now - used(one) > old]
    if policy.max_bytes is None:
        return going
    left = Counter[str](digest for one in results for digest in one.entry.blobs)
    size = inventory.total(results)
    for count, one in enumerate(free):
        if count >= len(going):
            if size <= policy.max_bytes:
                break
            going.append(one)
        size -= one.bytes
        for digest, bytes_ in one.entry.blobs.items():
            left[digest] -= 1
            if not left[digest]:
                size -= bytes_
    return going


def collect(
    store: Store, policy: Policy, *, dry_run: bool = False, now: float | None = None
) -> Outcome:
    """Takes away what `policy` lets go, and all that no result names.

    In:     `now`: Unix time from which ages count.
    Raises: EnvironmentalError when another process takes things away, or the disk lets none go.
    """
    with nullcontext() if dry_run else alone(store), disk.guarded(store.root):
        now = time.time() if now is None else now
        uses = inventory.uses(store)
        if any(use.goes_on for use in uses):  # it may have stored what no record names yet
            policy = replace(policy, grace_s=max(policy.grace_s, GRACE_S))
        found = list(inventory.results(store))
        going = what_goes(found, uses, policy, now)
        kept = [use for rank, use in enumerate(uses) if is_kept(use, rank, policy, now)]
        folders = uses if policy.run_folders and policy.keep_runs is not None else []
        old = [use for use in folders if use not in kept]
        took = going if dry_run else [one for one in going if _take_record(store, one)]
        gone = {one.name for one in took}
        staying = [one for one in found if one.name not in gone]
        marked = {digest for one in staying for digest in one.entry.blobs}
        marked |= inventory.parts(store, {one for use in kept for one in use.outputs}).keys()
        leaving = Counter(inode for use in old for inode in _inodes(use.folder))
        oldest = now - policy.grace_s
        blobs, linked = _sweep(store, _stored(store), marked, oldest, leaving, dry_run=dry_run)
        aside = [*store.leftovers(now - GRACE_S), *disk.listed(store.root / "quarantine")]
        if not dry_run:
            for path in (*aside, *(use.folder for use in old)):
                disk.remove(path)
            _tidy(store, found, staying, oldest)
        kept_bytes = inventory.total(staying)
        return Outcome(took, blobs, [use.run_id for use in old], aside, linked, kept_bytes)


def remove(store: Store, chosen: Collection[Result]) -> Outcome:
    """Takes these results away, and the blobs that nothing else names.

    Raises: RecipeError when a run that goes on, is pinned or a baseline uses one of them.
    """
    with alone(store), disk.guarded(store.root):
        uses = inventory.uses(store)
        for use in uses:
            if (use.goes_on or use.is_kept) and (
                needed := [one for one in chosen if one.entry.key in use.keys]
            ):
                what = "goes on" if use.goes_on else "is pinned"
                then = "wait for it" if use.goes_on else f"`tapml runs --unpin {use.run_id}`"
                raise RecipeError(
                    message=f"{needed[0].name[:60]}… is used by run {use.run_id}, which {what}",
                    hint=f"nothing was removed; {then}, or leave it out",
                )
        took = [one for one in chosen if _take_record(store, one, always=True)]
        gone = {one.name for one in took}
        staying = [one for one in inventory.results(store) if one.name not in gone]
        marked = {digest for one in staying for digest in one.entry.blobs}
        named = {digest for one in took for digest in one.entry.blobs}
        # a run that goes on may be about to name one of them again
        oldest = time.time() - (GRACE_S if any(use.goes_on for use in uses) else 0.0)
        blobs, linked = _sweep(store, named, marked, oldest)
        return Outcome(took, blobs, linked=linked, kept=inventory.total(staying))


@contextmanager
def alone(store: Store) -> Generator[None]:
    """No other process takes things away from the store meanwhile. Raises: EnvironmentalError."""
    if not store.root.is_dir():
        raise RecipeError(message=f"there is no store at {store.root}", hint="name it: --store DIR")
    with disk.guarded(store.root):
        (store.root / "tmp").mkdir(exist_ok=True)
        lock = locks.FileLock(store.root / "locks" / "gc", f"process {os.getpid()}")
        held = lock.acquire()
    if not held:
        raise EnvironmentalError(
            message=f"{lock.holder()} is taking things away from {store.root}",
            hint="wait until it has ended",
        )
    try:
        yield
    finally:
        lock.release()


def _stored(store: Store) -> Iterator[str]:
    """The digests of all blobs."""
    for folder in inventory.names(store.root / "cas"):
        yield from filter(DIGEST.fullmatch, inventory.names(store.root / "cas" / folder))


def _inodes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            yield path.lstat().st_ino


def _sweep(
    store: Store,
    digests: Iterable[str],
    marked: Collection[str],
    oldest: float,
    leaving: Mapping[int, int] | None = None,
    *,
    dry_run: bool = False,
) -> tuple[dict[str, int], int]:
    """Digest → bytes of the blobs that went, and the bytes to which others hold links.

    In: `oldest`: what was stored, read or handed out after this time stays; `leaving`: inode →
        links to it that go too, later, as the end of a link counts as a use.
    """
    went: dict[str, int] = {}
    linked = 0
    for digest in digests:
        if digest in marked:
            continue
        try:
            facts = (path := store.blob(digest)).lstat()
        except FileNotFoundError:
            continue

        def is_same(now: os.stat_result, seen: os.stat_result = facts) -> bool:
            return (now.st_atime_ns, now.st_nlink) == (seen.st_atime_ns, seen.st_nlink)

        if max(facts.st_atime, facts.st_ctime) <= oldest and (
            dry_run or _take(store, path, is_same)
        ):
            went[digest] = facts.st_size
            others = facts.st_nlink - 1 - (leaving or {}).get(facts.st_ino, 0)
            linked += facts.st_size if others > 0 else 0
    return went, linked


def _take_record(store: Store, one: Result, *, always: bool = False) -> bool:
    path = store.record_path(one.stage, one.entry.key, one.entry.generation)

    def is_same(now: os.stat_result) -> bool:
        return always or now.st_mtime_ns == one.used_ns

    took = _take(store, path, is_same)
    if took:
        with suppress(OSError):  # it has another generation
            path.parent.rmdir()
    return took


def _take(store: Store, path: Path, is_same: Callable[[os.stat_result], bool]) -> bool:
    """Takes a file away unless somebody used it meanwhile: then it is put back."""
    aside = store.root / "tmp" / f"gc-{uuid4().hex}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        if is_same(aside.lstat()):
            return True
        with suppress(FileExistsError):  # made again meanwhile
            os.link(aside, path)
        return False
    finally:
        disk.remove(aside)


def _tidy(store: Store, found: Iterable[Result], staying: Iterable[Result], oldest: float) -> None:
    """Indexes without what went, where that is much; no locks that nobody took for long."""
    before = Counter(one.stage for one in found)
    entries: dict[str, list[Entry]] = {stage: [] for stage in before}
    for one in staying:
        entries[one.stage].append(one.entry)
    for stage, left in entries.items():
        if len(left) * 2 < before[stage]:
            index.write(store.index(stage), left)
    for name in inventory.names(store.root / "locks"):
        if name != "gc":
            locks.remove(store.root / "locks" / name, unused_since=oldest)
