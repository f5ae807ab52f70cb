"""Lines of checked JSON, appended by many writers: a line that is torn or rots is no line.

Each row holds the first half of the digest of the rest of it, so that a flipped bit is noticed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from .. import disk

Row = dict[str, Any]
_SUM = "sum"


def encode(row: Mapping[str, Any]) -> bytes:
    """A row as a line, its end included. Raises: ValueError for what is no JSON, NaN included."""
    return _text({**row, _SUM: _digest(row)}) + b"\n"


def decode(line: bytes) -> Row | None:
    """The row of a line; None when it is none, or not as it was written."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    row = cast("Row", row)
    found = row.pop(_SUM, None)
    try:
        return row if found == _digest(row) else None
    except ValueError:  # NaN, which JSON does not have and Python reads
        return None


def read(path: Path) -> Iterator[tuple[int, Row | None]]:
    """Number of each line, from 1, and its row; nothing when there is no file."""
    with disk.guarded(path):
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
    for number, line in enumerate(lines, 1):
        if line:
            yield number, decode(line)


def append(path: Path, *rows: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> None:
    """Adds rows to a file that others may write to as well; they are on disk when this returns.

    A line that a kill has torn is ended first, so that it spoils no other. On a full disk nothing
    is added. In: `first`: a row that goes before them when the file is empty.
    """
    with disk.guarded(path), locked(path) as file:
        size = os.lseek(file, 0, os.SEEK_END)
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        if size == 0 and first is not None:
            rows = (first, *rows)
        try:
            disk.write_all(file, b"\n" * torn + b"".join(map(encode, rows)))
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise


def replace(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file anew, whole or not at all. In: the caller has it `locked`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as out:
            out.write(b"".join(map(encode, rows)))
            out.flush()
            os.fsync(out.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Generator[int]:
    """Descriptor of the file, made when it is not there, which nobody else has meanwhile."""
    disk.make_folder(path.parent, durable=False)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is(path, file):  # and was not replaced while this waited
                yield file
                return
        finally:
            os.close(file)


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _digest(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(row)).hexdigest()[:16]


def _text(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, allow_nan=False).encode()
