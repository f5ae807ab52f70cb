"""Places to start from: a copy of a shipped recipe with its files, or one drafted for a model."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from .. import shipped
from ..errors import EnvironmentalError, RecipeError
from ..inspection import Model, draft
from ..inspection.draft import is_in_hub

_OF_A_MODEL = (".json", ".safetensors", ".txt", ".model", ".jinja")
_PATH_KEYS = frozenset({"path", "python", "reads", "inputs"})


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copies a shipped recipe and the files it needs into `folder`; the recipe is the first of the
    paths.

    Raises: RecipeError when none has this name, or a file is there already; EnvironmentalError when
            it cannot be written.
    """
    source = shipped.recipe(name)
    files = [source, *needed_files(source)]
    targets = [folder / path.relative_to(source.parent) for path in files]
    if there := [str(path) for path in targets if path.exists()]:
        raise RecipeError(message=f"already there: {', '.join(there)}", hint="name another folder")
    try:
        for path, target in zip(files, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    except OSError as error:
        hint = "name a folder that can be written"
        raise EnvironmentalError(
            message=f"cannot write {folder}: {error.strerror}", hint=hint
        ) from error
    return targets


def needed_files(recipe: Path) -> list[Path]:
    """Files beside a recipe that it names (Python, what that reads, models), modules that the
    Python imports, and the schema for editors.
    """
    import yaml

    folder = recipe.parent
    found: dict[Path, None] = {}
    for text in _paths(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
        name = text.rpartition(":")[0] if ".py:" in text else text
        if name and not os.path.isabs(name) and "${" not in name:
            found |= dict.fromkeys(path for path in sorted(folder.glob(name)) if path.is_file())
    todo = list(found)
    while todo:
        for path in _local_modules(todo.pop()):
            if path not in found:
                found[path] = None
                todo.append(path)
    if (schema := folder / "recipe.schema.json").is_file():
        found[schema] = None
    return list(found)


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """The strings of a recipe that stand where paths do."""
    match value:
        case str() if key in _PATH_KEYS:
            yield value
        case dict():
            for name, one in cast("dict[str, Any]", value).items():
                yield from _paths(one, name)
        case list():
            for one in cast("list[Any]", value):
                yield from _paths(one, key)
        case _:
            pass


def _local_modules(path: Path) -> Iterator[Path]:
    """Modules beside a Python file that it imports."""
    if path.suffix != ".py":
        return
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module)):
                names = [module]
            case _:
                continue
        for name in names:
            beside = path.with_name(f"{name.partition('.')[0]}.py")
            if beside.is_file():
                yield beside


def write_draft(model: Model, folder: Path) -> list[Path]:
    """Writes a recipe to start from for a model into `folder`; it is the first of the paths.

    A recipe names files of its own folder and of installed packages: a model that is in neither is
    copied beside it.
    Raises: RecipeError for what has no graph, or when the file is there already;
            EnvironmentalError when it cannot be written.
    """
    if not draft(model):
        message = f"{model.name} is a {model.kind}: there is nothing to import from it"
        hint = "name a model: .onnx, .pt2, .gguf, or a folder of Hugging Face"
        raise RecipeError(message=message, hint=hint)
    recipe = folder / "recipe.yaml"
    place = None if is_in_hub(model) else _place(model.path.resolve(), folder.resolve())
    target = folder / model.path.resolve().name
    copies = [] if place is not None or is_in_hub(model) else _files(model, target)
    if there := [str(path) for path in (recipe, *(to for _, to in copies)) if path.exists()]:
        raise RecipeError(message=f"already there: {', '.join(there)}", hint="name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, to in copies:
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
        text = draft(model, place or target.name, folder.resolve().name)
        recipe.write_text(text, encoding="utf-8")
    except OSError as error:
        hint = "name a folder that can be written"
        raise EnvironmentalError(
            message=f"cannot write {folder}: {error.strerror}", hint=hint
        ) from error
    return [recipe, *(to for _, to in copies)]


def _place(path: Path, folder: Path) -> str | None:
    """The model as a recipe in `folder` may name it where it is; None if it may not."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix() if path != folder else "."
    for root in (Path(one).resolve() for one in sys.path if one.endswith("-packages")):
        if path.is_relative_to(root):
            package, *parts = path.relative_to(root).parts
            if parts and (Path(root, package) / "__init__.py").is_file():
                return "/".join([f"${{package:{package}}}", *parts])
    return None


def _files(model: Model, target: Path) -> list[tuple[Path, Path]]:
    """The model's files and where copies of them go: of a folder no code and no pickles."""
    path = model.path.resolve()
    if path.is_dir():
        kept = [
            one for one in sorted(path.iterdir()) if one.suffix in _OF_A_MODEL and one.is_file()
        ]
        return [(one, target / one.name) for one in kept]
    if any(one.file not in ("", path.name) for one in model.tensors):
        raise RecipeError(
            message=f"{model.name} has weights in other files, which belong beside it",
            hint=f"start the recipe there: tapml new {model.name} {path.parent}",
        )
    return [(path, target)]
