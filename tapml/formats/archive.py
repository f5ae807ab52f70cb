"""Members of a zip that a framework keeps tensors in: stored as they are, side by side."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END
from pathlib import Path
from typing import BinaryIO

from .bounded import refuse, shown

_MAX_LISTING = 8 << 20  # bytes of the zip's own listing: about 80 000 members
_LOCAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s4H2IH")


@dataclass(frozen=True)
class Member:
    """Bytes of the file from `start` on; nothing has to be unpacked."""

    name: str
    start: int
    size: int


def members(path: Path, source: BinaryIO, start: int, size: int) -> Mapping[str, Member]:
    """Members by name of the zip that `size` bytes from `start` on are.

    Raises: StageError for what unpacks to more than it is, lies on one another, has two names or
            one that leads out of a folder, or is a link.
    """
    source.seek(start + max(size - _END.size, 0))
    tail = source.read(min(size, _END.size))
    if len(tail) < _END.size or tail[:4] != b"PK\5\6" or _END.unpack(tail)[-1]:
        refuse(path, "no zip archive, or a cut one: its listing does not end it")
    try:
        with zipfile.ZipFile(_Window(source, start, size)) as listed:  # pyright: ignore[reportArgumentType]  # reads, seeks
            rows = listed.infolist()
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OSError) as error:
        refuse(path, f"no zip archive, or a cut one ({shown(error)})")
    if rows and min(row.header_offset for row in rows):
        refuse(path, "bytes before its first member")
    found: dict[str, Member] = {}
    end = 0
    for row in sorted(rows, key=lambda one: one.header_offset):
        where = f"member {shown(row.filename)}"
        _check(path, row, where)
        if row.filename in found:
            refuse(path, "two members of one name", where=where)
        if row.header_offset < end:
            refuse(path, "its bytes overlap those of another member", where=where)
        source.seek(start + row.header_offset)
        head = source.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            refuse(path, "there is no member where the listing has one", where=where)
        *_, name_size, extra_size = _LOCAL.unpack(head)
        if source.read(name_size).rstrip(b"\0") != row.orig_filename.encode().rstrip(b"\0"):
            refuse(path, "its name in the listing is another one", where=where)
        first = row.header_offset + _LOCAL.size + name_size + extra_size
        end = first + row.file_size
        found[row.filename] = Member(row.filename, start + first, row.file_size)
    if end > size:
        refuse(path, f"its members end at byte {end} of {size}", hint="is the file cut off?")
    return found


def _check(path: Path, row: zipfile.ZipInfo, where: str) -> None:
    parts = row.filename.split("/")
    if row.compress_type != zipfile.ZIP_STORED or row.file_size != row.compress_size:
        what = f"{row.compress_size} bytes that unpack to {row.file_size}: torch packs nothing"
        refuse(path, what, where=where)
    if row.filename != row.orig_filename or "\\" in row.filename or {"", ".", ".."} & {*parts}:
        refuse(path, "a name that leads out of the archive", where=where)
    if row.flag_bits & 1 or stat.S_ISLNK(row.external_attr >> 16):
        refuse(path, "a link, or encrypted", where=where)


class _Window:
    """Part of a file as one that can be sought and read, at most `_MAX_LISTING` bytes at once."""

    def __init__(self, source: BinaryIO, start: int, size: int) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = {SEEK_CUR: self._at, SEEK_END: self._size}.get(whence, 0)
        if origin + offset < 0:
            raise OSError("before the start")
        self._at = origin + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        count = left if size < 0 else min(size, left)
        if count > _MAX_LISTING:
            raise zipfile.BadZipFile(f"a listing of {count} bytes")
        self._source.seek(self._start + self._at)
        self._at += count
        return self._source.read(count)
