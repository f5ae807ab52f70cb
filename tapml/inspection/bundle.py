"""A look into a bundle, by its manifest; nothing of it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..bundle import MANIFEST, manifest
from ..formats.bounded import Tensor, listing, mapping, text, whole
from .model import Bounds, Dim, Model, Value


def look(path: Path, name: str) -> Model:
    """What a bundle takes, gives and needs. Raises: StageError, EnvironmentalError."""
    facts = manifest(path)
    where = path / MANIFEST
    inputs, outputs = (tuple(_values(where, facts, key)) for key in ("inputs", "outputs"))
    params = mapping(where, facts.get("params", {}), where="params")
    packed = whole(where, params.get("bytes", 0), where="params.bytes")
    target = mapping(where, facts.get("target", {}), where="target")
    files = mapping(where, facts.get("files", {}), where="files")
    here = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    bounds = mapping(where, facts.get("dims", {}), where="dims")
    planned, states = (
        None if facts.get(key) is None else whole(where, facts[key], where=key)
        for key in ("memory_bytes", "state_bytes")
    )
    told = {
        "kind": facts.get("kind"),
        "built from": facts.get("name"),
        "target": " ".join(str(target[key]) for key in ("kind", "mcpu") if target.get(key)),
        "threads": facts.get("threads"),
        "files": f"{len(files)}, {here / 2**20:.1f} MiB",
    }
    return Model(
        kind="bundle",
        name=name,
        path=path,
        tensors=(Tensor("packed parameters", "packed", (), packed),),
        facts={key: str(value) for key, value in told.items() if value not in (None, "")},
        inputs=inputs,
        outputs=outputs,
        dims={dim: _bounds(where, one) for dim, one in bounds.items()},
        activations=planned,
        states=states,
    )


def _values(path: Path, facts: Mapping[str, Any], key: str) -> Iterator[Value]:
    for row in listing(path, facts.get(key, []), where=key):
        one = mapping(path, row, where=key)
        dims = listing(path, one.get("shape", []), where=key)
        shape: tuple[Dim, ...] = tuple(d if isinstance(d, int | str) else str(d) for d in dims)
        name, dtype = (text(path, one.get(part), where=key) for part in ("name", "dtype"))
        yield Value(name, shape, dtype)


def _bounds(path: Path, value: object) -> Bounds:
    one = mapping(path, value, where="dims")
    low, high = (whole(path, one.get(key), where="dims") for key in ("min", "max"))
    return Bounds(low, high)
