from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tapml.stage import Context, Inputs, Outputs
from tapml_stages import codec
from tapml_stages.program import Origin
from tapml_stages.prune.stage import Existing, Magnitude, Prune


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "dense/w:0": rng.standard_normal((20, 30), dtype=np.float32),
        "other": rng.standard_normal((4, 4), dtype=np.float32),
    }


def prune(folder: Path, weights: dict[str, np.ndarray], how: Magnitude | Existing) -> Outputs:
    program, work = folder / "program", folder / "work"
    program.mkdir()
    work.mkdir()
    rows = [
        asdict(Origin("a", ("dense",), "MatMul", ("dense/w:0",))),
        asdict(Origin("b", ("other",), "MatMul", ("other",))),
    ]
    codec.write_jsonl(program / "provenance.jsonl", rows)
    codec.write_weights(folder / "weights.safetensors", weights)
    context = Context(workdir=work, logger=logging.getLogger("test"), database=folder)
    inputs = Inputs({"program": program, "weights": folder / "weights.safetensors"})
    return Prune(layers=("dense",), prune=how).run(inputs, context)


def test_matched_weights_get_zeros_and_the_others_stay(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    outputs = prune(tmp_path, weights, Magnitude(method="magnitude", density=0.25, block=(16, 16)))
    pruned = codec.read_weights(outputs.artifacts["weights"])
    masks = codec.read_npz(outputs.artifacts["masks"])
    assert list(masks) == ["dense/w:0"]
    np.testing.assert_array_equal(pruned["other"], weights["other"])
    np.testing.assert_array_equal(
        pruned["dense/w:0"], np.where(masks["dense/w:0"], weights["dense/w:0"], 0)
    )


def test_the_density_achieved_is_reported(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    outputs = prune(tmp_path, weights, Magnitude(method="magnitude", density=0.5, block=None))
    assert outputs.report.metrics["sparsity/density"] == 0.5
    assert outputs.report.tables[0].rows == (("dense", "dense/w:0", "20×30", 0.5),)


def test_method_none_changes_no_byte(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["dense/w:0"][:, ::2] = 0
    outputs = prune(tmp_path, weights, Existing(method="none"))
    before = (tmp_path / "weights.safetensors").read_bytes()
    assert outputs.artifacts["weights"].read_bytes() == before
    assert outputs.report.metrics["sparsity/density"] == 0.5
