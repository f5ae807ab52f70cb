"""The index of a stage's records: a line for each, appended when it is published.

    index/<stage>     <crc32> <JSON>

It spares whoever looks for the newest records, or adds up what all need, reading every one. It may
lose, never lie: torn lines do not count, and a line counts only while its record is the same file.
What is missing is found by the names in `ac/<stage>`.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from .. import disk
from .record import Record

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of a record.

    inode: of the record's file
    blobs: digest → bytes of every blob that the record names, folders' files, log and views too
    """

    key: str
    generation: int
    inode: int
    made_at: str
    seconds: float
    outputs: dict[str, str]
    blobs: dict[str, int]


def entry(record: Record, generation: int, inode: int) -> Entry:
    return Entry(
        record.key,
        generation,
        inode,
        record.made_at,
        record.seconds,
        record.outputs,
        {**record.sides, **record.blobs},
    )


def append(path: Path, one: Entry) -> bool:
    """Adds a line; False when there is no index yet."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        disk.step("index", "append")
        disk.write_all(descriptor, _line(one))
    finally:
        os.close(descriptor)
    return True


def create(path: Path, entries: Iterable[Entry]) -> bool:
    """A new index of these, the oldest first; False when there is one already, which may lack
    some of them.
    """
    with _drafted(path, entries) as draft:
        disk.step("index", "link")
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
    return True


def write(path: Path, entries: Iterable[Entry]) -> None:
    """A new index of these, the oldest first, in place of any other."""
    with _drafted(path, entries) as draft:
        draft.replace(path)


@contextmanager
def _drafted(path: Path, entries: Iterable[Entry]) -> Generator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parents[1] / "tmp" / f"index-{uuid4().hex}"
    draft.parent.mkdir(exist_ok=True)
    disk.step("index", "create")
    ordered = sorted(entries, key=lambda one: one.made_at)
    try:
        draft.write_bytes(b"".join(map(_line, ordered)))
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Entry]:
    """The entries in the order in which they were written; none when there is no index."""
    try:
        with path.open("rb") as lines:
            yield from filter(None, map(_entry, lines))
    except FileNotFoundError:
        return


def newest(path: Path) -> Iterator[Entry]:
    """The entries, the last one written first, read only as far as they are asked for.

    Raises: FileNotFoundError when there is no index.
    """
    with path.open("rb") as source:
        at = source.seek(0, os.SEEK_END)
        rest = b""
        while at > 0:
            start = max(0, at - _BLOCK)
            source.seek(start)
            first, *lines = (source.read(at - start) + rest).split(b"\n")
            at, rest = start, first
            yield from filter(None, map(_entry, reversed(lines)))
        if (last := _entry(rest)) is not None:
            yield last


def _line(one: Entry) -> bytes:
    """Begins with the line break, so that a torn line costs itself only."""
    facts = (one.key, one.generation, one.inode, one.made_at, one.seconds, one.outputs, one.blobs)
    text = json.dumps(facts, separators=(",", ":")).encode()
    return b"\n%08x %s" % (zlib.crc32(text), text)


def _entry(line: bytes) -> Entry | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        key, generation, inode, made_at, seconds, outputs, blobs = json.loads(text.decode())
        known: dict[str, int] = {sys.intern(digest): size for digest, size in blobs.items()}
        named = {sys.intern(name): sys.intern(digest) for name, digest in outputs.items()}
        return Entry(key, generation, inode, made_at, seconds, named, known)
    except (ValueError, TypeError, AttributeError):
        return None
