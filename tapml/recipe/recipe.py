"""A recipe that was checked, with the place of every field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from ..errors import RecipeError, RecipeErrors
from ..registry import Registry
from ..requirements import Requires
from ..stage import File, Folder, Frozen, PythonFunction, PythonRef, SectionT, Target
from . import resolve, text
from .positions import Node, find, locate, path_of
from .schema import NOTE, GateFields, Gates, Head, Schema

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

    def has(self, path: str) -> bool:
        section, _, field = path.partition(".")
        found = self.sections.get(section)
        return found is not None and (not field or bool(getattr(found, field)))

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

    def folder(self, path: str, *, names: Sequence[str], field: str) -> Folder:
        located = self._at(field, lambda: self._located(path, field))
        return self._at(field, lambda: resolve.folder(located, path, names))

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


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _without_none(one) for key, one in items if one is not None}
    if isinstance(value, list):
        return [_without_none(one) for one in cast("list[Any]", value)]
    return value
