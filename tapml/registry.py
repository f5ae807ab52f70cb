"""Stages by name, from the entry points of installed distributions; built-ins use the same door."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from .errors import EnvironmentalError, RecipeError, nearest
from .stage import Frozen, Stage

GROUP = "tapml.stages"
_BUILT_IN = ("tapml", "tapml_stages")
_SOURCES = (".py", ".c", ".cc", ".cpp", ".cu", ".h", ".hpp")


@dataclass(frozen=True, eq=False)
class Registry:
    """Stage classes by name, each loaded when it is first asked for."""

    loaders: Mapping[str, Callable[[], type[Stage]]]

    @classmethod
    def of(cls, *stages: type[Stage]) -> Registry:
        """A registry of classes that are at hand."""
        return cls({stage.name: lambda stage=stage: stage for stage in stages})

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.loaders))

    def stage_class(self, name: str) -> type[Stage]:
        """The class of stage `name`. Raises: RecipeError with the nearest name."""
        if name not in self.loaders:
            message = f"unknown stage {name!r}"
            raise RecipeError(message=message, hint=nearest(name, self.names(), noun="stages"))
        return self.loaders[name]()

    def sections(self) -> dict[str, list[type[Frozen]]]:
        """Recipe sections → the models of their fields, in order of the stages' names."""
        found: dict[str, list[type[Frozen]]] = {}
        for name in self.names():
            for section, model in self.stage_class(name).sections.items():
                models = found.setdefault(section, [])
                if model not in models:
                    models.append(model)
        return found


@cache
def installed() -> Registry:
    """The stages of every installed distribution."""
    points = metadata.entry_points(group=GROUP)
    return Registry({point.name: partial(_load, point) for point in points})


def stage_names() -> tuple[str, ...]:
    return installed().names()


def stage_class(name: str) -> type[Stage]:
    return installed().stage_class(name)


def sections() -> dict[str, list[type[Frozen]]]:
    return installed().sections()


def package_digest(cls: type[Stage], known: dict[str, str] | None = None) -> str | None:
    """Digest of the sources of the package that `cls` comes from; None for tapml's own stages.

    A plug-in has no fingerprint test, so that its code is in the key of its stages.
    In: `known`: digests of packages that were read already, which it adds to.
    """
    top = cls.__module__.partition(".")[0]
    if top in _BUILT_IN:
        return None
    known = {} if known is None else known
    if top not in known:
        known[top] = _digest(top)
    return known[top]


def extensions(group: str) -> dict[str, str]:
    """What other packages register in `group` → digest of the package's sources, which a stage that
    asks the group has in its key. Nothing of them is imported.
    """
    found = {one.name: one.module.partition(".")[0] for one in metadata.entry_points(group=group)}
    return {name: _digest(top) for name, top in found.items() if top not in _BUILT_IN}


def _digest(top: str) -> str:
    folders, file = _place(top)
    files = [
        (folder, path)
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in _SOURCES and path.is_file()
    ]
    if not folders and file:
        files = [(Path(file).parent, Path(file))]
    total = hashlib.sha256()
    for relative, path in sorted(
        (path.relative_to(folder).as_posix(), path) for folder, path in files
    ):
        total.update(f"{relative}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _place(top: str) -> tuple[list[Path], str | None]:
    """The folders of a package, and the file of a module; of what was not imported as well."""
    if (module := sys.modules.get(top)) is not None:
        return [Path(folder) for folder in getattr(module, "__path__", ())], module.__file__
    if (spec := find_spec(top)) is None:
        return [], None
    return [Path(folder) for folder in spec.submodule_search_locations or ()], spec.origin


@cache
def _load(point: metadata.EntryPoint) -> type[Stage]:
    try:
        found: object = point.load()
    except (ImportError, AttributeError) as error:
        owner = _owner(point)
        raise EnvironmentalError(
            message=f"stage {point.name!r} of package {owner!r} cannot be loaded: {error}",
            hint=f"pip install --force-reinstall {owner}",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        owner = _owner(point)
        message = f"{point.value} of package {owner!r} is registered as a stage and is none"
        raise EnvironmentalError(message=message, hint=f"pip uninstall {owner}")
    return found


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.module
