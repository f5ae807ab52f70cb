"""Every shipped recipe with dims is compiled once, for all of their sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tapml as api
import tapml_stages.compat  # noqa: F401  # all of TVM, before a bundle loads its runtime alone
from tapml.store import Store
from tapml_stages import codec
from tapml_stages.program import Io, io_from_json
from tapml_stages.reference.cases import Arrays, make
from tapml_stages.reference.runners import runner
from tapml_stages.reference.sequences import INPUTS
from tapml_stages.validation.compare import relative_error, tolerance

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.torch]
RECIPES = {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")}
STATIC = {"centerface", "silero_vad"}  # their sizes are in the file
RANGES = {"bytes": (0, 256), "input_ids": (0, 30521), "attention_mask": (1, 1)}


def sizes(io: Io) -> list[dict[str, int]]:
    """Six sizes of each dim, or all that there are; of two dims never both the least."""

    def some(low: int, high: int) -> list[int]:
        middle, third = (low + high) // 2 + 1, low + (high - low) // 3
        wanted = (low, high, low + 1, middle, high - 1, third, *range(low, high))
        return [n for n in dict.fromkeys(wanted) if low <= n <= high][:6]

    lists = {name: some(one.min, one.max) for name, one in io.dims.items()}
    count = max(map(len, lists.values()))
    return [
        {name: one[(k + turn) % len(one)] for turn, (name, one) in enumerate(lists.items())}
        for k in range(count)
    ]


def calls(io: Io) -> Iterator[Arrays]:
    """Random inputs of each size. Sequences of a batch are padded to the longest: masked, at the
    end; a language model reads a prompt.
    """
    wanted = sizes(io)
    if io.states:
        assert tuple(spec.name for spec in io.inputs) == INPUTS
        vocabulary = int(io.outputs[0].shape[-1])
        for seed, (n,) in enumerate(one.values() for one in wanted):
            ids = np.random.default_rng(seed).integers(0, vocabulary, (1, n))
            yield dict(zip(INPUTS, (ids, np.array([0]), np.array([n - 1])), strict=True))
        return
    ranges = {spec.name: RANGES[spec.name] for spec in io.inputs if spec.name in RANGES}
    for case in make(asdict(replace(io, buckets=tuple(wanted))), None, ranges)[: len(wanted)]:
        if "attention_mask" in case.inputs:
            mask = case.inputs["attention_mask"]
            rows, tokens = mask.shape
            mask[np.arange(tokens) >= np.maximum(1, tokens - np.arange(rows))[:, None]] = 0
        yield case.inputs


@pytest.mark.parametrize("recipe", sorted(RECIPES - STATIC))
def test_one_bundle_gives_at_every_size_what_the_source_framework_gives(
    tapml: Callable, store: Path, tmp_path: Path, recipe: str
) -> None:
    untuned = ("--set", "matrix=", "--set", "tuning.trials=0")
    answer = tapml("run", f"recipes/{recipe}.yaml", *untuned, "--to", "codegen")
    assert answer.code == 0, answer.stderr
    outputs = [one["outputs"] for one in answer.run["stages"].values()]
    weights = [one["weights"] for one in outputs if "weights" in one][-1]  # pruned, or rounded
    Store(store).materialise(outputs[0]["source"], tmp_path / "source")
    Store(store).materialise(weights, tmp_path / "weights.safetensors")
    facts = codec.read_json(tmp_path / "source" / "source.json")
    io = io_from_json({**facts["io"], "params": []})
    source = runner.make(facts, tmp_path / "source", threads=2)
    arrays = codec.read_weights(tmp_path / "weights.safetensors")
    optimized, plain = (source(arrays, optimize=how) for how in (True, False))
    bundle, (name,) = api.load(answer.bundle), [spec.name for spec in io.outputs]
    errors: dict[str, float] = {}
    for given in calls(io):
        asked = {"input_ids": given["input_ids"]} if io.states else given
        expected, other = (run(asked)[name] for run in (optimized, plain))
        if io.states:
            expected, other = expected[:, -1], other[:, -1]
        got = bundle(**given)[name]
        assert got.shape == expected.shape
        label = str({key: one.shape for key, one in given.items()})
        errors[label] = relative_error(got, expected, label)[1]
        own = relative_error(other, expected, label)[1]
        assert errors[label] <= tolerance(own, 0.0), label
    least = min(5, *(one.max - one.min + 1 for one in io.dims.values()))
    assert len(errors) >= least > 1
