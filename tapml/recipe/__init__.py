"""A recipe: its text, checked against what the stages declare, with the place of every field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from .. import target as targets
from ..errors import EnvironmentalError, RecipeError, RecipeErrors
from ..registry import Registry, installed
from ..stage import File, Frozen, PythonFunction, PythonRef, SectionT, Target
from . import loader, resolve, text
from .positions import Node, Position, dotted, find, locate, path_of
from .schema import HEAD_KEYS, NOTE, VERSION, GateFields, Gates, Head, Schema, compose, json_schema
from .validate import validate

__all__ = ["Gates", "Recipe", "json_schema", "load"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Recipe:
    """A recipe that holds what its schema demands. Satisfies `tapml.stage.Recipe`.

    path:     the file, absolute
    head:     version, name, description, workflow, tags
    sections: the sections that the recipe has, each an instance of the composed model
    tree:     the text's values with their places; `data` is the same as plain data
    registry: the stages that it was checked against
    """

    path: Path
    head: Head
    target: Target
    sections: dict[str, Frozen]
    tree: Node = field(repr=False)
    schema: Schema = field(repr=False)
    registry: Registry = field(repr=False)

    @property
    def name(self) -> str:
        return self.head.name

    @property
    def workflow(self) -> str:
        return self.head.workflow

    @property
    def tags(self) -> dict[str, str]:
        return self.head.tags

    @property
    def gates(self) -> Gates:
        return self.section("validation", GateFields).gates

    @property
    def data(self) -> dict[str, Any]:
        """The recipe as plain data, `--set` applied, defaults not filled in."""
        return self.tree.data

    def has(self, section: str) -> bool:
        return section in self.sections

    def section(self, name: str, cls: type[SectionT]) -> SectionT:
        found = self.sections.get(name)
        if found is None:
            return self._defaults(name, cls)
        if not isinstance(found, cls):
            raise TypeError(f"section {name!r} has no fields of {cls.__qualname__}")
        return found

    def file(self, path: str, *, field: str) -> File:
        located = self._at(field, lambda: self._located(path, field))
        return self._at(field, lambda: resolve.file(located, path))

    def python(self, ref: PythonRef, *, field: str) -> PythonFunction:
        base = field.removesuffix(".python")
        spot = self._first(f"{base}.python", field)
        reads_spot = self._first(f"{base}.reads", spot)

        def read() -> dict[str, Path]:
            absolute = self._is_override(reads_spot)
            globs = [
                resolve.expand_glob(one, self.path.parent, may_be_absolute=absolute)
                for one in ref.reads
            ]
            return {name: path for found in globs for name, path in found.items()}

        path = ref.python.rpartition(":")[0]
        located = self._at(spot, lambda: self._located(path, spot))
        reads = self._at(reads_spot, read)
        return self._at(spot, lambda: resolve.python(ref, located, path, reads))

    def where(self, field: str) -> str:
        """`file:line:col` of a dotted field, or of its nearest ancestor."""
        return locate(self.tree, path_of(self.tree, field)).where

    def locate(self, error: RecipeError) -> RecipeError:
        """The error with the place and the text of its field, unless it has them."""
        if isinstance(error, RecipeErrors):
            return RecipeErrors(errors=tuple(self.locate(one) for one in error.errors))
        if error.where or not error.field:
            return error
        place = locate(self.tree, path_of(self.tree, error.field))
        return replace(error, where=place.where, excerpt=place.excerpt)

    def dotted(self) -> dict[str, str | int | float | bool]:
        """All fields by dotted name, defaults included; lists as JSON; what is None is left out."""
        return text.flat(self._resolved())

    def resolved_yaml(self) -> str:
        """The recipe with every default and the full target, as YAML that loads again."""
        head = {key: value for key, value in self.head.model_dump(mode="json").items() if value}
        notes = {key: value for key, value in self.data.items() if key.startswith(NOTE)}
        full = self.target.model_dump(mode="json")
        note = {key: full[key] for key in ("features", "vector_bits", "vector_registers")}
        return text.dump({**head, **self._resolved(), **notes, f"{NOTE}target": note})

    def _resolved(self) -> dict[str, Any]:
        """All sections as plain data, the target in full.

        A section that was left out is there when none of its fields is required.
        """
        sections: dict[str, Any] = {}
        for name, cls in self.schema.sections.items():
            try:
                model = self.sections.get(name) or self._defaults(name, cls)
            except RecipeError:  # it has required fields, so that leaving it out means something
                continue
            sections[name] = _without_none(model.model_dump(mode="json"))
        full = self.target.model_dump(mode="json")
        sections["target"] = {
            key: full[key] for key in ("kind", "mcpu", "mtriple", "cores", "device") if full[key]
        }
        return sections

    def _defaults(self, name: str, cls: type[SectionT]) -> SectionT:
        """A section that was left out, as one room's own model sees it."""
        try:
            return cls()
        except ValidationError as error:
            missing = ", ".join(str(one["loc"][0]) for one in error.errors())
            raise RecipeError(
                where=self.tree.position.where,
                field=name,
                message="required section is missing",
                hint=f"it needs: {missing}",
            ) from error

    def _first(self, *fields: str) -> str:
        """The first of some fields that the recipe has, else the last."""
        held = (one for one in fields if find(self.tree, path_of(self.tree, one)) is not None)
        return next(held, fields[-1])

    def _located(self, path: str, field: str) -> resolve.Located:
        absolute = self._is_override(field)
        return resolve.locate(path, self.path.parent, may_be_absolute=absolute)

    def _is_override(self, field: str) -> bool:
        return locate(self.tree, path_of(self.tree, field)).source.is_override

    def _at(self, field: str, find: Callable[[], _T]) -> _T:
        try:
            return find()
        except RecipeError as error:
            raise self.locate(replace(error, field=error.field or field)) from error


def load(path: Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """The recipe of a file, with each `a.b=value` of `overrides` applied.

    Raises: RecipeError for every mistake at once, each at its place; EnvironmentalError when a
    package that the recipe points at is not installed.
    """
    registry = registry or installed()
    document = text.read(path)
    tree = document.root
    for one in overrides:
        tree = loader.override(tree, one)
    if error := _wrong_version(tree):
        raise error
    schema = compose(registry)
    assert isinstance(tree.value, dict)
    fields = {key: entry for key, entry in tree.value.items() if not key.startswith(NOTE)}
    checked = replace(tree, value=fields)
    empty = [key for key in schema.sections if key in fields and fields[key].node.value is None]
    errors = [*document.errors, *(_empty(key, fields[key].key) for key in empty)]
    broken = [*document.broken, *((key,) for key in empty)]
    root, wrong = validate(schema.root, checked, broken=broken)
    references, missing = _wrong_references(checked)
    if errors := _independent([*errors, *wrong], references):
        raise loader.combined(errors)
    if missing:
        raise missing[0]
    assert root is not None
    head = Head(**{key: getattr(root, key) for key in HEAD_KEYS})
    sections = {
        name: cast(Frozen, getattr(root, name))
        for name in schema.sections
        if getattr(root, name) is not None
    }
    full = _target(sections, tree)
    return Recipe(path.resolve(), head, full, sections, tree, schema, registry)


def _wrong_version(tree: Node) -> RecipeError | None:
    """An unknown version is the only error: what else the text says is another language."""
    version = tree.child("version")
    if version is None or version.value == VERSION or not isinstance(version.value, int):
        return None
    message = f"this tapml reads version {VERSION} of the recipe language, not {version.value}"
    hint = "pip install --upgrade tapml" if version.value > VERSION else f"write version: {VERSION}"
    return loader.error_at(version.position, ("version",), message, hint)


def _empty(section: str, place: Position) -> RecipeError:
    hint = "give it fields, or leave it out"
    return loader.error_at(place, (section,), "the section is empty", hint)


def _independent(errors: list[RecipeError], more: list[RecipeError]) -> list[RecipeError]:
    """All errors, without those of `more` that are about a field (or below one) of `errors`."""
    fields = {error.field for error in errors}

    def is_new(name: str) -> bool:
        parts = name.split(".")
        return not any(".".join(parts[:n]) in fields for n in range(1, len(parts) + 1))

    return [*errors, *(error for error in more if is_new(error.field))]


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


def _target(sections: dict[str, Frozen], tree: Node) -> Target:
    section = sections.get("target") or targets.TargetSection()
    assert isinstance(section, targets.TargetSection)
    try:
        return targets.resolve(section)
    except RecipeError as error:
        place = locate(tree, path_of(tree, error.field))
        raise replace(error, where=place.where, excerpt=place.excerpt) from error


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _without_none(one) for key, one in items if one is not None}
    if isinstance(value, list):
        return [_without_none(one) for one in cast("list[Any]", value)]
    return value
