"""The recipes that a file makes, checked against what the stages declare."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from .. import mask
from .. import target as targets
from ..errors import EnvironmentalError, RecipeError, RecipeErrors
from ..registry import Registry, installed
from ..stage import Frozen, Target
from . import compose, loader, matrix, resolve
from .positions import Node, Position, dotted, locate, path_of, shorten
from .positions import Path as FieldPath
from .recipe import Recipe
from .schema import HEAD_KEYS, NOTE, VERSION, Head, Schema
from .schema import compose as compose_schema
from .validate import takes_text, validate
from .variables import Variables

_WORKFLOWS = "workflows.yaml"  # marks the folder that recipes may extend one another in


def load(
    path: Path,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    *,
    env: Sequence[str] = (),
) -> Recipe:
    """The one recipe of a file, as in `load_all`.

    Raises: RecipeError also when its matrix makes several.
    """
    found = load_all(path, overrides, registry, env=env)
    if len(found) > 1:
        message = f"the matrix makes {len(found)} recipes, and this takes one"
        values = " ".join(
            f"--set {shlex.quote(f'{name}={json.dumps(value)}')}"
            for name, value in found[0].point.items()
        )
        hint = f"fix the fields of the matrix, for instance {values}"
        raise RecipeError(where=str(path), field=matrix.MATRIX, message=message, hint=hint)
    return next(iter(found))


def load_all(
    path: Path,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    *,
    env: Sequence[str] = (),
) -> tuple[Recipe, ...]:
    """The recipes of a file: one, or one for each point of its matrix.

    What it `extends` is laid under it, then `--set a.b=value` of `overrides` over it, then a
    point's values; an override of a field that the matrix varies holds for all points, and those
    that become equal are one. `env` names variables of the environment that it may read.

    Raises: RecipeError for every mistake at once, each at its place; EnvironmentalError when a
        package that the recipe points at is not installed.
    """
    registry = registry or installed()
    composed = compose.read(path, _root(path))
    tree = _overridden(composed.document.root, overrides)
    if error := _wrong_version(tree):
        raise error
    errors = list(composed.document.errors)
    made: list[Recipe] = []
    missing: list[EnvironmentalError] = []
    seen: list[Any] = []
    for point in matrix.points(tree):
        root = _overridden(point.apply(tree), overrides) if point.values else tree
        root = compose.without(root, matrix.MATRIX)
        if (data := root.data) in seen:
            continue
        seen.append(data)
        try:
            found = _checked(path, root, composed, registry, env)
        except RecipeErrors as error:
            errors += error.errors
        except RecipeError as error:
            errors.append(error)
        except EnvironmentalError as error:
            missing.append(error)
        else:
            values = {name: matrix.value_at(root, name) for name in point.values}
            made.append(replace(found, point=values))
    if errors:
        raise loader.combined(errors)
    if missing:
        raise missing[0]
    labels = matrix.labels([one.point for one in made])
    return tuple(replace(one, label=label) for one, label in zip(made, labels, strict=True))


def _checked(
    path: Path, written: Node, composed: compose.Composed, registry: Registry, env: Sequence[str]
) -> Recipe:
    """The recipe of one point. Raises: RecipeError, EnvironmentalError."""
    schema = compose_schema(registry)

    def is_text(path: FieldPath) -> bool:
        return takes_text(schema.root, written, path)

    variables = Variables(written, env, os.environ, is_text)
    tree = variables.filled()
    assert isinstance(tree.value, dict)
    fields = {key: entry for key, entry in tree.value.items() if not key.startswith(NOTE)}
    checked = replace(tree, value=fields)
    empty = [key for key in schema.sections if key in fields and fields[key].node.value is None]
    empty = [key for key in empty if (key,) not in variables.broken]
    broken: list[FieldPath] = [*composed.document.broken, *variables.broken]
    broken += [(key,) for key in empty]
    root, wrong = validate(schema.root, checked, broken=broken)
    target, wrong_target = _target(checked, schema)
    references, missing = _wrong_references(checked)
    hollow = [_empty(key, fields[key].key) for key in empty]
    groups = variables.errors, _secrets(written), hollow, wrong, wrong_target, references
    if errors := _independent(*groups):
        raise RecipeErrors(errors=tuple(errors))  # the caller combines those of all points
    if composed.document.errors:
        raise RecipeErrors()  # they are told by the caller, once
    if missing:
        raise missing[0]
    assert root is not None
    assert target is not None
    return Recipe(
        path=path.resolve(),
        head=Head(**{key: getattr(root, key) for key in HEAD_KEYS}),
        target=target,
        sections={
            name: cast(Frozen, getattr(root, name))
            for name in schema.sections
            if getattr(root, name) is not None
        },
        tree=tree,
        schema=schema,
        registry=registry,
        reads=tuple(composed.files),
        env_used=variables.used,
    )


def _target(tree: Node, schema: Schema) -> tuple[Target | None, list[RecipeError]]:
    """The target in full, or what is wrong with it beside what its model says."""
    node, model = tree.child("target"), schema.sections["target"]
    section = model() if node is None else validate(model, node)[0]
    if section is None:
        return None, []
    assert isinstance(section, targets.TargetSection)
    try:
        return targets.resolve(section), []
    except RecipeError as error:
        place = locate(tree, path_of(tree, error.field))
        return None, [replace(error, where=place.where, excerpt=place.excerpt)]


def _overridden(tree: Node, overrides: Sequence[str]) -> Node:
    for one in overrides:
        tree = loader.override(tree, one)
    return tree


def _root(path: Path) -> Path:
    """The folder in which recipes may extend one another: that of the nearest workflow file."""
    folder = path.resolve().parent
    above = (one for one in (folder, *folder.parents) if (one / _WORKFLOWS).is_file())
    return next(above, folder)


def _wrong_version(tree: Node) -> RecipeError | None:
    """An unknown version is the only error: what else the text says is another language."""
    node = tree.child("version")
    if node is None:
        return None
    found = node.value
    number = found if isinstance(found, int) and not isinstance(found, bool) else 0
    if number == VERSION:
        return None
    message = f"tapml {metadata.version('tapml')} reads version {VERSION} of the recipe language"
    message += "" if found is None else f", not {shorten(node.data)}"
    hint = f"write version: {VERSION}"
    if number > VERSION:
        hint = "a newer one may read it: pip install --upgrade tapml"
    return loader.error_at(node.position, ("version",), message, hint)


def _empty(section: str, place: Position) -> RecipeError:
    hint = "give it fields, or leave it out"
    return loader.error_at(place, (section,), "the section is empty", hint)


def _independent(*groups: Iterable[RecipeError]) -> list[RecipeError]:
    """All errors, without those about a field (or below one) that an earlier group is about."""
    errors: list[RecipeError] = []
    for group in groups:
        told = {error.field for error in errors}
        for error in group:
            parts = error.field.split(".")
            if not any(".".join(parts[:n]) in told for n in range(1, len(parts) + 1)):
                errors.append(error)
    return errors


def _secrets(tree: Node) -> Iterator[RecipeError]:
    """An error for each text, or name of one, that looks like a key or a password."""
    for path, node in tree.nodes():
        texts = (one for one in (*path[-1:], node.value) if isinstance(one, str))
        if any(map(mask.is_secret, texts)):
            message, hint = "this looks like a secret, which no recipe may hold", mask.HINT
            yield loader.error_at(node.position, path, message, hint)


def _wrong_references(tree: Node) -> tuple[list[RecipeError], list[EnvironmentalError]]:
    """What is wrong with the `${…}` of a recipe, and which packages they miss."""
    errors: list[RecipeError] = []
    missing: list[EnvironmentalError] = []
    for path, node in tree.nodes():
        if path != ("description",) and isinstance(node.value, str) and "${" in node.value:
            try:
                resolve.check_references(node.value)
            except RecipeError as error:
                errors.append(loader.error_at(node.position, path, error.message, error.hint))
            except EnvironmentalError as error:
                message = f"{node.position.where}: {dotted(path)}: {error.message}"
                missing.append(replace(error, message=message))
    return errors, missing
