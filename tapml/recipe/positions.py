"""Where a value stands: the tree that YAML text becomes, with the place of every key and value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ..mask import is_secret, without_keys
from ..terminal import columns, printable

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]

EXCERPT_COLUMNS = 160


@dataclass(frozen=True, eq=False)
class Source:
    """A text that values come from: a file in `folder`, or one `--set` of the command line."""

    name: str
    text: str
    is_override: bool = False
    folder: FilePath | None = None
    lines: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        normal = self.text.replace("\r\n", "\n").replace("\r", "\n")
        object.__setattr__(self, "lines", tuple(normal.split("\n")))


@dataclass(frozen=True)
class Position:
    """A stretch of one line of a source; `line` and `column` count from 0, in characters."""

    source: Source
    line: int
    column: int
    width: int = 1

    @property
    def where(self) -> str:
        """`file:line:col`, or the `--set` itself."""
        if self.source.is_override:
            return self.source.name
        return f"{self.source.name}:{self.line + 1}:{self.column + 1}"

    @property
    def origin(self) -> str:
        """`file:line`, or the `--set` itself."""
        if self.source.is_override:
            return self.source.name
        return f"{self.source.name}:{self.line + 1}"

    @property
    def excerpt(self) -> str:
        """The line with a caret below it: at most 160 columns, no control characters, no secret."""
        if self.source.is_override or self.line >= len(self.source.lines):
            return ""
        text = self.source.lines[self.line]
        if is_secret(text):
            return ""
        room = EXCERPT_COLUMNS - 9
        start = 0 if len(text) <= room // 2 else max(0, self.column - room // 4)
        before = _fit(("…" if start else "") + printable(text[start : self.column]), room - 1)
        after = _fit(printable(text[self.column : self.column + room]), room - columns(before))
        marked = printable(text[self.column : self.column + min(room, max(1, self.width))])
        carets = "^" * max(1, min(columns(marked), columns(after)))
        return f"{self.line + 1:6} | {before}{after}\n       | {' ' * columns(before)}{carets}"


@dataclass(frozen=True)
class Node:
    """A value and its place; mappings and lists hold nodes."""

    position: Position
    value: Scalar | dict[str, Entry] | list[Node]

    @property
    def data(self) -> Any:
        """The plain value, places dropped."""
        if isinstance(self.value, dict):
            return {key: entry.node.data for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [node.data for node in self.value]
        return self.value

    def child(self, part: str | int) -> Node | None:
        if isinstance(self.value, dict):
            entry = self.value.get(str(part))
            return entry.node if entry else None
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None

    def nodes(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """This node and all below it, each with its path."""
        yield path, self
        if isinstance(self.value, dict):
            for key, entry in self.value.items():
                yield from entry.node.nodes((*path, key))
        elif isinstance(self.value, list):
            for index, node in enumerate(self.value):
                yield from node.nodes((*path, index))


@dataclass(frozen=True)
class Entry:
    """A key of a mapping, with its own place, and its value."""

    key: Position
    node: Node


def locate(root: Node, path: Sequence[str | int], *, key: bool = False) -> Position:
    """The place of the value at `path` (of its key, with `key`), or of its nearest ancestor."""
    node, place = root, root.position
    for part in path:
        entry = node.value.get(str(part)) if isinstance(node.value, dict) else None
        below = entry.node if entry else node.child(part)
        if below is None:
            break
        place = below.position
        if entry is not None and (key or isinstance(below.value, dict)):
            place = entry.key  # a mapping's own text starts with that of its first field
        node = below
    return place


def find(root: Node, path: Sequence[str | int]) -> Node | None:
    """The value at `path`, if there is one."""
    node: Node | None = root
    for part in path:
        node = node.child(part) if node is not None else None
    return node


def path_of(root: Node, dotted: str) -> Path:
    """The path that a dotted field names; of keys that hold dots themselves, the longest wins."""
    parts: list[str] = dotted.split(".") if dotted else []
    path: list[str | int] = []
    node: Node | None = root
    while parts:
        if node is not None and isinstance(node.value, list) and parts[0].isdigit():
            path.append(int(parts.pop(0)))
        else:
            keys = node.value if node is not None and isinstance(node.value, dict) else {}
            n = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in keys), 1)
            path.append(".".join(parts[:n]))
            del parts[:n]
        node = node.child(path[-1]) if node is not None else None
    return tuple(path)


def dotted(path: Sequence[str | int]) -> str:
    """A path as people write it, safe to print."""
    return printable(".".join(str(part) for part in path))


def shorten(value: object, limit: int = 60) -> str:
    """A value for a message: its literal form, cut."""
    text = printable(without_keys(repr(value)))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _fit(text: str, room: int) -> str:
    if columns(text) <= room:
        return text
    kept = ""
    used = 1
    for c in text:
        used += columns(c)
        if used > room:
            break
        kept += c
    return kept + "…"
