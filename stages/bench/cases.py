"""What a bundle is timed on: sizes of its dims, and inputs of these sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
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
    """Inputs for one call. `items`: how many it deals with: rows of a batch, or tokens.

    before: of the call whose states this one goes on from, None where it needs none
    """

    label: str
    sizes: Mapping[str, int]
    arrays: Arrays
    items: int
    unit: str
    before: Arrays | None = None


def sizes_of(manifest: Manifest, asked: Sequence[str]) -> list[dict[str, int]]:
    """Each size to be timed: all combinations of what is asked (`batch=1,4`), dims not named in
    their middle; without any the buckets and the middle of the dims. With states a prompt and one
    token, in the smallest batch, unless asked otherwise.

    Raises: RecipeError for a dim that the bundle has not, or a size outside its bounds.
    """
    dims: Mapping[str, Mapping[str, int]] = manifest["dims"]
    middle = {name: round(math.sqrt(max(one["min"], 1) * one["max"])) for name, one in dims.items()}
    wanted = dict(_parsed(text, dims) for text in asked)
    if manifest["states"]:
        rows, step = manifest["inputs"][0]["shape"]
        if rows in dims:
            middle[rows] = dims[rows]["min"]
        if step in dims:
            lengths = [min(PROMPT, dims[step]["max"]), 1]
            wanted.setdefault(step, list(dict.fromkeys(lengths)))
    if wanted or manifest["states"]:
        combined = itertools.product(*wanted.values())
        return [middle | dict(zip(wanted, sizes, strict=True)) for sizes in combined]
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
    """A prompt, or one token behind a prompt."""
    rows, step = manifest["inputs"][0]["shape"]
    prompt = _tokens(manifest, runner, sizes, 0)
    count = prompt["input_ids"].size
    if sizes.get(step) != 1:
        length = prompt["input_ids"].shape[1]
        label = f"prompt of {length} tokens"
    else:
        length = min(PROMPT, manifest["dims"][step]["max"], (manifest["context"] or PROMPT + 1) - 1)
        prompt = _tokens(manifest, runner, {**sizes, step: length}, 0)
        label = f"one token at {length}"
    if rows in sizes:
        label += f", {rows} {sizes[rows]}"
    if sizes.get(step) != 1:
        return Case(label, sizes, prompt, count, "tokens")
    token = _tokens(manifest, runner, sizes, length)
    return Case(label, sizes, token, count, "tokens", before=prompt)


def _tokens(
    manifest: Manifest, runner: ModuleType, sizes: Mapping[str, int], begin: int
) -> dict[str, np.ndarray]:
    """Inputs of a call at a position. What an encoder reads comes with the first one alone."""
    specs = {spec["name"]: spec for spec in manifest["inputs"]}
    rows = specs["input_ids"]["shape"][0]
    batch = rows if isinstance(rows, int) else sizes[rows]
    sizes = dict(sizes)
    source_length = 0
    if "source" in specs:
        first, second, *_ = specs["source"]["shape"]
        source_length = sizes.get(second, 0)
        brought = first if "source_length" not in specs else second  # the dim that is 0 later
        sizes[brought] = 0 if begin else batch if brought == first else source_length
    arrays = dict(runner.random_inputs(manifest, sizes))
    shape = arrays["input_ids"].shape
    vocabulary = int(manifest["outputs"][0]["shape"][-1])
    arrays["input_ids"] = np.random.default_rng(begin).integers(0, vocabulary, shape)
    scalars = {"position": begin, "last": shape[1] - 1, "source_length": source_length}
    for name in scalars.keys() & arrays.keys():
        arrays[name] = np.full_like(arrays[name], scalars[name])
    return arrays


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "static"
