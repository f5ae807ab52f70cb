"""Writing to a disk that may be full or read-only: its errors in the user's words."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from .errors import EnvironmentalError

What = Literal["blob", "record", "index"]
Step = Literal[
    "create", "write", "seal", "sync", "link", "folder", "sync folder", "replace", "append", "tidy"
]
# each change that publishing makes to the disk, in about this order
STEPS: dict[What, tuple[Step, ...]] = {
    "blob": (
        "create", "write", "seal", "sync", "link", "folder", "replace", "sync folder", "tidy",
    ),
    "record": ("create", "write", "sync", "link", "folder", "sync folder", "tidy"),
    "index": ("create", "link", "append"),
}  # fmt: skip
_TRIES = 100  # to link into a folder that is removed meanwhile


def step(what: What, name: Step) -> None:
    """Called before each of `STEPS`: tests kill the process, or fail the change, there."""


@contextmanager
def guarded(path: Path, *also: int) -> Generator[None]:
    """Turns the disk's errors into EnvironmentalError; `path` is for those that name none.

    In: `also`: further error numbers that can be nothing else here.
    """
    try:
        yield
    except OSError as error:
        if (told := disk_error(error, path, *also)) is None:
            raise
        raise told from error


def disk_error(error: OSError, path: Path, *also: int) -> EnvironmentalError | None:
    """What to tell of an error that is the disk's fault; None for any other."""
    full = (errno.ENOSPC, errno.EDQUOT)
    closed = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)
    if error.errno not in (*full, *closed, *also):
        return None
    advice = "free some space there" if error.errno in full else "make it writable"
    return EnvironmentalError(
        message=f"cannot write {error.filename or path}: {os.strerror(error.errno)}",
        hint=f"{advice}, or choose another store: --store DIR or TAPML_STORE=DIR",
    )


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`: the one place through which bytes get into the store."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def remove(path: Path) -> None:
    """Removes a file or folder, read-only ones too; what is gone is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, path: Path) -> None:
    """A hard link, or a read-only copy where links cannot reach."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM):
            raise
        shutil.copyfile(source, path)
        path.chmod(0o444)


def place(temporary: Path, final: Path, what: What, *, durable: bool) -> bool:
    """Links a file to its final name, in a folder that others may remove at any moment.

    In:  `durable`: it is on the disk when this returns.
    Out: False when the name is taken.
    """
    for attempt in range(_TRIES):
        try:
            step(what, "link")
            os.link(temporary, final)
            break
        except FileExistsError:
            return False
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
            step(what, "folder")
            make_folder(final.parent, durable=durable)
    if durable:
        step(what, "sync folder")
        sync(final.parent)
    return True


def make_folder(folder: Path, *, durable: bool) -> None:
    """Makes a folder and those above it; `durable`: their names are on the disk."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing if durable else ():
        sync(one.parent)


def sync(path: Path) -> None:
    """What a file holds, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing when it is not there."""
    with guarded(folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []
