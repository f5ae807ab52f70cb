"""Folders of Hugging Face models: config.json, and weights in safetensors, whole or in shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import safetensors
from .bounded import Tensor, inside, mapping, opened, parse_json, refuse, shown, text

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = "model[-_.]*.safetensors"  # what an index may name; others are fetched and keyed by nobody
_MAX_JSON = 64 << 20  # bytes
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Folder:
    """What a model's folder holds.

    tensors:      by name; `file` is the shard that holds it
    shards:       the files of the weights
    remote_code:  classes that the repository's own Python would give (`auto_map`); none is loaded
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    shards: tuple[Path, ...]
    remote_code: tuple[str, ...]


def read(folder: Path) -> Folder:
    """The configuration and the headers of the weights. Raises: StageError, also for pickles."""
    config = read_config(folder)
    tensors: dict[str, Tensor] = {}
    if (folder / WEIGHTS).exists():  # it goes first in transformers too
        tensors |= safetensors.read(inside(folder, WEIGHTS)).tensors
        files = (folder / WEIGHTS,)
    elif (folder / INDEX).exists():
        shards = _shards(folder)
        if lacking := missing(folder):
            what = (
                f"{len(lacking)} of {len(shards)} shards are missing: {shown(', '.join(lacking))}"
            )
            refuse(folder, what, hint="the download is not complete: start it again")
        for name, wanted in shards.items():
            header = safetensors.read(inside(folder, name))
            if absent := wanted - header.tensors.keys():
                what = f"the index places {shown(min(absent))} in it, and it is not there"
                refuse(header.path, what)
            if twice := tensors.keys() & header.tensors.keys():
                refuse(header.path, f"{shown(min(twice))} lies in two shards")
            tensors |= header.tensors
        files = tuple(folder / name for name in shards)
    else:
        pickles = sorted(one.name for pattern in _PICKLES for one in folder.glob(pattern))
        what = f"it has no {WEIGHTS}"
        if pickles:
            what += f", only {shown(', '.join(pickles))}: pickles, which may run code"
        hint = (
            "where you trust them: transformers' Model.from_pretrained(…).save_pretrained(folder)"
        )
        refuse(folder, what, hint=hint)
    return Folder(folder, config, tensors, files, _remote_code(folder, config))


def missing(folder: Path) -> list[str]:
    """Names of files of weights that should be there, and are not. Raises: StageError."""
    if (folder / WEIGHTS).exists():
        return []
    if not (folder / INDEX).exists():
        return [WEIGHTS]
    return [name for name in _shards(folder) if not inside(folder, name).exists()]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, which must name the kind of model. Raises: StageError."""
    config = read_json(folder, CONFIG)
    if not text(folder / CONFIG, config.get("model_type"), where="model_type"):
        refuse(folder / CONFIG, "it is empty", where="model_type")
    return config


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """An object from a JSON file of the folder. Raises: StageError."""
    path = inside(folder, name)
    with opened(path) as (source, size):
        if size > _MAX_JSON:
            refuse(path, f"{size} bytes of JSON are more than any model has")
        data = source.read(_MAX_JSON)
    return mapping(path, parse_json(path, data, where=name), where=name)


def _shards(folder: Path) -> dict[str, set[str]]:
    """File of weights → names of its tensors, by the index."""
    path = folder / INDEX
    places = mapping(path, read_json(folder, INDEX).get("weight_map"), where="weight_map")
    found: dict[str, set[str]] = {}
    for tensor, value in places.items():
        file = text(path, value, where=f"weight_map: {shown(tensor)}")
        where = f"weight_map: {shown(tensor)}"
        if not file.endswith(".safetensors"):
            refuse(path, f"{shown(file)} is no safetensors file", where=where)
        inside(folder, file)
        if not fnmatchcase(file, SHARDS) or "/" in file:
            hint = "name the file so, in the index too: model-00001-of-00002.safetensors"
            refuse(path, f"{shown(file)} is no {SHARDS} beside it", where=where, hint=hint)
        found.setdefault(file, set()).add(tensor)
    if not found:
        refuse(path, "it is empty", where="weight_map")
    return found


def _remote_code(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    classes = mapping(folder / CONFIG, config.get("auto_map", {}), where="auto_map")
    return tuple(sorted(str(one) for one in classes.values()))
