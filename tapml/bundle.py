"""Loads a bundle by its own `run.py`, after checking that every file is the one that was built."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import EnvironmentalError, RecipeError
from .terminal import printable

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"
_CODE = (".py", ".pyc", ".so", ".pth")  # what Python or the loader might run
_TOLD = 10  # names in a message


class Bundle(Protocol):
    """A loaded library: call it with one array per input, get one array per output."""

    def __call__(self, **arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]: ...


def load(folder: Path) -> Bundle:
    """The callable library in a bundle folder.

    Raises: RecipeError when it is no bundle; EnvironmentalError when a file is missing or is not
            the one that was built.
    """
    verify(folder)
    return cast("Bundle", module(folder, "run.py").load(folder))


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle folder. Raises: RecipeError when there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RecipeError(
            message=f"{folder} is no bundle: it has no {MANIFEST}",
            hint="`tapml runs` lists the runs; `tapml export RUN DIR` copies the bundle of one out",
        )
    try:
        found: object = json.loads(path.read_bytes())
    except ValueError as error:  # JSON's or Unicode's
        raise _damaged(folder, MANIFEST) from error
    if not isinstance(found, dict):
        raise _damaged(folder, MANIFEST)
    return cast("dict[str, Any]", found)


def verify(folder: Path) -> None:
    """Compares every file with its digest in the manifest, which must name all that can run.

    Raises: EnvironmentalError naming those that differ, lie elsewhere or were added.
    """
    files = manifest(folder).get("files")
    if not isinstance(files, dict):
        raise _damaged(folder, MANIFEST)
    known = cast("Mapping[str, object]", files)
    wrong = [name for name, digest in known.items() if _digest(folder, name) != digest]
    code = [path for path in sorted(folder.rglob("*")) if path.suffix in _CODE]
    names = [path.relative_to(folder).as_posix() for path in code]
    added = [name for name in names if name not in known and "__pycache__" not in name.split("/")]
    if wrong or added or "run.py" not in known:
        raise _damaged(folder, *(wrong + added or [MANIFEST]))


def _damaged(folder: Path, *names: str) -> EnvironmentalError:
    told = ", ".join(printable(name) for name in names[:_TOLD])
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return EnvironmentalError(
        message=f"{folder} is damaged: {told}{more} missing or not as built",
        hint="copy it out of the run again: `tapml export RUN DIR`",
    )


def _digest(folder: Path, name: str) -> str:
    """The digest of a regular file of the folder; empty when it is none."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return ""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def module(folder: Path, file: str) -> ModuleType:
    """A Python file of a bundle as a module of its own name, so that bundles of several formats
    live in one process.
    """
    path = folder / file
    name = f"tapml_bundle_{_digest(folder, path.name)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Source(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    loader.exec_module(loaded)
    return loaded


class _Source(SourceFileLoader):
    """Compiles the file that was verified; what lies in a `__pycache__` beside it is not read."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)
