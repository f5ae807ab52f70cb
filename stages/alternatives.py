"""Alternatives as artifacts: other implementations of a region, each with the arguments of its
kernel.

alternatives/index.json   one row per alternative: id, region, kernel, args, format, counts
alternatives/<id>.json    TVM JSON of an IRModule that holds the scheduled kernel
alternatives/libraries/   shims and shared libraries that kernels of the kind `library` call
structure/structure.npz   indptr and indices by `<alternative id>/<name>`; values are packed when
needed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from . import codec


@dataclass(frozen=True)
class Packed:
    """An array that a kernel reads beside the region's inputs."""

    name: str
    value: np.ndarray


@dataclass(frozen=True)
class Alternative:
    """One implementation of a region's whole signature, epilogue included."""

    id: str
    region: str
    kernel: str
    row: Mapping[str, Any]
    structure: Mapping[str, np.ndarray]
    file: Path

    @property
    def kind(self) -> Literal["sparse", "library"]:
        return cast("Literal['sparse', 'library']", self.row.get("kind", "sparse"))

    @property
    def libraries(self) -> tuple[Path, ...]:
        """Shared libraries that the kernel needs, the shim that it calls first."""
        return tuple(self.file.parent / "libraries" / name for name in self.row.get("files", ()))

    def module(self) -> Any:
        """The IRModule with the scheduled kernel."""
        return codec.load_module(self.file)

    def arguments(self, weights: Mapping[str, np.ndarray]) -> list[int | Packed]:
        """Arguments in order, the output left out: numbers of the region's inputs, or packed
        arrays.

        Values are packed from the source weights.
        """
        found: list[int | Packed] = []
        for arg in self.row["args"]:
            if "input" in arg:
                found.append(arg["input"])
            elif "structure" in arg:
                own = arg["structure"].removeprefix(f"{self.id}/")
                found.append(Packed(arg["structure"], self.structure[own]))
            else:
                from .packing import pack_values

                value = pack_values(weights[arg["values"]], dict(self.structure), arg)
                found.append(Packed(f"{self.id}/values", value))
        return found


def load(alternatives: Path, structure: Path) -> dict[str, Alternative]:
    """Alternatives by id, from the two artifacts that sparsetir and libraries write. Modules are
    read when asked for.
    """
    arrays = codec.read_npz(structure / "structure.npz")
    found = {}
    for row in codec.read_json(alternatives / "index.json")["alternatives"]:
        prefix = f"{row['id']}/"
        own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        found[row["id"]] = Alternative(
            row["id"], row["region"], row["kernel"], row, own, alternatives / f"{row['id']}.json"
        )
    return found
