"""What the readers share: regular files, JSON of bounded cost, one way to say what is wrong."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from ..errors import StageError
from ..terminal import printable

_SHOWN = 80  # characters of a name in a message
_JSON_MEMORY = 600 << 20  # bytes that parsed JSON may take
MAX_RANK = 64
_MAX_NAME = 255  # bytes of a file's name
MAX_COUNT = 1 << 62  # elements or bytes; what is more was made up
MAX_TENSORS = 100_000  # of one file


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it; `start` is its first byte in the file `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int = 0
    file: str = ""

    @property
    def count(self) -> int:
        return prod(self.shape)


def refuse(path: Path, what: str, *, where: str = "", hint: str = "") -> NoReturn:
    """Raises StageError: `path`, the place in it, what is wrong, what to do."""
    place = f" at {where}" if where else ""
    raise StageError(
        message=f"{path} is refused{place}: {what}",
        hint=hint or "is the file whole, and from a source that you trust?",
    )


def shown(name: object) -> str:
    """A name or value out of a file, fit for a message."""
    return repr(short(name))


def short(name: object) -> str:
    """A text out of a file, as long as a line can hold."""
    text = printable(str(name)[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@contextmanager
def opened(path: Path) -> Generator[tuple[BinaryIO, int]]:
    """The file, open to read, and its size; a pipe or a device is refused, without waiting on it.

    Raises: StageError when there is none, or it is no regular file.
    """
    try:
        source = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StageError(message=f"{path} cannot be read: {reason}") from error
    with source:
        facts = os.fstat(source.fileno())
        if not stat.S_ISREG(facts.st_mode):
            refuse(path, "it is no regular file", hint="name a file")
        yield source, facts.st_size


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def inside(folder: Path, name: str) -> Path:
    """A file of the folder or below it. Raises: StageError for a name or link that leads out.

    The hub's cache has links to `blobs` beside its `snapshots`.
    """
    parts = name.split("/")
    too_long = any(len(part.encode()) > _MAX_NAME for part in parts)
    if {"", ".", ".."} & {*parts} or "\\" in name or "\0" in name or too_long:
        refuse(folder, f"{shown(name)} is no file of it")
    path = folder / name
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append((folder.parent.parent / "blobs").resolve())
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        refuse(path, f"it cannot be followed: {shown(error)}")
    if not any(target.is_relative_to(root) for root in roots):
        refuse(path, "a link that leads out of the model's folder")
    return path


def parse_json(path: Path, data: bytes, *, where: str) -> Any:
    """The value of JSON text whose cost is estimated before it is parsed.

    Raises: StageError: no JSON, a key given twice, NaN, nested too deep, or too much to hold.
    """
    marks = sum(map(data.count, (b"[", b",", b":")))
    text = len(data) * (3 if data.isascii() else 9)
    if text + 100 * marks + 300 * data.count(b"{") > _JSON_MEMORY:
        refuse(path, f"{len(data)} bytes of JSON are more than any model has", where=where)
    try:
        return json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        refuse(path, "JSON nested too deep", where=where)
    except ValueError as error:  # JSON's, Unicode's, ours
        refuse(path, f"no JSON: {shown(error)}", where=where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def mapping(path: Path, value: object, *, where: str) -> dict[str, Any]:
    """`value`, which must be a JSON object."""
    if not isinstance(value, dict):
        refuse(path, f"an object is wanted, not {shown(value)}", where=where)
    return cast("dict[str, Any]", value)


def listing(path: Path, value: object, *, where: str) -> list[Any]:
    """`value`, which must be a JSON array."""
    if not isinstance(value, list):
        refuse(path, f"a list is wanted, not {shown(value)}", where=where)
    return cast("list[Any]", value)


def text(path: Path, value: object, *, where: str) -> str:
    """`value`, which must be a string."""
    if not isinstance(value, str):
        refuse(path, f"a text is wanted, not {shown(value)}", where=where)
    return value


def whole(path: Path, value: object, *, where: str, most: int = MAX_COUNT) -> int:
    """`value`, which must be an integer from 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        refuse(path, f"a size from 0 to {most} is wanted, not {shown(value)}", where=where)
    return value


def sizes(path: Path, value: object, *, where: str) -> tuple[int, ...]:
    """`value`, which must be a list of sizes whose product is a count that can be."""
    found = listing(path, value, where=where)
    if len(found) > MAX_RANK:
        refuse(path, f"a shape of {len(found)} axes", where=where)
    shape = tuple(whole(path, one, where=where) for one in found)
    if prod(shape) > MAX_COUNT:
        what = f"a shape {short(list(shape))} of more elements than there can be"
        refuse(path, what, where=where)
    return shape


def side_by_side(path: Path, tensors: list[Tensor]) -> list[Tensor]:
    """The tensors in order of their bytes. Raises: StageError when two of them overlap."""
    ordered = sorted((one for one in tensors if one.nbytes), key=lambda one: one.start)
    for one, following in pairwise(ordered):
        if one.start + one.nbytes > following.start:
            refuse(
                path, f"its bytes overlap those of {shown(one.name)}", where=shown(following.name)
            )
    return ordered
