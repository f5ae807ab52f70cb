"""Results as one portable file: a plain tar of records and blobs.

    results.json     cas/<sha256>     ac/<stage>/<action>.record

An archive is a stranger's: its members are files of these names or it is refused, a blob gets in
only under the digest of its bytes, and a record after all that it names. It is not compressed and
holds no sparse files, so that it unpacks to no more than its own size.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from .. import disk, keys
from ..errors import RecipeError
from . import DamagedError, Store
from .inventory import Result
from .record import Record, decode

_LIST = "results.json"  # names of the records that are in it, so that a cut is noticed
_BLOB = re.compile(r"cas/([0-9a-f]{64})")
_RECORD = re.compile(r"ac/([A-Za-z0-9_][A-Za-z0-9_.-]{0,99})/([0-9a-f]{64})\.record")
_TEXT_BYTES = 64 << 20  # largest record or list
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Imported:
    """What came in: results that are new, and those that were here already."""

    new: list[Record]
    known: list[Record]


def export(store: Store, chosen: Iterable[Result], path: Path) -> list[Result]:
    """Writes the results, of each action the newest, whole or not at all. Equal results give an
    equal file.

    Raises: DamagedError when the store lacks a part; RecipeError when there is a file already.
    """
    if path.exists() or not path.absolute().parent.is_dir():
        why = "is there already" if path.exists() else "is in no folder"
        raise RecipeError(message=f"{path} {why}", hint="name a new file")
    by_age = sorted(chosen, key=lambda one: one.entry.generation)
    newest = {f"ac/{one.stage}/{one.entry.key}.record": one for one in by_age}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with disk.guarded(path):
        try:
            with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, _LIST, keys.canonical_json(sorted(newest)))
                for digest in sorted({one for item in newest.values() for one in item.entry.blobs}):
                    _add(archive, f"cas/{digest}", store.whole(digest).open("rb"))
                for name, one in sorted(newest.items()):
                    record = store.record_path(one.stage, one.entry.key, one.entry.generation)
                    _add(archive, name, record.read_bytes())
            draft.rename(path)
        except FileNotFoundError as error:
            raise DamagedError(
                message=f"{error.filename} was taken away meanwhile",
                hint="run again: the stage that made it will make it again",
            ) from None
        finally:
            draft.unlink(missing_ok=True)
    return list(newest.values())


def load(store: Store, path: Path) -> Imported:
    """Takes the results of an archive into the store. Of one that is refused, nothing but blobs
    that no record names may have come in.

    Raises: RecipeError when it is no archive of results, or any part of it is not what it says.
    """
    records: dict[str, Record] = {}
    listed: list[str] | None = None
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name, chunks = member.name, _chunks(archive, member)
                if name == _LIST:
                    listed = _list(_text(chunks))
                elif blob := _BLOB.fullmatch(name):
                    store.put_as(blob[1], chunks)
                elif action := _RECORD.fullmatch(name):
                    records[name] = _record(_text(chunks), action[1], action[2])
                else:
                    raise ValueError(f"{name[:80]!r} is no name of a blob or a record")
        if listed is None or sorted(listed) != sorted(records):
            raise ValueError("it is cut short")
        for name, record in records.items():
            parts = {**record.blobs, **record.sides}
            if lost := [one for one, size in parts.items() if not store.seems_whole(one, size)]:
                raise ValueError(f"{name} names {lost[0][:12]}…, which is not there")
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise RecipeError(message=f"cannot read {path}: {error.strerror}") from None
    except (tarfile.TarError, ValueError) as error:
        raise RecipeError(
            message=f"{path} is no archive of results, or is damaged: {error}",
            hint="`tapml cache export` writes one; nothing of this one counts",
        ) from error
    done = Imported([], [])
    for record in records.values():
        if (here := store.lookup(record.stage, record.key)) is not None:
            done.known.append(here)
        else:
            done.new.append(store.publish(record))
    store.flush()
    return done


def _add(archive: tarfile.TarFile, name: str, data: bytes | IO[bytes]) -> None:
    """A member without times and owners."""
    source = BytesIO(data) if isinstance(data, bytes) else data
    with source:
        member = tarfile.TarInfo(name)
        member.size = source.seek(0, os.SEEK_END)
        source.seek(0)
        archive.addfile(member, source)


def _chunks(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """The bytes of a plain file. Raises: ValueError for anything else, or one that is cut short."""
    source = None
    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse():
        source = archive.extractfile(member)
    if source is None:
        raise ValueError(f"{member.name[:80]!r} is no plain file")
    left = member.size
    while left > 0:
        chunk = source.read(min(_CHUNK, left))
        if not chunk:
            raise ValueError("it is cut short")
        left -= len(chunk)
        yield chunk


def _text(chunks: Iterable[bytes]) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > _TEXT_BYTES:
            raise ValueError("a record is too large")
    return bytes(data)


def _list(data: bytes) -> list[str]:
    listed: Any = json.loads(data)
    if not isinstance(listed, list):
        raise ValueError("its list of records is none")
    return [str(name) for name in listed]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # JSON


def _record(data: bytes, stage: str, key: str) -> Record:
    record = decode(data)
    if record is None:
        raise ValueError("a record is of another version of tapml")
    if (record.stage, record.key) != (stage, key) or keys.digest(record.preimage) != key:
        raise ValueError(f"the record of {stage}/{key[:12]}… is another one's")
    return record
