"""`${vars.x}` and `${env:NAME:-default}`: what a recipe's text stands in for.

A value that is nothing but one reference takes the type of what it names; in a field of text, and
inside a longer text, a reference is text. There are no expressions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .. import mask
from ..errors import RecipeError, nearest
from .loader import MAX_NODES, error_at, scalar
from .positions import Entry, Node, Path, find, shorten

VARS = "vars"
FREE_PREFIX = "TAPML_VAR_"  # variables of the environment that need no permission
MAX_TEXT = 4096
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_ENV = re.compile(r"env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-(?P<value>.*))?\Z", re.DOTALL)
_AS_IS = (VARS, "matrix")  # filled in where they are used


@dataclass
class Variables:
    """Fills in the references of one tree.

    allowed: names of environment variables that recipes may read
    environ: the environment
    is_text: whether the field at a path holds text, so that no number is read out of it
    used:    environment variables that were read, with their values: what the run records
    """

    tree: Node
    allowed: Sequence[str]
    environ: Mapping[str, str]
    is_text: Callable[[Path], bool] = lambda path: False
    used: dict[str, str] = field(default_factory=dict[str, str])
    errors: list[RecipeError] = field(default_factory=list[RecipeError])
    broken: list[Path] = field(default_factory=list[Path])
    _count: int = 0
    _values: dict[str, Node] = field(default_factory=dict[str, Node])

    def filled(self) -> Node:
        """The tree with every reference replaced, without `vars`; mistakes are in `errors`.

        Raises: RecipeError when it grows beyond what a recipe may hold.
        """
        root = self.tree
        assert isinstance(root.value, dict)
        section = root.child(VARS)
        if section is not None and not isinstance(section.value, dict):
            self._report(section, (VARS,), "expected a mapping of names to values")
        entries = {
            key: entry
            if key in _AS_IS or key.startswith("x-")
            else Entry(entry.key, self._node(entry.node, (key,), ()))
            for key, entry in root.value.items()
            if key != VARS
        }
        return replace(root, value=entries)

    def _node(self, node: Node, path: Path, seen: tuple[str, ...]) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            raise error_at(node.position, path[:8], f"more than {MAX_NODES} values when filled in")
        if isinstance(node.value, dict):
            entries = {
                key: Entry(entry.key, self._node(entry.node, (*path, key), seen))
                for key, entry in node.value.items()
            }
            return replace(node, value=entries)
        if isinstance(node.value, list):
            items = [self._node(one, (*path, i), seen) for i, one in enumerate(node.value)]
            return replace(node, value=items)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        try:
            return self._text(node, node.value, path, seen)
        except _Unfilled as error:
            if seen:  # inside a variable: told where it is used
                raise
            self._report(node, path, error.message, error.hint)
            return replace(node, value=None)

    def _text(self, node: Node, text: str, path: Path, seen: tuple[str, ...]) -> Node:
        whole = _REFERENCE.fullmatch(text)
        if whole is not None:
            found = self._value(node, whole[1], path, seen)
            if found is None:
                return node
            if isinstance(found.value, int | float) and self.is_text(path):
                return replace(found, value=_written(found.value))
            return found
        pieces, end = list[str](), 0
        for match in _REFERENCE.finditer(text):
            pieces.append(text[end : match.start()])
            end = match.end()
            found = self._value(node, match[1], path, seen)
            if found is None:
                pieces.append(match[0])
            elif isinstance(found.value, (dict, list)) or found.value is None:
                what = "a mapping" if isinstance(found.value, dict) else "a list"
                what = "nothing" if found.value is None else what
                raise _Unfilled(f"{shorten(match[0])} is {what}, which a text cannot hold")
            else:
                pieces.append(_written(found.value))
        pieces.append(text[end:])
        if sum(map(len, pieces)) > MAX_TEXT:
            raise _Unfilled(f"a text of more than {MAX_TEXT} characters when filled in")
        return replace(node, value="".join(pieces))

    def _value(self, node: Node, inside: str, path: Path, seen: tuple[str, ...]) -> Node | None:
        """What a reference names; None for those that are filled in elsewhere."""
        if inside.startswith("vars."):
            return self._variable(inside.removeprefix("vars."), path, seen)
        if inside.startswith("env:"):
            return self._environment(node, inside, path)
        return None  # ${package:…} and what is unknown: tapml.recipe.resolve

    def _variable(self, name: str, path: Path, seen: tuple[str, ...]) -> Node:
        if name in seen:
            chain = " → ".join((*seen[seen.index(name) :], name))
            raise _Unfilled(f"variables stand for each other: {chain}")
        if (known := self._values.get(name)) is not None:
            return self._counted(known, path)
        section = self.tree.child(VARS)
        found = None if section is None else find(section, tuple(name.split(".")))
        if found is None:
            names = list(section.value) if section and isinstance(section.value, dict) else []
            hint = nearest(name, names, noun="variables")
            raise _Unfilled(f"unknown variable {shorten(name)}", hint)
        value = self._node(found, (VARS, *name.split(".")), (*seen, name))
        self._values[name] = value
        return value

    def _counted(self, node: Node, path: Path) -> Node:
        self._count += sum(1 for _ in node.nodes())
        if self._count > MAX_NODES:
            raise error_at(node.position, path[:8], f"more than {MAX_NODES} values when filled in")
        return node

    def _environment(self, node: Node, inside: str, path: Path) -> Node:
        match = _ENV.match(inside)
        if match is None:
            message = (
                f"{shorten('${' + inside + '}')} does not have the form ${{env:NAME:-default}}"
            )
            raise _Unfilled(message)
        name = match["name"]
        if mask.is_secret_name(name):
            raise _Unfilled(f"{name} holds a secret, which no recipe may", mask.HINT)
        if name not in self.allowed and not name.startswith(FREE_PREFIX):
            hint = (
                f"list it in workflows.yaml (engine: {{env: [{name}]}}), or name it {FREE_PREFIX}…"
            )
            raise _Unfilled(f"recipes may not read the variable {name}", hint)
        value = self.environ.get(name)
        if value is None and match["default"] is None:
            hint = f"set it, or give a default: ${{env:{name}:-…}}"
            raise _Unfilled(f"the environment has no variable {name}", hint)
        text = match["value"] if value is None else value
        if mask.is_secret(text):
            message = f"the value of {name} looks like a secret, which no recipe may hold"
            raise _Unfilled(message, mask.HINT)
        if len(text) > MAX_TEXT or not text.isprintable():
            raise _Unfilled(f"the value of {name} is no line of text")
        self.used[name] = text
        try:
            return replace(node, value=text if self.is_text(path) else scalar(text))
        except ValueError as error:
            raise _Unfilled(f"the value of {name} is {error}") from error

    def _report(self, node: Node, path: Path, message: str, hint: str = "") -> None:
        self.errors.append(error_at(node.position, path, message, hint))
        self.broken.append(path)


def _written(value: str | int | float) -> str:
    """A scalar as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class _Unfilled(Exception):
    """Why a reference cannot be filled in; told at the text that it stands in."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
