"""`matrix`: one recipe for each combination of values, with a short name for what differs.

matrix:
  sparsity.prune.density: [0.3, 0.5]
  sparsity.format: [{kind: csr}, {kind: bsr, block: [16, 16]}]
  exclude: [{sparsity.prune.density: 0.3, sparsity.format: {kind: csr}}]
  include: [{sparsity.prune.density: 0.9}]
  limit: 64
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..errors import RecipeError, nearest
from .loader import combined, error_at, placed
from .positions import Node, Position, find, path_of

MATRIX = "matrix"
LIMIT = 512  # recipes of one matrix, unless it sets a smaller limit
LABEL = 80  # characters
_OWN = ("include", "exclude", "limit")
_NOT_VARIED = ("extends", "matrix", "version", "name")


@dataclass(frozen=True)
class Point:
    """One combination: dotted field → value, with the place of its key."""

    values: Mapping[str, tuple[Position, Node]]

    def apply(self, root: Node) -> Node:
        """The recipe with this combination's values. Raises: RecipeError at the key's place."""
        for name, (key, node) in self.values.items():
            try:
                root = placed(root, path_of(root, name), node, key)
            except RecipeError as error:
                raise error_at(key, (MATRIX, name), error.message, error.hint) from error
        return root


def points(root: Node) -> list[Point]:
    """The combinations of a recipe's matrix, in order; one that changes nothing without a matrix.

    Raises: RecipeError with every mistake in the matrix, or when it has more points than its limit.
    """
    section = root.child(MATRIX)
    if section is None or (section.value is None and section.position.source.is_override):
        return [Point({})]
    matrix = _Matrix(section)
    found = matrix.points()
    if matrix.errors:
        raise combined(matrix.errors)
    return found


def labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short, unique name for each recipe of a sweep, from the values that differ."""
    if len(rows) < 2:
        return [""] * len(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    varied = [name for name in names if len({_text(row.get(name)) for row in rows}) > 1]
    short = _short_names(varied)
    found: list[str] = []
    for row in rows:
        parts = [f"{short[name]}={_text(row[name])}" for name in varied if name in row]
        text = ",".join(parts) or "base"
        if len(text) > LABEL:
            text = f"{text[: LABEL - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        found.append(text)
    for index, text in enumerate(found):
        if text in found[:index]:  # values that only a digest tells apart
            digest = hashlib.sha256(json.dumps(rows[index], sort_keys=True).encode()).hexdigest()
            found[index] = f"{text[: LABEL - 9]}-{digest[:8]}"
    return found


class _Matrix:
    def __init__(self, section: Node) -> None:
        self.section = section
        self.errors: list[RecipeError] = []

    def points(self) -> list[Point]:
        if not isinstance(self.section.value, dict) or not self.section.value:
            self._wrong(self.section.position, (), "expected fields, each with a list of values")
            return []
        axes: dict[str, list[tuple[Position, Node]]] = {}
        for name, entry in self.section.value.items():
            if name in _OWN:
                continue
            if self._may_vary(name, entry.key, entry.node):
                items = cast("list[Node]", entry.node.value)
                axes[name] = [(entry.key, item) for item in items]
        limit = self._limit()
        count = 1
        for values in axes.values():
            count *= len(values)
        include, exclude = self._rows("include"), self._rows("exclude", axes)
        if count > LIMIT * 16:  # before `exclude`, so that nothing huge is built
            message = f"{count} combinations; at most {LIMIT * 16} are looked at"
            self._wrong(self.section.position, (), message)
        if self.errors:
            return []
        combinations = itertools.product(*axes.values()) if axes else ()
        rows = [dict(zip(axes, row, strict=True)) for row in combinations]
        kept = [row for row in rows if not any(_matches(row, one) for one in exclude)]
        found = [Point(row) for row in (*kept, *include)]
        if len(found) > limit:
            message = f"{len(found)} recipes; the limit is {limit}"
            hint = "exclude some, or raise `limit`" if limit < LIMIT else "exclude some"
            self._wrong(self.section.position, (), message, hint)
        if not found:
            self._wrong(self.section.position, (), "no combination is left")
        return found

    def _may_vary(self, name: str, key: Position, node: Node) -> bool:
        if name.split(".")[0] in _NOT_VARIED or not all(name.split(".")):
            self._wrong(key, (name,), "a matrix cannot vary this field")
        elif not isinstance(node.value, list) or not node.value:
            self._wrong(node.position, (name,), "expected a list of values, at least one")
        else:
            return True
        return False

    def _rows(
        self, name: str, axes: Collection[str] | None = None
    ) -> list[dict[str, tuple[Position, Node]]]:
        """The combinations of a list; of `axes` alone, where those are given."""
        node = self.section.child(name)
        if node is None:
            return []
        if not isinstance(node.value, list):
            self._wrong(node.position, (name,), "expected a list of combinations")
            return []
        rows: list[dict[str, tuple[Position, Node]]] = []
        for index, row in enumerate(node.value):
            if not isinstance(row.value, dict) or not row.value:
                message = "expected a mapping of fields to values"
                self._wrong(row.position, (name, str(index)), message)
                continue
            for key, entry in row.value.items():
                if axes is not None and key not in axes:
                    hint = nearest(key, list(axes), noun="it varies")
                    self._wrong(entry.key, (name, key), "the matrix does not vary this field", hint)
                elif key.split(".")[0] in _NOT_VARIED:
                    self._wrong(entry.key, (name, key), "a matrix cannot vary this field")
            rows.append({key: (entry.key, entry.node) for key, entry in row.value.items()})
        return rows

    def _limit(self) -> int:
        node = self.section.child("limit")
        if node is None:
            return LIMIT
        if isinstance(node.value, bool) or not isinstance(node.value, int):
            self._wrong(node.position, ("limit",), "expected an integer")
        elif not 1 <= node.value <= LIMIT:
            self._wrong(node.position, ("limit",), f"expected 1 to {LIMIT}")
        else:
            return node.value
        return LIMIT

    def _wrong(self, at: Position, path: tuple[str, ...], message: str, hint: str = "") -> None:
        self.errors.append(error_at(at, (MATRIX, *path), message, hint))


def _matches(row: Mapping[str, tuple[Position, Node]], pattern: Mapping[str, Any]) -> bool:
    return all(name in row and row[name][1].data == one[1].data for name, one in pattern.items())


def value_at(root: Node, name: str) -> Any:
    """The plain value of a dotted field; None when the recipe lacks it."""
    node = find(root, path_of(root, name))
    return None if node is None else node.data


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted name, or as many parts as tell it from the others."""
    names = list(names)
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        own = (t for t in tails if sum(n == t or n.endswith(f".{t}") for n in names) == 1)
        short[name] = re.sub(r"[^A-Za-z0-9_.-]+", "-", next(own, name))
    return short


def _text(value: Any) -> str:
    """A value in a few characters: `0.5`, `bsr-16x16`."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case dict():
            rows = cast("dict[str, Any]", value)
            lead = [rows[key] for key in ("kind", "source", "method") if key in rows]
            rest = [one for key, one in rows.items() if key not in ("kind", "source", "method")]
            return "-".join(_text(one) for one in (*lead, *rest)) or "empty"
        case list():
            return "x".join(_text(one) for one in cast("list[Any]", value)) or "empty"
        case _:
            return re.sub(r"[^A-Za-z0-9_.+-]+", "-", str(value)).strip("-")[:40] or "empty"
