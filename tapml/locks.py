"""Advisory locks between runs: freed by the kernel when their holder dies.

They never block; who waits asks again.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class FileLock:
    """A lock on a file that stays. Its text says who holds it: process id, then words."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path = path
        self._text = f"{os.getpid()} {owner}\n".encode()
        self._descriptor: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Whether the lock is now held."""
        descriptor = _open(self._path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not os.fstat(descriptor).st_nlink:  # removed as unused, after it was opened
            os.close(descriptor)
            return self.acquire(shared=shared)
        self._write(descriptor, self._text)
        self._descriptor = descriptor
        return True

    def holder(self) -> str:
        """Who holds it, in words: of those who share it, the last to come while it is there.

        A text that a killed run left behind is not believed.
        """
        line = self._path.read_bytes().partition(b"\n")[0]
        pid, _, owner = line.decode(errors="replace").partition(" ")
        if line + b"\n" == self._text:
            return "another stage of this run"
        return owner if pid.isdecimal() and _is_alive(int(pid)) else "another run"

    def release(self) -> None:
        """Lets go, if it is held."""
        if self._descriptor is None:
            return
        if os.pread(self._descriptor, 4096, 0) == self._text:
            self._write(self._descriptor, b"")
        os.close(self._descriptor)
        self._descriptor = None

    def _write(self, descriptor: int, text: bytes) -> None:
        if os.access(self._path, os.W_OK):  # else it is another user's
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)


class MachineLock:
    """The machine: ordinary stages of all runs share it, a stage that times something has it alone.

    A turnstile that the one who waits to be alone holds shut keeps newcomers from starving it.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._turnstile = FileLock(folder / "tapml-turnstile.lock", owner)
        self._machine = FileLock(folder / "tapml-machine.lock", owner)
        self._obstacle = self._machine
        self._waiting = False
        self._held: str = ""

    def acquire(self, *, alone: bool) -> bool:
        """Whether the machine may be used now; once held, shared use may be asked for again."""
        if self._held == "shared" and not alone:
            return True
        if self._held:
            return False
        self._obstacle = self._turnstile
        if not self._waiting:
            if not self._turnstile.acquire(shared=not alone):
                return False
            self._waiting = alone
        self._obstacle = self._machine
        if self._machine.acquire(shared=not alone):
            self._held = "alone" if alone else "shared"
        if self._held or not alone:
            self._turnstile.release()
            self._waiting = False
        return bool(self._held)

    def holder(self) -> str:
        """Who stood in the way of the last `acquire`, in words: has it, or waits to have it."""
        return self._obstacle.holder()

    def release(self) -> None:
        self._machine.release()
        self._turnstile.release()
        self._waiting, self._held = False, ""


def machine_folder() -> Path:
    """Where the runs of a machine meet, whatever their store: `/tmp`, or TAPML_LOCKS."""
    return Path(os.environ.get("TAPML_LOCKS") or "/tmp")


def remove(path: Path, *, unused_since: float) -> None:
    """Removes the file of a lock that nobody holds, nor has taken since a time."""
    with suppress(FileNotFoundError, PermissionError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_mtime < unused_since:
                path.unlink()
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


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
