"""A row of the zoo through the whole line, and how far its library is from its source."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
from zoo import models
from zoo.rows import BATCHES, Row

import tapml


def recipe(row: Row, folder: Path) -> Path:
    """The recipe of a row, beside its model."""
    data = {
        "version": 1,
        "name": f"zoo-{row.name.replace('_', '-')}",
        "workflow": "deploy",
        "model": {
            "source": row.source,
            **models.save(row, folder),
            "inputs": {
                name: {
                    "shape": list(one.shape),
                    "dtype": "float32" if one.below is None else "int64",
                }
                for name, one in row.inputs.items()
            },
            "dims": {name: {"min": low, "max": high} for name, (low, high) in row.dims.items()},
        },
        "target": {"preset": "cpu"},
        "tuning": {"trials": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def sizes_of(row: Row) -> list[dict[str, int]]:
    """Sizes to run: every batch with every length of each dynamic dim."""
    names = [name for name in row.dims if name != "batch"]
    turns = range(len(row.lengths))
    lengths = [dict(zip(names, np.roll(row.lengths, -k), strict=False)) for k in turns]
    batches = [{"batch": size} for size in BATCHES] if "batch" in row.dims else [{}]
    every = [{**batch, **length} for batch, length in product(batches, lengths if names else [{}])]
    return [{name: int(size) for name, size in one.items()} for one in every]


def run(row: Row, folder: Path, store: Path) -> Path:
    """The bundle of a row; what the store has is not built again."""
    result = tapml.run(recipe(row, folder), to=["codegen"], store=store, track="off")
    assert result.bundle is not None
    return Path(result.bundle)


def errors(row: Row, bundle: Path) -> dict[str, float]:
    """Error at each size, relative to the range of the source's output there; NaN is infinite."""
    model, library = models.build(row), tapml.load(bundle)
    found: dict[str, float] = {}
    for seed, sizes in enumerate(sizes_of(row)):
        arrays = models.inputs(row, sizes, seed)
        wanted = models.answer(row, model, arrays)
        (given,) = library(**arrays).values()
        assert given.shape == wanted.shape
        difference = np.abs(given.astype(np.float64) - wanted).max() / _range(wanted)
        found[json.dumps(sizes)] = float(difference) if np.isfinite(difference) else float("inf")
    return found


def _range(wanted: np.ndarray) -> float:
    """Between the smallest and the largest; of a single number its size."""
    return float(np.ptp(wanted) if wanted.size > 1 else np.abs(wanted).max())
