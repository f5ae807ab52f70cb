"""What a bundle is timed on: sizes of its dims, and inputs of these sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tapml.errors import RecipeError, nearest

from .. import reference_cases

Manifest = Mapping[str, Any]
Arrays = Mapping[str, np.ndarray]
PROMPT = 64  # tokens of a prompt, where nothing else is asked for
BATCH = "batch"  # the dim that counts items, where there is one of this name


@dataclass(frozen=True)
class Case:
    """Inputs for one call. `items`: how many it deals with: rows of a batch, or tokens."""

    label: str
    sizes: Mapping[str, int]
    arrays: Arrays
    items: int
    unit: str


def sizes_of(manifest: Manifest, asked: Sequence[str]) -> list[dict[str, int]]:
    """Each size to be timed: all combinations of what is asked (`batch=1,4`), dims not named in
    their middle; without any the buckets and the middle of the dims.

    Raises: RecipeError for a dim that the bundle has not, or a size outside its bounds.
    """
    dims: Mapping[str, Mapping[str, int]] = manifest["dims"]
    middle = {name: round(math.sqrt(one["min"] * one["max"])) for name, one in dims.items()}
    wanted = dict(_parsed(text, dims) for text in asked)
    if wanted:
        rows = itertools.product(*wanted.values())
        return [middle | dict(zip(wanted, row, strict=True)) for row in rows]
    if manifest["states"]:
        _, step = manifest["inputs"][0]["shape"]
        start = {name: one["min"] for name, one in dims.items()}
        lengths = [min(PROMPT, dims[step]["max"]), 1] if step in dims else [step]
        return [start | ({step: n} if step in dims else {}) for n in dict.fromkeys(lengths)]
    buckets = [middle | bucket for bucket in manifest["buckets"]]
    return list({tuple(sorted(one.items())): one for one in (*buckets, middle)}.values())


def _parsed(text: str, dims: Mapping[str, Mapping[str, int]]) -> tuple[str, list[int]]:
    name, _, values = text.partition("=")
    try:
        sizes = [int(value) for value in values.split(",")]
    except ValueError as error:
        raise RecipeError(
            message=f"--sizes: {text!r} is no DIM=N,N", hint="such as --sizes batch=1,4"
        ) from error
    if name not in dims:
        hint = nearest(name, list(dims), noun="dims") if dims else "all its sizes are fixed"
        raise RecipeError(message=f"--sizes: the bundle has no dim {name!r}", hint=hint)
    low, high = dims[name]["min"], dims[name]["max"]
    if wrong := [size for size in sizes if not low <= size <= high]:
        raise RecipeError(message=f"--sizes: {name} is {low}..{high}, not {wrong[0]}")
    return name, sizes


def make(
    manifest: Manifest, runner: ModuleType, sizes: Mapping[str, int], reference: Path | None
) -> Case:
    """The case of a size: on inputs of the reference where it has some of this size, real ones
    first, else on random ones. A program with states gets tokens.
    """
    if manifest["states"]:
        return _step(manifest, runner, sizes)
    known = [] if reference is None else reference_cases.read(reference)
    fitting = [(row, arrays) for row, arrays in known if row["sizes"] == sizes]
    fitting.sort(key=lambda found: found[0]["kind"] != "real")
    arrays = fitting[0][1] if fitting else runner.random_inputs(manifest, sizes)
    return _case(_label(sizes), sizes, arrays)


def of_file(manifest: Manifest, runner: ModuleType, path: Path) -> Case:
    """The case of inputs in an .npz file.

    Raises: RecipeError when it is none, or its arrays are not what the bundle takes.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        sizes = runner.check_inputs(manifest, arrays)
    except (OSError, ValueError) as error:  # of NumPy; of the bundle's own check
        raise RecipeError(message=f"--inputs: {path}: {error}") from error
    return _case(_label(sizes), sizes, arrays)


def _case(label: str, sizes: Mapping[str, int], arrays: Arrays) -> Case:
    return Case(label, sizes, arrays, sizes.get(BATCH, 1), "items")


def _step(manifest: Manifest, runner: ModuleType, sizes: Mapping[str, int]) -> Case:
    """A prompt, or one token when the states are half full."""
    arrays = dict(runner.random_inputs(manifest, sizes))
    rows, count = arrays["input_ids"].shape
    vocabulary = int(manifest["outputs"][0]["shape"][-1])
    arrays["input_ids"] = np.random.default_rng(0).integers(0, vocabulary, (rows, count))
    context = manifest["context"] or 2 * PROMPT
    begin = (context - count) // 2 if count == 1 else 0
    arrays["position"] = np.full_like(arrays["position"], begin)
    arrays["last"] = np.full_like(arrays["last"], count - 1)
    if "source_length" in arrays:
        arrays["source_length"] = np.full_like(arrays["source_length"], arrays["source"].shape[1])
    what = f"one token at {begin}" if count == 1 else f"prompt of {count} tokens"
    label = what + "".join(f", {name} {size}" for name, size in _others(manifest, sizes))
    return Case(label, sizes, arrays, rows * count, "tokens")


def _others(manifest: Manifest, sizes: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """The sizes that do not follow from the tokens."""
    step = manifest["inputs"][0]["shape"][1]
    return ((name, size) for name, size in sizes.items() if name != step)


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "static"
