"""The content-addressed store: blobs named by their SHA-256, and records of what each action gave.

    cas/ab/<sha256>             a file, or a folder as a listing of its files (a tree)
    ac/<stage>/<action>/<n>     records; the newest generation counts
    locks/  tmp/  quarantine/  tuning/  runs/

It may lose, never lie. Everything is written to a temporary file and linked into place (the first
writer wins), blobs before the record that names them. A blob carries a fixed modification time as
its seal, so that a lookup notices for the price of a `stat` that somebody wrote to it; whoever
reads one checks its digest. What is damaged is set aside and is a miss.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from . import disk, keys
from .errors import EnvironmentalError, StageError
from .record import DIGEST, Record, decode, encode, now

if TYPE_CHECKING:
    from .remote import Remote

__all__ = ["DamagedError", "Durability", "Record", "Store", "now"]
Durability = Literal["group", "each"]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_TREE = b"tapml.tree\0"  # no file starts like this, so a blob's bytes tell whether it is a folder
_SEAL_NS = 315532800 * 10**9  # 1980-01-01: the modification time of every blob
_CHUNK = 1 << 20
_STALE_S = 24 * 3600  # age at which a temporary folder has no owner any more


class DamagedError(EnvironmentalError):
    """A blob is gone, or was not what its name says and is set aside; it has to be made again."""

    digest: str = ""


@dataclass(frozen=True)
class Store:
    """A store at `root`, an absolute folder that is made when first written to.

    durability: "each" syncs every write to the disk; "group" leaves it to one `flush` per run
    remote:     the shared cache; blobs that are not here when they are read come from it
    """

    root: Path
    durability: Durability = "group"
    remote: Remote | None = field(default=None, kw_only=True, repr=False, compare=False)
    _verified: dict[str, tuple[int, int, int]] = field(
        default_factory=dict[str, tuple[int, int, int]], repr=False, compare=False
    )

    @property
    def database(self) -> Path:
        """Where stages keep tuning records that outlive runs."""
        return self.root / "tuning"

    @property
    def runs(self) -> Path:
        """Where runs have their folders."""
        return self.root / "runs"

    # --- writing

    def prepare(self) -> None:
        """Makes the folders, removes temporary files that nobody owns any more."""
        with disk.guarded(self.root, errno.ENOENT):  # from file systems such as /proc
            for name in ("cas", "ac", "locks", "tmp", "tuning", "runs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            oldest = time.time() - _STALE_S
            for left in (self.root / "tmp").iterdir():
                with suppress(FileNotFoundError):
                    if left.lstat().st_mtime < oldest:
                        disk.remove(left)

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

    def publish(self, record: Record, *, force: bool = False) -> Record:
        """The record that counts: the first one. `force`: this one, as a new generation."""
        folder = self._actions(record.stage, record.key)
        record = replace(
            record,
            blobs=self._parts(record.outputs.values()),
            sides=self._parts(one for one in (record.log, record.views) if one),
        )
        data = encode(record)
        while True:
            if not force and (first := self.lookup(record.stage, record.key)) is not None:
                return first
            generation = max((int(path.name) for path in _generations(folder)), default=-1) + 1
            if self._write([data], lambda _, path=folder / str(generation): path, replace=False):
                return record

    def flush(self) -> None:
        """Everything written so far is on the disk."""
        with disk.guarded(self.root):
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(descriptor)

    def _put(self, chunks: Iterator[bytes] | list[bytes]) -> str:
        found: list[str] = []

        def place(digest: str) -> Path:
            found.append(digest)
            return self.blob(digest)

        self._write(chunks, place)
        return found[0]

    def _write(
        self,
        chunks: Iterator[bytes] | list[bytes],
        place: Callable[[str], Path],
        *,
        replace: bool = True,
    ) -> bool:
        """Links the chunks into place, read-only; False when something was there first.

        In: `place` gives the path from the digest of what was written. `replace`: a file there
            whose seal is broken goes.
        """
        temporary = self.root / "tmp" / uuid4().hex
        hasher = hashlib.sha256()
        with disk.guarded(self.root):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
            try:
                for chunk in chunks:
                    disk.write_all(descriptor, chunk)
                    hasher.update(chunk)
                os.utime(descriptor, ns=(_SEAL_NS, _SEAL_NS))
                if self.durability == "each":
                    os.fsync(descriptor)
                final = place(hasher.hexdigest())
                final.parent.mkdir(parents=True, exist_ok=True)
                if replace and final.exists() and not _sealed(final.stat()):
                    os.replace(temporary, final)
                    temporary = None
                    return True
                try:
                    os.link(temporary, final)
                except FileExistsError:
                    return False
                if self.durability == "each":
                    disk.sync_folder(final.parent)
                return True
            finally:
                os.close(descriptor)
                if temporary is not None:
                    temporary.unlink()

    # --- reading

    def lookup(self, stage: str, key: str, notes: list[str] | None = None) -> Record | None:
        """The newest whole record of an action, if its blobs are there too.

        What is damaged is set aside; `notes` gets a line about it.
        """
        for path in sorted(
            _generations(self._actions(stage, key)), key=lambda path: -int(path.name)
        ):
            if (record := self._record(path, notes)) is None:
                continue
            if damaged := [
                name for name, digest in record.outputs.items() if not self.intact(digest)
            ]:
                if notes is not None:
                    notes.append(f"its stored {', '.join(damaged)} was damaged or lost; made again")
                continue
            return record
        return None

    def newest(self, stage: str, count: int) -> list[Record]:
        """The latest records of a stage, newest first, whether their blobs are there or not."""
        paths = [
            path
            for key in _listed(self.root / "ac" / _checked(stage))
            for path in _generations(key)
        ]
        paths.sort(key=lambda path: path.stat().st_ctime_ns, reverse=True)
        found = (self._record(path, None) for path in paths[:count])
        return sorted(
            (record for record in found if record), key=lambda record: record.made_at, reverse=True
        )

    def records(self) -> Iterator[Record]:
        """Every whole record, by stage."""
        for stage in _listed(self.root / "ac"):
            yield from self.newest(stage.name, 1 << 30)

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be. Not verified: read it by `read` or `materialise`."""
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is no digest")
        return self.root / "cas" / digest[:2] / digest

    def read(self, digest: str) -> bytes:
        """The bytes of a file, verified. Raises: DamagedError."""
        self.bring([digest])
        return self._bytes(digest)

    def _bytes(self, digest: str) -> bytes:
        try:
            data = self.blob(digest).read_bytes()
        except FileNotFoundError:
            data = None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            raise self._damaged(digest)
        return data

    def tree(self, digest: str) -> dict[str, str] | None:
        """Relative path → digest of a folder's files; None for a file. Raises: DamagedError."""
        try:
            with self.blob(digest).open("rb") as source:
                if source.read(len(_TREE)) != _TREE:
                    return None
        except FileNotFoundError:
            raise self._damaged(digest) from None
        files: dict[str, str] = json.loads(self._bytes(digest)[len(_TREE) :])
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name:
                raise self._damaged(digest)
        return files

    def size(self, digest: str) -> int:
        """Bytes of a file, or of all files of a folder."""
        if (files := self.tree(digest)) is None:
            return self.blob(digest).stat().st_size
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
                if copy:
                    shutil.copyfile(self.blob(digest), path)
                else:
                    disk.link(self.blob(digest), path)
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
            here = self._parts(one for one in digests if self.blob(one).exists())
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
            if hashlib.file_digest(source, "sha256").hexdigest() != digest:
                return False
            source.seek(0)
            self._put(iter(lambda: source.read(_CHUNK), b""))
        return True

    def intact(self, digest: str) -> bool:
        """Whether a blob, and each file of a folder, is there as it was stored.

        For those that have their seal this costs a `stat`; others are hashed.
        """
        try:
            if not _sealed(self.blob(digest).stat()):
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

    def verify(self) -> list[str]:
        """Reads everything; sets aside what is damaged, one line for each."""
        problems: list[str] = []
        for folder in _listed(self.root / "cas"):
            for path in _listed(folder):
                try:
                    self._verify(path.name)
                except DamagedError as error:
                    problems.append(error.message)
        for stage in _listed(self.root / "ac"):
            for key in _listed(stage):
                for path in _generations(key):
                    self._record(path, problems)
        return problems

    def memo(
        self,
        name: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        fn: Callable[[Path], None],
    ) -> str:
        """The digest of what `fn` writes for these parameters and inputs, kept from then on."""
        stage = f"memo.{name}"
        preimage = {
            "schema": keys.SCHEMA,
            "stage": stage,
            "version": 0,
            "params": dict(params),
            "inputs": dict(inputs),
        }
        key = keys.digest(preimage)
        if (record := self.lookup(stage, key)) is None:
            folder = self.temporary(stage)
            try:
                fn(folder / "file")
                outputs = {"file": self.put(folder / "file")}
            finally:
                disk.remove(folder)
            record = self.publish(Record(stage, key, preimage, outputs, made_at=now()))
        return record.outputs["file"]

    def _actions(self, stage: str, key: str) -> Path:
        if not DIGEST.fullmatch(key):
            raise ValueError(f"{key!r} is no action key")
        return self.root / "ac" / _checked(stage) / key

    def _record(self, path: Path, notes: list[str] | None) -> Record | None:
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            self._set_aside(path)
            if notes is not None:
                notes.append(f"its record {path.parent.name[:12]}… was damaged; made again")
            return None

    def _parts(self, digests: Iterable[str]) -> dict[str, int]:
        """Digest → bytes of these blobs and of the files of those that are folders."""
        found: dict[str, int] = {}
        for digest in digests:
            for one in (digest, *(self.tree(digest) or {}).values()):
                found[one] = self.blob(one).stat().st_size
        return found

    def _verify(self, digest: str) -> None:
        """Reads a blob and compares. Raises: DamagedError, after setting it aside."""
        path = self.blob(digest)
        try:
            with path.open("rb") as source:
                facts = os.fstat(source.fileno())
                stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if self._verified.get(digest) == stamp:
                    return
                if hashlib.file_digest(source, "sha256").hexdigest() != digest:
                    raise self._damaged(digest)
        except FileNotFoundError:
            raise self._damaged(digest) from None
        self._verified[digest] = stamp
        if not _sealed(facts):
            with suppress(OSError):  # a reader without the right to write
                os.utime(path, ns=(_SEAL_NS, _SEAL_NS))

    def _damaged(self, digest: str) -> DamagedError:
        lost = not (path := self.blob(digest)).exists()
        if not lost:
            self._set_aside(path)
        error = DamagedError(
            message=f"{path} {'is missing' if lost else 'was damaged; it is set aside'}",
            hint="run again: the stage that made it will make it again",
        )
        error.digest = digest
        return error

    def _set_aside(self, path: Path) -> None:
        aside = self.root / "quarantine" / f"{path.name}-{uuid4().hex[:8]}"
        with suppress(FileNotFoundError), disk.guarded(aside):
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)


def _sealed(facts: os.stat_result) -> bool:
    return facts.st_mtime_ns == _SEAL_NS


def _listed(folder: Path) -> list[Path]:
    with disk.guarded(folder):
        try:
            return sorted(folder.iterdir())
        except FileNotFoundError:
            return []


def _generations(folder: Path) -> list[Path]:
    return [path for path in _listed(folder) if path.name.isdecimal()]


def _checked(stage: str) -> str:
    if not _NAME.fullmatch(stage):
        raise ValueError(f"{stage!r} is no name of a stage")
    return stage
