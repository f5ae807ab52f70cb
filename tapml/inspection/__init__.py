"""What a model holds and costs, read from its file alone: no torch, no TVM, nothing of it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import bundle as bundles
from ..errors import EnvironmentalError, RecipeError, nearest
from ..formats import huggingface
from ..formats.bounded import opened
from . import bundle, hub, onnx, pt2, weights
from .draft import draft as draft
from .model import Model as Model

TRACERS = "tapml.tracers"  # entry points: name of a kind of model → trace(folder) -> program, JSON


def inspect(name: str, sizes: Mapping[str, int] | None = None, *, trace: bool = False) -> Model:
    """What the model called `name` holds: a file, a folder, or an id of the hub's offline cache.

    In:     `sizes`: of dims, to count multiply-adds and activations at; `trace`: of a folder of
            transformers, its operators too, traced by torch without weights
    Raises: RecipeError when there is none, or it has no such dims; StageError when it is broken or
            refused; EnvironmentalError without a package that it needs.
    """
    sizes = sizes or {}
    path = find(name)
    found = _look(path, name, sizes)
    if trace:
        found = _traced(found, sizes)
    if wrong := next((one for one in sizes if one not in found.sizes), None):
        hint = nearest(wrong, list(found.sizes), noun="its dims")
        raise RecipeError(message=f"{name} has no dim {wrong!r} to give a size", hint=hint)
    return found


def find(name: str) -> Path:
    """The file or folder of a model. Raises: RecipeError when there is none."""
    path = Path(name)
    try:
        if path.is_file() or path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a NUL in it
        there = False
    if there:
        raise RecipeError(message=f"{name} is neither a file nor a folder")
    if hub.is_id(name):
        return hub.find(name)
    raise RecipeError(message=f"no file or folder {name}")


def to_data(found: Model) -> dict[str, Any]:
    """The model as JSON-able data for `--json`."""
    data = asdict(found)
    del data["tensors"]
    return {
        **data,
        "path": str(found.path),
        "parameters": found.parameters,
        "bytes": found.nbytes,
        "bytes_by_dtype": found.by_dtype,
        "memory": found.memory,
        "macs": found.macs,
        "unsupported": [one.op for one in found.unsupported],
        "recipe": draft(found),
    }


def _look(path: Path, name: str, sizes: Mapping[str, int]) -> Model:
    if path.is_dir():
        if (path / bundles.MANIFEST).is_file():
            return bundle.look(path, name)
        if not (path / huggingface.CONFIG).exists():
            message = f"{name} is no model: it has neither {huggingface.CONFIG} nor a manifest"
            raise RecipeError(message=message, hint="name the file or folder of a model")
        return weights.of_folder(path, name)
    with opened(path) as (source, _):
        head = source.read(9)
    if head[:4] == b"GGUF" or path.suffix == ".gguf":
        return weights.of_gguf_file(path, name)
    if head[:2] == b"PK" or path.suffix in (".pt2", ".pt", ".pth", ".ckpt"):
        return pt2.look(path, name, sizes)
    if head[8:] == b"{" or path.suffix == ".safetensors":
        return weights.of_safetensors(path, name)
    return onnx.look(path, name, sizes)


def _traced(found: Model, sizes: Mapping[str, int]) -> Model:
    """The model with operators, multiply-adds and activations, from a trace."""
    points = {one.name: one for one in metadata.entry_points(group=TRACERS)}
    if found.kind not in points:
        kinds = ", ".join(sorted(points)) or "nothing here"
        raise RecipeError(
            message=f"a model of kind {found.kind} is not traced", hint=f"--trace is for: {kinds}"
        )
    try:
        program = points[found.kind].load()(found.path)
    except ImportError as error:
        raise EnvironmentalError(
            message=f"--trace needs a package that is not installed: {error.name}",
            hint="pip install 'tapml[huggingface]'",
        ) from error
    return weights.with_program(found, json.loads(program), sizes)
