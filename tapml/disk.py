"""Writing to a disk that may be full or read-only: its errors in the user's words."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .errors import EnvironmentalError


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


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
