"""What goes up to the shared cache behind a run: results wait as files until they are there.

    remote/<place>/<stage>@<action>     an empty file for each, in the store

So what a killed run, a dead remote or an interruption left goes up with the next run, or with
`tapml cache push`.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from ..store import DamagedError, Store
from ..store.record import Record
from . import Action

_ENTRY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)@([0-9a-f]{64})")
_THREADS = 4
_SAY_S = 2.0  # between two lines about how far the uploads are


class Outbox:
    """The uploads of one run, in threads that end by themselves. Does nothing without a remote that
    is written to.

    sent: results that are up
    """

    def __init__(self, store: Store) -> None:
        self.sent = 0
        self._store = store
        self._remote = store.remote if store.remote and not store.remote.refuses else None
        place = "" if store.remote is None else store.remote.identity
        self._folder = store.root / "remote" / place
        self._queue: dict[Action, None] = {}  # an ordered set
        self._lock = threading.Lock()
        self._threads = 0

    @property
    def left(self) -> int:
        """Results that wait or are on their way."""
        with self._lock:
            return len(self._queue) + self._threads

    def resume(self) -> None:
        """Takes up what earlier runs left."""
        if self._remote is not None and self._folder.is_dir():
            names = sorted(path.name for path in self._folder.iterdir())
            self._enqueue((name[1], name[2]) for name in map(_ENTRY.fullmatch, names) if name)

    def add(self, record: Record) -> None:
        """A result that is to go up; returns at once."""
        if self._remote is None:
            return
        with suppress(OSError):  # a full disk: it goes up now, or not at all
            self._folder.mkdir(parents=True, exist_ok=True)
            self._entry((record.stage, record.key)).touch()
        self._enqueue([(record.stage, record.key)])

    def finish(
        self, *, until: Callable[[], bool] = lambda: False, say: Callable[[str], None] | None = None
    ) -> None:
        """Waits until all is up, the remote is given up, or `until` says so; `say` is told how far
        it is.
        """
        if self._remote is None:
            return
        began = said = time.monotonic()
        whole = self.sent + self.left
        where = self._remote.address
        while (left := self.left) and not until() and not self._remote.is_silent(began):
            if self._remote.down() or self._remote.refuses:
                return
            if time.monotonic() - said > _SAY_S:
                said = time.monotonic()
                (say or _say)(f"uploading to {where}: {whole - left} of {whole} results")
            time.sleep(0.02)

    def _enqueue(self, actions: Iterable[Action]) -> None:
        with self._lock:
            self._queue |= dict.fromkeys(actions)
            wanted = min(_THREADS, len(self._queue)) - self._threads
            for _ in range(wanted):
                self._threads += 1
                threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._queue or self._is_closed():
                    self._threads -= 1
                    return
                del self._queue[action := next(iter(self._queue))]
            self._send(action)

    def _is_closed(self) -> bool:
        return self._remote is None or self._remote.refuses or bool(self._remote.down())

    def _send(self, action: Action) -> None:
        assert self._remote is not None
        try:
            record = self._store.lookup(*action)
            if record is not None:
                self._remote.upload(record, self._store)
                with self._lock:
                    self.sent += 1
        except DamagedError:  # it is no result any more
            pass
        except PermissionError as error:
            self._remote.refused(error)
            return
        except Exception as error:  # the packages behind fsspec raise what they like
            self._remote.failed(error)
            return
        self._entry(action).unlink(missing_ok=True)

    def _entry(self, action: Action) -> Path:
        return self._folder / "@".join(action)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
