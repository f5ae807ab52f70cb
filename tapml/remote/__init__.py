"""A cache that machines share: a folder or an object store, behind fsspec.

    ac/<stage>/<action>   the newest record, the same bytes as in a store
    cas/ab/<sha256>       blobs

It is asked in threads that nobody waits for longer than it takes to see that it is dead: what
neither answers nor moves bytes for a while is asked for a sign of life, and given up for the rest
of the run when that does not come either. All processes of a run share that verdict by a file, so
that a dead remote costs one warning and a few seconds once. Nothing here fails a run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from .. import disk, keys, mask
from ..errors import EnvironmentalError, TapmlError
from ..store.record import Record, decode, encode
from .place import Place, check_protocol

if TYPE_CHECKING:
    from ..settings import RemoteCache
    from ..store import Store
    from ..store.blobs import Blobs

Action = tuple[str, str]  # stage, key
_PATIENCE_S = 4.0  # after half of it without a sign of life the remote has the other half for one
_THREADS = 16
ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")


@dataclass(frozen=True)
class Link:
    """How another process of the run reaches the remote.

    mark:       the file whose presence says that the remote was given up, and its text why
    patience_s: how long a silent one is waited for, once
    """

    settings: RemoteCache
    mark: Path
    patience_s: float = _PATIENCE_S


def tell(text: str) -> None:
    """A warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def connect(
    settings: RemoteCache | None,
    root: Path,
    warn: Callable[[str], None] = tell,
    patience_s: float = _PATIENCE_S,
) -> Remote | None:
    """The remote of the store at `root`, None without settings. Asks nothing of it yet.

    Raises: EnvironmentalError when the package that speaks its protocol is not installed,
        RecipeError when there is no such protocol.
    """
    if settings is None:
        return None
    check_protocol(settings.url)
    mark = root / "tmp" / f"remote-{uuid4().hex}"
    return Remote(Link(settings, mark, patience_s), warn)


@cache
def linked(link: Link) -> Remote:
    """The remote of the run that started this worker process; the run warns, not the worker."""
    return Remote(link, lambda text: None)


class Remote:
    """A shared cache, as one run sees it.

    address: its URL without what may be secret
    refuses: nothing is uploaded
    """

    def __init__(self, link: Link, warn: Callable[[str], None]) -> None:
        self.link = link
        self.address = mask.bare(link.settings.url)
        self.refuses = link.settings.mode == "read-only"
        self._place = Place(link.settings)
        self._reason = ""
        self._warn = warn
        self._warned = threading.Lock()
        self._known: dict[Action, Record | None] = {}
        self._torn: set[Action] = set()
        self._lost: set[str] = set()

    @property
    def identity(self) -> str:
        """A short opaque name of the place."""
        return hashlib.sha256(self.address.encode()).hexdigest()[:12]

    # --- whether it is alive

    def down(self) -> str:
        """Why it was given up, by any process of the run; empty while it is not."""
        if not self._reason:
            with suppress(OSError):
                self._reason = self.link.mark.read_text(encoding="utf-8")
        if self._reason and self._warned.acquire(blocking=False):
            self._warn(f"{self._reason}; going on without it")
        return self._reason

    def give_up(self, reason: str) -> None:
        """Nothing more is asked of it in this run."""
        told = f"the shared cache {self.address} {reason}"
        draft = self.link.mark.with_name(f"{self.link.mark.name}.{uuid4().hex[:8]}")
        with suppress(OSError):  # no store yet, so that no other process is there to be told
            draft.write_text(told, encoding="utf-8")
            with suppress(FileExistsError):
                os.link(draft, self.link.mark)  # the first reason counts
            draft.unlink()
        if not self.down():
            self._reason = told
            self.down()

    def offer(self) -> Link | None:
        """What a worker process of the run is told; nothing once it was given up."""
        return None if self.down() else self.link

    def check(self) -> str:
        """Asks whether it can be used: why not, or nothing."""
        self._each(lambda _: self._place.open(), [None])
        return self.down()

    def is_silent(self, since: float) -> bool:
        """Whether nothing was heard for long, and nothing comes when asked; given up then."""
        if time.monotonic() - max(since, self._place.heard) < self.link.patience_s / 2:
            return False
        answered = threading.Event()

        def ask() -> None:
            with suppress(Exception):  # whatever its package raises: no answer is the answer
                self._place.ping()
                answered.set()

        threading.Thread(target=ask, daemon=True).start()
        if answered.wait(self.link.patience_s / 2):
            return False
        self.give_up(f"does not answer ({self.link.patience_s:g} s)")
        return True

    def failed(self, error: Exception) -> None:
        """Gives it up because of an error of its package."""
        self.give_up(f"cannot be used: {self._place.words(error)}")

    def refused(self, error: Exception) -> None:
        """It takes no uploads; reading goes on."""
        self.refuses = True
        if self._warned.acquire(blocking=False):
            self._warn(
                f"the shared cache {self.address} takes no uploads: {self._place.words(error)}"
            )

    def _each(self, work: Callable[[ItemT], FoundT], items: Iterable[ItemT]) -> dict[ItemT, FoundT]:
        """What `work` gives for each item, many at a time. What is not there is left out, and so is
        all that was not done when the remote was given up.

        Raises: TapmlError, as `work` does.
        """
        todo, found, ours = deque(items), dict[ItemT, FoundT](), list[TapmlError]()
        if not todo or self.down():
            return found

        def ask() -> None:
            while not ours and not self.down():
                try:
                    item = todo.popleft()
                except IndexError:
                    return
                try:
                    found[item] = work(item)
                except FileNotFoundError:
                    pass
                except TapmlError as error:
                    ours.append(error)
                except Exception as error:  # the packages behind fsspec raise what they like
                    self.failed(error)
                self._place.beat()

        started = time.monotonic()
        threads = [
            threading.Thread(target=ask, daemon=True) for _ in range(min(len(todo), _THREADS))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
                if self.down() or (thread.is_alive() and self.is_silent(started)):
                    return dict(found)
        if ours:
            raise ours[0]
        return found

    # --- reading

    def look_up(self, actions: Iterable[Action]) -> None:
        """Asks for the records of many actions at once, so that `lookup` knows them."""
        asked = [one for one in dict.fromkeys(actions) if one not in self._known]
        found = self._each(self._record, asked)
        if not self.down():
            self._known |= dict.fromkeys(asked) | found

    def lookup(self, stage: str, key: str, notes: list[str] | None = None) -> Record | None:
        """The record of an action, if it is whole; its blobs are not looked at.

        `notes` gets a line about a damaged one.
        """
        self.look_up([(stage, key)])
        record = self._known.get((stage, key))
        if notes is not None and (stage, key) in self._torn:
            notes.append("its record in the shared cache was damaged; made again")
        if record is None or self.down() or not self._lost.isdisjoint(record.blobs):
            return None
        return record

    def lose(self, digests: Iterable[str]) -> None:
        """These could not be had: records that name them do not count any more."""
        self._lost.update(digests)

    def fetch(
        self, digests: Iterable[str], folder: Path, take: Callable[[str, Path], bool]
    ) -> None:
        """Downloads blobs into `folder` and hands each over; one that `take` refuses is damaged."""

        def get(digest: str) -> None:
            path = folder / digest
            try:
                self._place.get(_blob(digest), path)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # our own disk
                    raise disk.disk_error(error, path) or error from error
                raise
            if not take(digest, path):
                self._lost.add(digest)
                if not self.refuses:  # or nobody would upload it again
                    self._place.remove(_blob(digest))
            path.unlink(missing_ok=True)

        self._each(get, digests)

    def _record(self, action: Action) -> Record | None:
        stage, key = action
        data = self._place.read(f"ac/{stage}/{key}")
        try:
            record = decode(data)
            if record is None:  # of another tapml
                return None
            if (record.stage, record.key, keys.digest(record.preimage)) == (stage, key, key):
                return record
        except (ValueError, TypeError):  # damaged, or no preimage
            pass
        self._torn.add(action)
        return None

    # --- writing

    def upload(self, record: Record, store: Store) -> None:
        """Blobs first, then the record, unless a newer one is there. Blocks; run it in a thread.

        Raises: DamagedError when the store has not all of it; whatever the remote's package raises.
        """
        self.send({**record.sides, **record.blobs}, store)
        try:
            there = self._record((record.stage, record.key))
        except FileNotFoundError:
            there = None
        if there is None or there.made_at < record.made_at:
            self._place.put_bytes(encode(record), f"ac/{record.stage}/{record.key}")
        self._known[record.stage, record.key] = record
        self._torn.discard((record.stage, record.key))

    def send(self, blobs: Mapping[str, int], store: Blobs) -> None:
        """Uploads blobs, digest → bytes, that are not there. Blocks and raises as `upload`."""
        for digest, size in blobs.items():
            if self._place.size(_blob(digest)) != size:
                self._place.put_file(store.whole(digest), _blob(digest))

    def lend(self, blobs: Mapping[str, int], store: Blobs) -> None:
        """Sends blobs that workers elsewhere wait for; a remote that takes none is given up."""
        try:
            self.send(blobs, store)
        except Exception as error:  # the packages behind fsspec raise what they like
            self.failed(error)

    def hand_over(self, record: Record, store: Store) -> None:
        """Uploads a result that nobody else has. Raises: EnvironmentalError when that fails."""
        try:
            self.upload(record, store)
        except Exception as error:  # the same
            raise EnvironmentalError(
                message=f"what {record.stage} gave could not be uploaded to {self.address}: "
                f"{self._place.words(error)}",
                hint="make the shared cache writable for this machine",
            ) from error

    def tidy(self) -> None:
        """Removes what uploads left that were killed long ago."""
        self._each(lambda _: self._place.sweep(), [None])


def _blob(digest: str) -> str:
    return f"cas/{digest[:2]}/{digest}"
