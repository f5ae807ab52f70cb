"""The inputs that the reference artifact holds, case by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from . import codec


def read(folder: Path) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Each case as its row (id, kind, sizes, after) and its arrays by the names of the inputs."""
    values = codec.read_npz(folder / "inputs.npz")
    rows = codec.read_json(folder / "cases.json")
    return [(row, {name: values[key] for name, key in row["inputs"].items()}) for row in rows]


def peer(folder: Path) -> tuple[str, Path | None]:
    """What ran the source, and the model that it can be timed with, if it can."""
    meta = codec.read_json(folder / "meta.json")
    return meta["peer"] or "", folder / meta["model"] if meta["model"] else None
