"""Advisory locks between runs: freed by the kernel when their holder dies.

They never block; who waits asks again.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """A lock on a file that stays. Its text says who holds it."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._owner = owner
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Whether the lock is now held."""
        descriptor = _open(self._path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not shared and os.access(self._path, os.W_OK):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._owner.encode(), 0)
        self._descriptor = descriptor
        return True

    def holder(self) -> str:
        """Who took it last, in words."""
        return self._path.read_text(encoding="utf-8", errors="replace") or "another run"

    def release(self) -> None:
        """Lets go, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class MachineLock:
    """The machine: ordinary stages of all runs share it, a stage that times something has it alone.

    A turnstile that the one who waits to be alone holds shut keeps newcomers from starving it.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._turnstile = FileLock(folder / "tapml-turnstile.lock", owner)
        self._machine = FileLock(folder / "tapml-machine.lock", owner)
        self._waiting = False
        self._held: str = ""

    def acquire(self, *, alone: bool) -> bool:
        """Whether the machine may be used now; once held, shared use may be asked for again."""
        if self._held == "shared" and not alone:
            return True
        if self._held:
            return False
        if not self._waiting:
            if not self._turnstile.acquire(shared=not alone):
                return False
            self._waiting = alone
        if self._machine.acquire(shared=not alone):
            self._held = "alone" if alone else "shared"
        if self._held or not alone:
            self._turnstile.release()
            self._waiting = False
        return bool(self._held)

    def holder(self) -> str:
        """Who has it or waits to have it alone, in words."""
        return self._machine.holder()

    def release(self) -> None:
        self._machine.release()
        self._turnstile.release()
        self._waiting, self._held = False, ""


def machine_folder() -> Path:
    """Where the runs of a machine meet, whatever their store: `/tmp`, or TAPML_LOCKS."""
    return Path(os.environ.get("TAPML_LOCKS") or "/tmp")


def _open(path: Path) -> int:
    """A descriptor of the file, made for all users when it is not there.

    An existing file is opened without O_CREAT, which the kernel refuses for another user's file
    in a sticky folder.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    for mode in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, flags | mode)
        except FileNotFoundError:
            break
        except PermissionError:
            continue
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o666)
    os.fchmod(descriptor, 0o666)
    return descriptor
