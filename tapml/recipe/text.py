"""A file as a document with places, and plain data as text again: YAML or flat fields."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any, cast

import yaml

from ..errors import RecipeError
from ..terminal import printable
from . import loader
from .positions import Source, dotted


def read(path: FilePath) -> loader.Document:
    """The document of a file, whose root is a mapping.

    Raises: RecipeError when there is no such file, no tree in it, or its root is no mapping.
    """
    name = str(path)
    try:
        with open(path, "rb", opener=_without_waiting) as data:
            if not stat.S_ISREG(os.fstat(data.fileno()).st_mode):
                raise RecipeError(where=printable(name), message="no regular file")
            content = data.read(loader.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else getattr(error, "strerror", None) or str(error)
        raise RecipeError(where=printable(name), message=reason) from error
    document = loader.parse(
        Source(printable(name), loader.decode(content, name), folder=path.resolve().parent)
    )
    root = document.root
    if not isinstance(root.value, dict):
        what = "the file is empty" if root.value is None else "the file holds no mapping"
        raise loader.combined([*document.errors, loader.error_at(root.position, (), what)])
    return document


def _without_waiting(name: str, flags: int) -> int:
    """Opens a pipe that nobody writes to as well, so that it can be told what it is."""
    return os.open(name, flags | os.O_NONBLOCK)


def dump(data: dict[str, Any]) -> str:
    """Plain data as YAML that `read` reads back to equal data."""
    whole = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return printable(whole, keep="\n")  # such characters stand in double quotes: an escape is one


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Scalars by dotted name; lists as JSON; None and empty mappings left out."""
    fields: dict[str, str | int | float | bool] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            fields |= flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        elif isinstance(value, list):
            fields[prefix + key] = json.dumps(value)
        elif value is not None:
            fields[prefix + key] = value
    return fields


def annotated(yaml_text: str, origin: Callable[[str], str]) -> str:
    """YAML of ours with a comment on each line that holds a value: what `origin` says of its field.

    Values that take several lines get none.
    """
    lines = yaml_text.splitlines()
    leaves = [
        (path, node)
        for path, node in loader.parse(Source("", yaml_text)).root.nodes()
        if not node.value or not isinstance(node.value, (dict, list))
    ]
    starts = [*(node.position.line for _, node in leaves), len(lines)]
    width = min(60, max((len(line) for line in lines if len(line) <= 60), default=0))
    for (path, _), line, following in zip(leaves, starts, starts[1:], strict=False):
        gap = lines[line + 1 : following]
        if all(row.rstrip().endswith(":") or row.lstrip().startswith("- ") for row in gap):
            lines[line] = f"{lines[line]:<{width}}  # {origin(dotted(path))}"
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the core schema would read as something else (`1e3`)."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = isinstance(loader.scalar(value), str)
    except ValueError:
        plain = False
    style = None if plain else "'"
    if not value.replace("\n", "").isprintable():
        style = '"'  # some are line breaks to PyYAML
    return dumper.represent_scalar(  # pyright: ignore[reportUnknownMemberType]  # stubs
        "tag:yaml.org,2002:str", value, style=style
    )


_Dumper.add_representer(str, _string)
