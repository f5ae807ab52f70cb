"""The source framework itself on a model that was imported: transformers in torch, eager."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages import codec
from tapml_stages.reference.stage import Reference

pytestmark = [pytest.mark.torch, pytest.mark.slow]
IO = {
    "inputs": [{"name": "input_ids", "shape": ["batch", "n"], "dtype": "int64"}],
    "outputs": [{"name": "logits", "shape": ["batch", "n", 64], "dtype": "float32"}],
    "states": [],
    "dims": {"batch": {"min": 1, "max": 3}, "n": {"min": 2, "max": 8}},
    "buckets": [],
}


@pytest.fixture
def model() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def source(model: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    model.config.save_pretrained(folder)
    facts = {"kind": "huggingface", "architecture": "LlamaForCausalLM", "io": IO}
    codec.write_json(folder / "source.json", facts)
    return folder


def run(source: Path, weights: dict[str, np.ndarray]) -> Path:
    work = source.parent / "work"
    work.mkdir()
    path = source.parent / "weights.safetensors"
    codec.write_weights(path, weights)
    context = Context(workdir=work, logger=logging.getLogger("test"), database=work)
    stage = Reference(source="huggingface", threads=1, random={"input_ids": (3, 63)})
    inputs = Inputs({"source": source, "original": path, "weights": path})
    return stage.run(inputs, context).artifacts["reference"]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """As the import writes them: tied ones once, by one of their names."""
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def test_it_answers_as_the_model_does_and_in_float64(model: Any, source: Path) -> None:
    import torch

    folder = run(source, weights_of(model))
    inputs = codec.read_npz(folder / "inputs.npz")
    original = codec.read_npz(folder / "outputs_original.npz")
    exact = codec.read_npz(folder / "outputs_unoptimized.npz")
    wide = model.double()
    for row in codec.read_json(folder / "cases.json"):
        ids = torch.from_numpy(inputs[row["inputs"]["input_ids"]])
        with torch.inference_mode():
            expected = wide(input_ids=ids).logits.numpy()
        key = f"{row['id']}/logits"
        np.testing.assert_allclose(original[key], expected, atol=1e-6)
        np.testing.assert_allclose(exact[key], expected, atol=1e-7)


def test_a_weight_that_is_not_there_makes_no_answer(model: Any, source: Path) -> None:
    weights = weights_of(model)
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(StageError, match="NaN or infinite values"):
        run(source, weights)
