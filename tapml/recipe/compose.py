"""`extends`: one tree from a recipe and those that it extends, every value with its own place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath

from ..errors import RecipeError
from ..terminal import printable
from . import text
from .loader import DISCRIMINATORS, MAX_DEPTH, MAX_NODES, Document, error_at
from .positions import Entry, Node, Path, Position, shorten

EXTENDS = "extends"
MAX_CHAIN = 8  # recipes above one another
MAX_PARENTS = 64  # recipes that are laid under others, in all


@dataclass
class Composed:
    """A document with all that it extends.

    files: the recipe itself, then every file that it extends, in the order of reading
    """

    document: Document
    files: list[FilePath] = field(default_factory=list[FilePath])


def read(path: FilePath, root: FilePath) -> Composed:
    """The tree of a recipe, laid over those that it `extends`, which must lie in `root`.

    Raises: RecipeError for a file that cannot be read, that leaves the root or extends itself.
    """
    reader = _Reader(root.resolve())
    document = reader.read(path, (path.resolve(),))
    return Composed(document, reader.files)


def merged(base: Node, over: Node) -> Node:
    """`over` laid over `base`: mappings merge, all else replaces.

    A mapping that changes a discriminator (`kind`, `source`, `method`) replaces the other whole:
    the rest of its fields belonged to the old kind.
    """
    below, above = base.value, over.value
    if not isinstance(below, dict) or not isinstance(above, dict) or _other_kind(below, above):
        return over
    entries = dict(below)
    for key, entry in above.items():
        old = entries.get(key)
        if old is None:
            entries[key] = entry
        else:
            entries[key] = Entry(entry.key, merged(old.node, entry.node))
    return replace(over, value=entries)


def check_size(root: Node) -> None:
    """Raises: RecipeError when a composed tree is larger or deeper than one file may be."""
    for count, (path, node) in enumerate(root.nodes()):
        if count >= MAX_NODES:
            raise error_at(node.position, path[:8], f"more than {MAX_NODES} values when composed")
        if len(path) > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels when composed"
            raise error_at(node.position, path[:8], message)


def without(root: Node, *keys: str) -> Node:
    """The tree without some of its top-level keys."""
    assert isinstance(root.value, dict)
    return replace(root, value={k: entry for k, entry in root.value.items() if k not in keys})


@dataclass
class _Reader:
    """Reads each file once, however many recipes extend it."""

    root: FilePath
    files: list[FilePath] = field(default_factory=list[FilePath])
    made: dict[FilePath, Document] = field(default_factory=dict[FilePath, Document])
    count: int = 0

    def read(self, path: FilePath, chain: tuple[FilePath, ...]) -> Document:
        document = text.read(path)
        self.files.append(chain[-1])
        base: Node | None = None
        errors, broken = list[RecipeError](), list[Path]()
        for name, place in _parents(document.root):
            parent = self.parent(name, place, path, chain)
            errors += parent.errors
            broken += parent.broken
            base = parent.root if base is None else merged(base, parent.root)
            check_size(base)
        own = without(document.root, EXTENDS)
        whole = own if base is None else merged(base, own)
        check_size(whole)
        return Document(whole, [*errors, *document.errors], [*broken, *document.broken])

    def parent(
        self, name: str, place: Position, path: FilePath, chain: tuple[FilePath, ...]
    ) -> Document:
        above = _located(name, place, chain, self.root)
        self.count += 1
        if self.count > MAX_PARENTS:
            raise error_at(place, (EXTENDS,), f"more than {MAX_PARENTS} recipes are extended")
        if above not in self.made:
            shown = FilePath(os.path.normpath(path.parent / name))
            shown = shown if shown.resolve() == above else above  # `..` after a link
            try:
                self.made[above] = self.read(shown, (*chain, above))
            except RecipeError as error:
                if error.where == printable(str(shown)) and not error.excerpt:  # no such file
                    message = f"{shorten(name)}: {error.message}"
                    raise error_at(place, (EXTENDS,), message, error.hint) from error
                raise
        return self.made[above]


def _parents(root: Node) -> Iterator[tuple[str, Position]]:
    node = root.child(EXTENDS)
    if node is None:
        return
    rows = node.value if isinstance(node.value, list) else [node]
    for row in rows:
        if not isinstance(row.value, str) or not row.value:
            message = "expected the path of a recipe, or a list of paths"
            raise error_at(row.position, (EXTENDS,), message)
        yield row.value, row.position


def _located(name: str, place: Position, chain: tuple[FilePath, ...], root: FilePath) -> FilePath:
    """The file that the last of a chain extends, links followed."""
    try:
        above = (chain[-1].parent / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise error_at(place, (EXTENDS,), f"{shorten(name)}: {printable(str(error))}") from error
    if not above.is_relative_to(root):
        hint = f"recipes may extend those in {printable(str(root))}"
        raise error_at(place, (EXTENDS,), f"{shorten(name)} leaves the recipes' folder", hint)
    if above in chain:
        told = " → ".join(printable(one.name) for one in (*chain[chain.index(above) :], above))
        raise error_at(place, (EXTENDS,), f"recipes extend each other: {told}")
    if len(chain) > MAX_CHAIN:
        raise error_at(place, (EXTENDS,), f"more than {MAX_CHAIN} recipes extend one another")
    return above


def _other_kind(below: dict[str, Entry], above: dict[str, Entry]) -> bool:
    return any(
        key in below and key in above and below[key].node.data != above[key].node.data
        for key in DISCRIMINATORS
    )
