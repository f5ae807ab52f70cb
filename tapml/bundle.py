"""Loads a bundle by its own `run.py`, after checking that every file is the one that was built."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from .errors import EnvironmentalError, RecipeError

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"


class Bundle(Protocol):
    """A loaded library: call it with one array per input, get one array per output."""

    def __call__(self, **arrays: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]: ...


def load(folder: Path) -> Bundle:
    """The callable library in a bundle folder.

    Raises: RecipeError when it is no bundle; EnvironmentalError when a file is missing or is not
            the one that was built.
    """
    verify(folder)
    return cast("Bundle", _runner(folder).load(folder))


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle folder. Raises: RecipeError when there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RecipeError(
            message=f"{folder} is no bundle: it has no {MANIFEST}",
            hint="`tapml runs` lists the runs; `tapml export RUN DIR` copies the bundle of one out",
        )
    return cast("dict[str, Any]", json.loads(path.read_bytes()))


def verify(folder: Path) -> None:
    """Compares every file with its digest in the manifest. Raises: EnvironmentalError naming those
    that differ.
    """
    files = cast("Mapping[str, str]", manifest(folder).get("files") or {})
    wrong = [name for name, digest in files.items() if _digest(folder / name) != digest]
    if wrong:
        raise EnvironmentalError(
            message=f"{folder} is damaged: {', '.join(wrong)} missing or not as built",
            hint="copy it out of the run again: `tapml export RUN DIR`",
        )


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _runner(folder: Path) -> ModuleType:
    """The bundle's `run.py` as a module of its own name, so that bundles of several formats live in
    one process.
    """
    path = folder / "run.py"
    name = f"tapml_bundle_{_digest(path)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
