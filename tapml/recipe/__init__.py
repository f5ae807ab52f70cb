"""A recipe: its text, checked against what the stages declare, with the place of every field."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from .. import mask
from .. import target as targets
from ..errors import EnvironmentalError, RecipeError, RecipeErrors
from ..registry import Registry, installed
from ..requirements import Requires
from ..stage import File, Frozen, PythonFunction, PythonRef, SectionT, Target
from . import compose, loader, matrix, resolve, text
from .editor import json_schema
from .positions import Node, Position, dotted, find, locate, path_of
from .positions import Path as FieldPath
from .schema import HEAD_KEYS, NOTE, VERSION, GateFields, Gates, Head, Schema
from .schema import compose as compose_schema
from .validate import validate
from .variables import Variables

__all__ = ["Gates", "Recipe", "json_schema", "load", "load_all"]
_WORKFLOWS = "workflows.yaml"  # marks the folder that recipes may extend one another in
_ENV, _TARGET = f"{NOTE}env", f"{NOTE}target"  # notes that the resolved recipe gets
_OF_CPU = ("target.mcpu", "target.mtriple")  # given by the preset
_OF_MACHINE = ("target.cores", "target.device.threads")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Recipe:
    """A recipe that holds what its schema demands. Satisfies `tapml.stage.Recipe`.

    path:     the file, absolute
    head:     version, name, description, workflow, tags, requires
    sections: the sections that the recipe has, each an instance of the composed model
    tree:     the composed values with their places; `data` is the same as plain data
    registry: the stages that it was checked against
    label:    what tells it from the other recipes of its matrix, short; else empty
    point:    the matrix's values of this recipe, by dotted field
    reads:    the files it was composed from, its own first
    env_used: variables of the environment that it read, with their values
    """

    path: Path
    head: Head
    target: Target
    sections: dict[str, Frozen]
    tree: Node = field(repr=False)
    schema: Schema = field(repr=False)
    registry: Registry = field(repr=False)
    label: str = ""
    point: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reads: tuple[Path, ...] = ()
    env_used: Mapping[str, str] = field(default_factory=dict[str, str])

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
    def requires(self) -> Requires:
        return self.head.requires

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
                resolve.expand_glob(one, self._folder(reads_spot), may_be_absolute=absolute)
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

    def origin(self, field: str) -> str:
        """What gave a dotted field its value: `file:line`, the `--set`, `default`, or for what only
        the machine tells `this machine`.
        """
        node = find(self.tree, path_of(self.tree, field))
        if node is not None:
            return node.position.origin
        if field.startswith(f"{_ENV}."):
            return "the environment"
        if field in _OF_CPU or field.startswith(f"{_TARGET}."):
            preset = find(self.tree, ("target", "preset"))
            return "this machine" if preset is None else f"preset, {preset.position.origin}"
        return "this machine" if field in _OF_MACHINE else "default"

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
        return text.dump(self.resolved())

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default and the full target, as plain data; in notes, what it read
        of the environment and what the target's CPU has.
        """
        head = self.head.model_dump(mode="json", exclude_defaults=True)
        notes = {key: value for key, value in self.data.items() if key.startswith(NOTE)}
        if self.env_used:
            notes[_ENV] = dict(self.env_used)
        notes[_TARGET] = {
            "features": " ".join(self.target.features),
            "vector_bits": self.target.vector_bits,
            "vector_registers": self.target.vector_registers,
        }
        return {**head, "workflow": self.workflow, **self._resolved(), **notes}

    def explained_yaml(self) -> str:
        """`resolved_yaml` with a comment on each line that tells where its value came from."""
        return text.annotated(self.resolved_yaml(), self.origin)

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
        return resolve.locate(path, self._folder(field), may_be_absolute=absolute)

    def _folder(self, field: str) -> Path:
        """The folder that a path is relative to: that of the file which the path stands in."""
        source = locate(self.tree, path_of(self.tree, field)).source
        return source.folder or self.path.resolve().parent

    def _is_override(self, field: str) -> bool:
        return locate(self.tree, path_of(self.tree, field)).source.is_override

    def _at(self, field: str, find: Callable[[], _T]) -> _T:
        try:
            return find()
        except RecipeError as error:
            raise self.locate(replace(error, field=error.field or field)) from error


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
        hint = f"fix the fields of the matrix by --set, for instance {found[0].label}"
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
    loaded: list[_Loaded] = []
    missing: list[EnvironmentalError] = []
    seen: list[Any] = []
    for point in matrix.points(tree):
        own = compose.without(tree, matrix.MATRIX)
        root = _overridden(point.apply(own), overrides) if point.values else own
        if (data := root.data) in seen:
            continue
        seen.append(data)
        try:
            loaded.append(_load(root, composed, registry, env))
        except RecipeErrors as error:
            errors += error.errors
        except RecipeError as error:
            errors.append(error)
        except EnvironmentalError as error:
            missing.append(error)
        else:
            names = list(point.values)
            loaded[-1].point.update({name: matrix.value_at(root, name) for name in names})
    if errors:
        raise loader.combined(errors)
    if missing:
        raise missing[0]
    labels = matrix.labels([one.point for one in loaded])
    return tuple(
        Recipe(
            path=path.resolve(),
            head=one.head,
            target=_target(one.sections, one.tree),
            sections=one.sections,
            tree=one.tree,
            schema=one.schema,
            registry=registry,
            label=label,
            point=one.point,
            reads=tuple(composed.files),
            env_used=one.env_used,
        )
        for one, label in zip(loaded, labels, strict=True)
    )


@dataclass(frozen=True)
class _Loaded:
    """A recipe before it has its label."""

    head: Head
    sections: dict[str, Frozen]
    tree: Node
    schema: Schema
    env_used: dict[str, str]
    point: dict[str, Any] = field(default_factory=dict[str, Any])


def _load(
    written: Node, composed: compose.Composed, registry: Registry, env: Sequence[str]
) -> _Loaded:
    """One point of a recipe, checked. Raises: RecipeError, EnvironmentalError."""
    variables = Variables(written, env, os.environ)
    tree = variables.filled()
    schema = compose_schema(registry)
    assert isinstance(tree.value, dict)
    fields = {key: entry for key, entry in tree.value.items() if not key.startswith(NOTE)}
    checked = replace(tree, value=fields)
    empty = [key for key in schema.sections if key in fields and fields[key].node.value is None]
    empty = [key for key in empty if (key,) not in variables.broken]
    errors = [*variables.errors, *(_empty(key, fields[key].key) for key in empty)]
    broken: list[FieldPath] = [*composed.document.broken, *variables.broken]
    broken += [(key,) for key in empty]
    root, wrong = validate(schema.root, checked, broken=broken)
    references, missing = _wrong_references(checked)
    if errors := _independent([*errors, *wrong], [*_secrets(written), *references]):
        raise RecipeErrors(errors=tuple(errors))  # the caller combines those of all points
    if composed.document.errors:
        raise RecipeErrors()  # they are told by the caller, once
    if missing:
        raise missing[0]
    assert root is not None
    head = Head(**{key: getattr(root, key) for key in HEAD_KEYS})
    sections = {
        name: cast(Frozen, getattr(root, name))
        for name in schema.sections
        if getattr(root, name) is not None
    }
    return _Loaded(head, sections, tree, schema, variables.used)


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


def _secrets(tree: Node) -> Iterator[RecipeError]:
    """An error for each text that looks like a key or a password."""
    for path, node in tree.nodes():
        if isinstance(node.value, str) and mask.is_secret(node.value):
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
