"""Blobs: files named by the SHA-256 of their bytes, and folders as listings of such files.

    cas/ab/<sha256>     a file, or a folder as a listing of its files (a tree)
    tmp/  quarantine/

A blob is written to a temporary file and linked into place; it carries a fixed modification time as
its seal, so that a lookup notices for the price of a `stat` that somebody wrote to it. Whoever
reads one checks its digest. What is damaged is set aside. Who puts a blob that is there already
touches it: its access time is when it was last put or read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from .. import disk, keys
from ..errors import EnvironmentalError, StageError
from .record import DIGEST

if TYPE_CHECKING:
    from ..remote import Remote

Durability = Literal["group", "each"]
_TREE = b"tapml.tree\0"  # no file starts like this, so a blob's bytes tell whether it is a folder
_SEAL_NS = 315532800 * 10**9  # 1980-01-01: the modification time of every blob
_CHUNK = 1 << 20
_UNREADABLE = (errno.EISDIR, errno.EIO)


class DamagedError(EnvironmentalError):
    """A blob is gone, or was not what its name says and is set aside; it has to be made again."""

    digest: str = ""


@dataclass(frozen=True)
class Blobs:
    """The blobs of a store at `root`, an absolute folder that is made when first written to.

    durability: "each" syncs every write to the disk; "group" leaves it to one `flush` per run
    remote:     the shared cache; blobs that are not here when they are read come from it
    """

    root: Path
    durability: Durability = "group"
    remote: Remote | None = field(default=None, kw_only=True, repr=False, compare=False)
    _verified: dict[str, tuple[int, int, int]] = field(
        default_factory=dict[str, tuple[int, int, int]], repr=False, compare=False
    )

    # --- writing

    def temporary(self, name: str) -> Path:
        """A new empty folder on the store's file system; the caller removes it."""
        folder = self.root / "tmp" / f"{name}-{uuid4().hex[:12]}"
        with disk.guarded(folder):
            folder.mkdir(parents=True)
        return folder

    def put(self, path: Path) -> str:
        """The digest of a file or folder, now in the store. Raises: StageError for a link."""
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            return self.put_tree(path)
        if stat.S_ISREG(mode):
            return self.put_file(path)
        raise StageError(message=f"{path.name} is neither a file nor a folder")

    def put_file(self, path: Path) -> str:
        """The digest of a file's bytes, now in the store."""
        with path.open("rb") as source:
            head = source.read(_CHUNK)
            if head.startswith(_TREE):
                raise StageError(message=f"{path.name} starts like the store's own listings")

            def chunks() -> Iterator[bytes]:
                yield head
                while chunk := source.read(_CHUNK):
                    yield chunk

            return self._put(chunks())

    def put_bytes(self, data: bytes) -> str:
        """The digest of `data`, now in the store."""
        return self._put([data])

    def put_as(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Stores what comes from elsewhere. Raises: ValueError unless its digest is this one."""
        self._put(chunks, digest)

    def put_tree(self, folder: Path) -> str:
        """The digest of a folder's listing of its files; modes and empty folders do not count."""
        files: dict[str, str] = {}
        for path in sorted(folder.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                files[path.relative_to(folder).as_posix()] = self.put_file(path)
            elif not stat.S_ISDIR(mode):
                raise StageError(
                    message=f"{path.relative_to(folder.parent)} is neither a file nor a folder"
                )
        return self.put_bytes(_TREE + keys.canonical_json(files))

    def _put(self, chunks: Iterable[bytes], expected: str = "") -> str:
        durable = self.durability == "each"
        with self.written("blob", chunks) as (temporary, digest):
            if expected and digest != expected:
                raise ValueError(f"what should be {expected[:12]}… is {digest[:12]}…")
            final, size = self.blob(digest), temporary.stat().st_size
            while not disk.place(temporary, final, "blob", durable=durable):
                with suppress(FileNotFoundError):  # taken away meanwhile
                    # read too: what rotted unseen would else be put in vain, time and again
                    is_whole = self.seems_whole(digest, size) and self.is_whole(digest)
                    if not (is_whole and _touched(final)):
                        disk.step("blob", "replace")
                        os.replace(temporary, final)
                    if durable:  # who put it may have been less careful
                        disk.step("blob", "sync folder")
                        disk.sync(final)
                        disk.sync(final.parent)
                    break
        return digest

    @contextmanager
    def written(self, what: disk.What, chunks: Iterable[bytes]) -> Generator[tuple[Path, str]]:
        """A temporary file of the chunks, read-only, and their digest; it is removed in the end."""
        temporary = self.root / "tmp" / uuid4().hex
        hasher = hashlib.sha256()
        with disk.guarded(self.root):
            disk.step(what, "create")
            descriptor = _created(temporary)
            try:
                try:
                    for chunk in chunks:
                        disk.step(what, "write")
                        disk.write_all(descriptor, chunk)
                        hasher.update(chunk)
                    if what == "blob":
                        disk.step(what, "seal")
                        os.utime(descriptor, ns=(time.time_ns(), _SEAL_NS))
                    if self.durability == "each":
                        disk.step(what, "sync")
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                yield temporary, hasher.hexdigest()
            finally:
                disk.step(what, "tidy")
                temporary.unlink(missing_ok=True)

    # --- reading

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be. Not verified: read it by `read` or `materialise`."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest")
        return Path(f"{self.root}/cas/{digest[:2]}/{digest}")

    def read(self, digest: str) -> bytes:
        """The bytes of a file, verified. Raises: DamagedError."""
        self.bring([digest])
        return self._bytes(digest)

    def _bytes(self, digest: str) -> bytes:
        try:
            data = self.blob(digest).read_bytes()
        except FileNotFoundError:
            raise self._lost(digest) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._damaged(digest)
        return data

    def tree(self, digest: str) -> dict[str, str] | None:
        """Relative path → digest of a folder's files; None for a file. Raises: DamagedError."""
        try:
            with self.blob(digest).open("rb") as source:
                if source.read(len(_TREE)) != _TREE:
                    return None
        except FileNotFoundError:
            raise self._lost(digest) from None
        files: dict[str, str] = json.loads(self._bytes(digest)[len(_TREE) :])
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name:
                raise self._damaged(digest)
        return files

    def size(self, digest: str) -> int:
        """Bytes of a file, or of all files of a folder."""
        if (files := self.tree(digest)) is None:
            return self._bytes_of(digest)
        return sum(self.size(one) for one in set(files.values()))

    def materialise(self, digest: str, path: Path, *, copy: bool = False) -> Path:
        """The file or folder of `digest` at `path`, which must not exist, verified.

        Files are read-only links into the store; `copy` makes writable files of their own.
        Raises: DamagedError.
        """
        self.bring([digest])
        if (files := self.tree(digest)) is None:
            self.whole(digest)
            with disk.guarded(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    if copy:
                        shutil.copyfile(self.blob(digest), path)
                    else:
                        disk.link(self.blob(digest), path)
                except FileNotFoundError:  # taken away since it was read
                    raise self._lost(digest) from None
            return path
        with disk.guarded(path):
            path.mkdir(parents=True)
        for name, one in files.items():
            self.materialise(one, path / name, copy=copy)
        return path

    def whole(self, digest: str) -> Path:
        """Where a blob is, verified. Raises: DamagedError."""
        try:
            self._verify(digest)
        except DamagedError:
            if self.remote is None:
                raise
            self.bring([digest])
            self._verify(digest)
        return self.blob(digest)

    def bring(self, digests: Iterable[str]) -> None:
        """Fetches what is not here of blobs, and of the files of folders, from the shared cache."""
        if self.remote is None:
            return
        self._fetch(self.remote, digests := list(digests))
        files: list[str] = []
        for digest in digests:
            with suppress(DamagedError):
                files += (self.tree(digest) or {}).values()
        self._fetch(self.remote, files)

    def lend(self, digests: Iterable[str]) -> None:
        """Uploads what the shared cache lacks of blobs that are here, and of folders' files."""
        if self.remote is not None and not self.remote.down():
            here = self.parts(one for one in digests if self.blob(one).exists())
            self.remote.lend(here, self)

    def _fetch(self, remote: Remote, digests: Iterable[str]) -> None:
        def lacking() -> list[str]:
            return [one for one in dict.fromkeys(digests) if not self.blob(one).exists()]

        if not (missing := lacking()):
            return
        folder = self.temporary("fetch")
        try:
            remote.fetch(missing, folder, self._take)
        finally:
            disk.remove(folder)
        remote.lose(lacking())

    def _take(self, digest: str, path: Path) -> bool:
        """Takes a download in, if it is what its name says."""
        with path.open("rb") as source:
            try:
                self.put_as(digest, iter(lambda: source.read(_CHUNK), b""))
            except ValueError:
                return False
        return True

    def intact(self, digest: str) -> bool:
        """Whether a blob, and each file of a folder, is there as it was stored.

        For those that have their seal this costs a `stat`; others are hashed.
        """
        try:
            if not is_sealed(self.blob(digest).stat()):
                self._verify(digest)
            files = self.tree(digest)
        except (FileNotFoundError, DamagedError):
            return False
        return files is None or all(map(self.intact, files.values()))

    def reads_whole(self, digest: str) -> bool:
        """Whether a blob, and each file of a folder, reads as it was stored; slower than `intact`,
        and what does not is set aside.
        """
        try:
            self._verify(digest)
            files = self.tree(digest)
        except DamagedError:
            return False
        return not [one for one in (files or {}).values() if not self.reads_whole(one)]

    def parts(self, digests: Iterable[str]) -> dict[str, int]:
        """Digest → bytes of these blobs and of the files of those that are folders.

        Raises: DamagedError.
        """
        found: dict[str, int] = {}
        for digest in digests:
            for one in (digest, *(self.tree(digest) or {}).values()):
                found[one] = self._bytes_of(one)
        return found

    def _bytes_of(self, digest: str) -> int:
        try:
            return self.blob(digest).stat().st_size
        except FileNotFoundError:
            raise self._lost(digest) from None

    def seems_whole(self, digest: str, size: int) -> bool:
        """Whether a blob is there, of this size, and nobody wrote to it: the price of a `stat`."""
        try:
            facts = os.stat(self.blob(digest))
        except FileNotFoundError:
            return False
        return facts.st_size == size and is_sealed(facts)

    def is_whole(self, digest: str) -> bool:
        """Whether a blob reads as it was stored. Changes nothing."""
        return self._state(digest) == "whole"

    def _state(self, digest: str) -> Literal["whole", "damaged", "lost"]:
        try:
            with self.blob(digest).open("rb") as source:
                facts = os.fstat(source.fileno())
                stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if self._verified.get(digest) == stamp:
                    return "whole"
                if hashlib.file_digest(source, "sha256").hexdigest() != digest:
                    return "damaged"
        except FileNotFoundError:
            return "lost"
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return "damaged"
        self._verified[digest] = stamp
        return "whole"

    def _verify(self, digest: str) -> None:
        """Reads a blob and compares; renews a broken seal. Raises: DamagedError, after setting it
        aside.
        """
        if (state := self._state(digest)) != "whole":
            raise self._lost(digest) if state == "lost" else self._damaged(digest)
        path = self.blob(digest)
        with suppress(OSError):  # a reader without the right to write
            if not is_sealed(facts := path.stat()):
                os.utime(path, ns=(facts.st_atime_ns, _SEAL_NS))

    def _damaged(self, digest: str) -> DamagedError:
        self.set_aside(self.blob(digest))
        return self._error(digest, "was damaged; it is set aside")

    def _lost(self, digest: str) -> DamagedError:
        """Sets nothing aside: what was taken away may have been put back since."""
        return self._error(digest, "is missing")

    def _error(self, digest: str, what: str) -> DamagedError:
        error = DamagedError(
            message=f"{self.blob(digest)} {what}",
            hint="run again: the stage that made it will make it again",
        )
        error.digest = digest
        return error

    def set_aside(self, path: Path) -> None:
        """Puts what is damaged where nobody looks it up."""
        aside = self.root / "quarantine" / f"{path.name}-{uuid4().hex[:8]}"
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
        except OSError:  # no room for the folder, or a store that cannot be written
            with suppress(OSError):
                path.unlink()


def is_sealed(facts: os.stat_result) -> bool:
    """Whether a file is a blob, or a link to one, to which nobody wrote."""
    return facts.st_mtime_ns == _SEAL_NS


def _touched(blob: Path) -> bool:
    """Renews the time at which a blob was last put; False for another user's file."""
    try:
        os.utime(blob, ns=(time.time_ns(), _SEAL_NS))
    except PermissionError:
        return False
    return True


def _created(path: Path) -> int:
    """A descriptor of a new read-only file, for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o444)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o444)
