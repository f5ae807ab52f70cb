"""YAML text → a tree of values with places: core types of YAML 1.2, bounded, all mistakes at once.

PyYAML gives the events; the types are ours, because its own are those of YAML 1.1, where `no` is
false, `012` is 10 and `1e3` is a string.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import yaml

from ..errors import RecipeError, RecipeErrors
from ..mask import mask
from ..terminal import printable
from .positions import Entry, Node, Path, Position, Scalar, Source, dotted, path_of, shorten

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 50_000
MAX_ERRORS = 20  # told
MAX_MISTAKES = 500  # looked for
MAX_SHOWN = 100  # characters of a --set
DISCRIMINATORS = frozenset({"kind", "source", "method"})

# libyaml is 20 times as fast, where the wheel of PyYAML has it
_EVENTS: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_TRUE = re.compile(r"(?:true|True|TRUE)\Z")
_FALSE = re.compile(r"(?:false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_NOT_FINITE = re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z")


@dataclass
class Document:
    """A parsed text. `broken` are the paths below which values are missing because of an error."""

    root: Node
    errors: list[RecipeError] = field(default_factory=list[RecipeError])
    broken: list[Path] = field(default_factory=list[Path])


def decode(data: bytes, name: str) -> str:
    """The text of a recipe file. Raises: RecipeError when it is too large or no UTF-8."""
    if len(data) > MAX_BYTES:
        raise RecipeError(
            where=name, message=f"file of {len(data)} bytes; at most {MAX_BYTES} are read"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start)
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise RecipeError(where=f"{name}:{line + 1}:{column + 1}", message=message) from error


def parse(source: Source) -> Document:
    """The tree of a YAML text with its errors; a recipe's root is checked by the caller.

    Raises: RecipeError for what leaves no tree: broken syntax, a second document, a limit.
    """
    builder = _Builder(source)
    try:
        return builder.document()
    except yaml.reader.ReaderError as error:
        raise _reader_error(source, error) from error
    except yaml.MarkedYAMLError as error:
        raise builder.syntax_error(error) from error


def scalar(text: str) -> Scalar:
    """The value of a plain scalar by the core schema of YAML 1.2.

    Raises: ValueError for a number that JSON or 64 bits cannot hold.
    """
    if _NULL.match(text):
        return None
    if _TRUE.match(text) or _FALSE.match(text):
        return text[0] in "tT"
    if _INT.match(text) or _BASED.match(text):
        if len(text) > 24 or abs(value := int(text, 10 if _INT.match(text) else 0)) >= 1 << 63:
            raise ValueError("a number of more than 64 bits")
        return value
    if _FLOAT.match(text):
        if not math.isfinite(number := float(text)):
            raise ValueError("a number that no float64 can hold")
        return number
    if _NOT_FINITE.match(text):
        raise ValueError("not a finite number")
    return text


def override(root: Node, text: str) -> Node:
    """`root` with one `--set a.b=value` applied; `value` is YAML and replaces what was there.

    A scalar that changes a discriminator (`kind`, `source`, `method`) drops the other fields of its
    mapping, which belonged to the old kind.
    Raises: RecipeError when the text is no `key=value`, the value no YAML, or a part of the key no
    section.
    """
    name, equals, value_text = text.partition("=")
    shown = printable(mask(text))
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    source = Source(f"--set {shown}", value_text, is_override=True)
    place = Position(source, 0, 0, len(value_text))
    parts = name.strip().split(".")
    if not equals or not all(parts):
        message = f"--set takes a.b=value, not {shorten(text)}"
        raise RecipeError(message=message, hint="for instance: --set tuning.trials=8")
    document = parse(source)
    if document.errors:
        raise combined(document.errors)
    path = tuple(str(part) for part in path_of(root, name.strip()))
    if path[0] == "extends":
        raise RecipeError(where=source.name, message="what a recipe extends stands in the recipe")
    if path[0] == "matrix" and len(path) > 1:
        path = "matrix", name.strip().partition(".")[2]  # its keys are dotted names themselves
    return placed(root, path, document.root, place)


def placed(root: Node, path: Path, new: Node, place: Position) -> Node:
    """`root` with `new` at `path`; `place` is where the key stands that says so.

    Raises: RecipeError when a part of the path is no section.
    """
    return _replaced(root, path, new, place, path)


def combined(errors: Sequence[RecipeError]) -> RecipeError:
    """One error, or the first of them as one; equal ones once, in order of their places."""
    unique = list({(e.where, e.field, e.message): e for e in errors}.values())
    unique.sort(key=lambda e: _where_order(e.where))
    if (left := len(unique) - MAX_ERRORS) > 0:
        unique[MAX_ERRORS:] = [RecipeError(message=f"and {left} more")]
    return unique[0] if len(unique) == 1 else RecipeErrors(errors=tuple(unique))


def error_at(position: Position, path: Path, message: str, hint: str = "") -> RecipeError:
    """A RecipeError at a place."""
    return RecipeError(
        where=position.where,
        field=dotted(path),
        message=message,
        hint=hint,
        excerpt=position.excerpt,
    )


def _replaced(node: Node, path: Path, new: Node, place: Position, whole: Path) -> Node:
    if not path:
        return new
    here = dotted(whole[: len(whole) - len(path)]) or "the recipe"
    if node.value is None:
        node = Node(place, {})
    if not isinstance(node.value, dict):
        noun = "a list" if isinstance(node.value, list) else shorten(node.value)
        raise RecipeError(
            where=place.where, message=f"{here} is {noun}, not a section; set it whole"
        )
    key = str(path[0])
    entry = node.value.get(key, Entry(place, Node(place, None)))
    below = _replaced(entry.node, path[1:], new, place, whole)
    changes_kind = (
        len(path) == 1
        and key in DISCRIMINATORS
        and entry.node.value is not None
        and entry.node.value != below.value
    )
    if changes_kind:
        return Node(place, {key: Entry(place, below)})
    is_new = key not in node.value or below.position.source is place.source
    return replace(node, value={**node.value, key: Entry(place if is_new else entry.key, below)})


class _Builder:
    """Builds nodes from PyYAML's events. `depth` and `count` bound what an alias can blow up."""

    def __init__(self, source: Source) -> None:
        self.source = source
        parse = cast("Callable[..., Iterator[yaml.Event]]", yaml.parse)  # pyright: ignore[reportUnknownMemberType]  # stubs
        self.events = parse(source.text, Loader=_EVENTS)
        self.event = cast(yaml.Event, None)
        self.anchors: dict[str, tuple[Node, int] | None] = {}
        self.count = 0
        self.errors: list[RecipeError] = []
        self.broken: list[Path] = []

    def document(self) -> Document:
        self.advance()  # stream start
        self.advance()
        if isinstance(self.event, yaml.StreamEndEvent):
            return Document(Node(Position(self.source, 0, 0), None))
        self.advance()
        root = self.node(())
        self.advance()
        if not isinstance(self.event, yaml.StreamEndEvent):
            raise self.error((), "a second document; a file holds one")
        return Document(root, self.errors, self.broken)

    def advance(self) -> None:
        self.event = next(self.events)

    def node(self, path: Path) -> Node:
        """The node at the current event; leaves the event after it as the current one."""
        event = self.event
        self.count += 1
        if self.count > MAX_NODES:
            raise self.error(path, f"more than {MAX_NODES} values (aliases count each time)")
        if len(path) > MAX_DEPTH:
            raise self.error(path, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path)
        position = self.position()
        assert isinstance(
            event, yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent
        )
        tag, anchor = cast("str | None", event.tag), cast("str | None", event.anchor)
        if tag is not None:
            self.report(path, f"tag {shorten(tag)} is not allowed; types follow from the value")
        if anchor is not None:
            self.anchors[anchor] = None
        before = self.count
        if isinstance(event, yaml.ScalarEvent):
            node = Node(position, self.scalar(event, path))
            self.advance()
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(position, self.sequence(path))
        else:
            node = Node(position, self.mapping(path))
        if anchor is not None:
            self.anchors[anchor] = node, self.count - before
        return node

    def alias(self, event: yaml.AliasEvent, path: Path) -> Node:
        name = cast(str, event.anchor)
        found = self.anchors.get(name)
        if found is None:
            what = (
                "stands inside its own value"
                if name in self.anchors
                else "is defined nowhere above"
            )
            raise self.error(path, f"the anchor of alias *{printable(name)} {what}")
        node, size = found
        self.count += size
        if self.count > MAX_NODES:
            raise self.error(path, f"more than {MAX_NODES} values (aliases count each time)")
        if len(path) + _height(node) > MAX_DEPTH:
            raise self.error(path, f"nested deeper than {MAX_DEPTH} levels")
        self.advance()
        return node

    def sequence(self, path: Path) -> list[Node]:
        self.advance()
        items: list[Node] = []
        while not isinstance(self.event, yaml.SequenceEndEvent):
            items.append(self.node((*path, len(items))))
        self.advance()
        return items

    def mapping(self, path: Path) -> dict[str, Entry]:
        self.advance()
        entries: dict[str, Entry] = {}
        while not isinstance(self.event, yaml.MappingEndEvent):
            position = self.position()
            key = self.key(path)
            value = self.node((*path, key if key is not None else "?"))
            if key is None:
                self.broken.append(path)
            elif key in entries:
                line = entries[key].key.line + 1
                message = f"duplicate key (first at line {line})"
                self.report((*path, key), message, position, broken=False)
            else:
                entries[key] = Entry(position, value)
        self.advance()
        return entries

    def key(self, path: Path) -> str | None:
        event, position = self.event, self.position()
        if not isinstance(event, yaml.ScalarEvent):
            self.report(path, "a key must be a string", position, broken=False)
            self.node((*path, "?"))
            return None
        node = self.node((*path, "?"))
        if node.value == "<<" and not event.style:
            self.report(
                path, "merge keys (<<) are not allowed; repeat the fields", position, broken=False
            )
            return None
        if not isinstance(node.value, str):
            if self.broken[-1:] != [(*path, "?")]:  # no error about it yet
                text = printable(cast(str, event.value))
                message = f"key {text or 'null'} is no string; write it in quotes"
                self.report(path, message, position, broken=False)
            return None
        return node.value

    def scalar(self, event: yaml.ScalarEvent, path: Path) -> Scalar:
        text = cast(str, event.value)
        if not event.style:  # plain
            try:
                return scalar(text)
            except ValueError as error:
                self.report(path, f"{shorten(text, 40)} is {error}")
                return None
        if _NO_TEXT.search(text):
            self.report(path, f"{shorten(text, 40)} is no text: it holds a NUL or half a character")
            return None
        return text

    def position(self) -> Position:
        start, end = self.event.start_mark, self.event.end_mark
        is_scalar = isinstance(self.event, (yaml.ScalarEvent, yaml.AliasEvent))
        width = end.column - start.column if is_scalar and end.line == start.line else 1
        return Position(self.source, start.line, start.column, max(1, width))

    def report(
        self, path: Path, message: str, position: Position | None = None, *, broken: bool = True
    ) -> None:
        self.errors.append(error_at(position or self.position(), path, message))
        if len(self.errors) >= MAX_MISTAKES:
            raise combined(self.errors)
        if broken:
            self.broken.append(path)

    def error(self, path: Path, message: str) -> RecipeError:
        return error_at(self.position(), path[:8], message)

    def syntax_error(self, error: yaml.MarkedYAMLError) -> RecipeError:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        problem = printable(error.problem or error.context or "broken YAML")
        hint = ""
        if "\\t" in problem or "'\t'" in problem:
            hint = "indent with spaces"
        elif error.context and error.context_mark:
            hint = f"{printable(error.context)} (line {error.context_mark.line + 1})"
        return error_at(Position(self.source, line, column), (), f"broken YAML: {problem}", hint)


def _reader_error(source: Source, error: yaml.reader.ReaderError) -> RecipeError:
    offset = source.text.find(chr(cast(int, error.character)))
    line = source.text.count("\n", 0, offset)
    column = offset - (source.text.rfind("\n", 0, offset) + 1)
    message = f"character U+{cast(int, error.character):04X} is not allowed in YAML"
    return error_at(Position(source, line, column), (), message)


def _height(node: Node) -> int:
    return max(len(path) for path, _ in node.nodes())


def _where_order(where: str) -> tuple[str, int, int]:
    found = re.fullmatch(r"(.*):(\d+):(\d+)", where, re.DOTALL)
    return (found[1], int(found[2]), int(found[3])) if found else (where, 0, 0)
