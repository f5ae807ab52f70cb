"""Tiny models of transformers from a folder to a program, run beside torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.errors import RecipeError, StageError
from tapml.stage import Context, Folder, Inputs, Outputs
from tapml_stages import codec, program
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

pytestmark = [pytest.mark.torch, pytest.mark.slow]
TOKENS = {"input_ids": InputSpec(shape=("batch", "n"), dtype="int64")}
MASKED = {**TOKENS, "attention_mask": InputSpec(shape=("batch", "n"), dtype="int64")}
DIMS = {"batch": DimBounds(min=1, max=4), "n": DimBounds(min=2, max=16)}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}
LATENT = {  # DeepSeek's attention
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}
Load = Callable[..., Outputs]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Any]:
    """A random model of a class, saved to `tmp_path / "model"`."""

    def make(name: str, dtype: str = "float32", **config: Any) -> Any:
        import torch
        import transformers

        torch.manual_seed(0)
        cls = getattr(transformers, name)
        made = cls(cls.config_class(**{**SMALL, **config})).eval()
        with torch.no_grad():
            for value in made.parameters():
                value.add_(torch.randn_like(value), alpha=0.1)
        made = made.to(getattr(torch, dtype))
        made.save_pretrained(tmp_path / "model")
        return made

    return make


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def run(inputs: dict[str, InputSpec] = TOKENS, **fields: Any) -> Outputs:
        work = tmp_path / "work"
        work.mkdir()
        folder = Folder(path=str(tmp_path / "model"), files={})
        stage = Import(source="huggingface", folder=folder, signature=inputs, dims=DIMS, **fields)
        context = Context(workdir=work, logger=logging.getLogger("test"), database=tmp_path)
        return stage.run(Inputs({}), context)

    return run


def answer(outputs: Outputs, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the imported program computes, built by TVM's own pipeline."""
    from tapml_stages.compat import tvm

    imported = program.load(outputs.artifacts["program"])
    weights = codec.read_weights(outputs.artifacts["weights"])
    target = tvm.target.Target("llvm")
    with target:
        built = tvm.compile(tvm.relax.get_pipeline("zero")(imported.mod), target)
    machine = tvm.relax.VirtualMachine(built, tvm.cpu())
    arrays = [inputs[one.name] for one in imported.io.inputs]
    arrays += [weights[one.name] for one in imported.io.params]
    result = machine["main"](*map(tvm.runtime.tensor, arrays))
    return (result if hasattr(result, "numpy") else result[0]).numpy()


def theirs(model: Any, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(**{n: torch.from_numpy(a) for n, a in inputs.items()})[output].numpy()


def ids(batch: int, n: int) -> np.ndarray:
    return np.random.default_rng([batch, n]).integers(3, 64, (batch, n))


# float32 sums in another order: a few units in the last place of values near 1
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def test_a_causal_model_of_any_batch_and_length(model: Any, load: Load) -> None:
    made = model("LlamaForCausalLM", num_key_value_heads=2)
    outputs = load()
    for size in ((1, 2), (3, 7), (4, 16)):
        given = {"input_ids": ids(*size)}
        np.testing.assert_allclose(
            answer(outputs, given), theirs(made, given, "logits"), **TOLERANCE
        )


def test_a_window_and_padding_are_in_the_mask(model: Any, load: Load) -> None:
    made = model("MistralForCausalLM", num_key_value_heads=2, sliding_window=3)
    outputs = load(MASKED)
    mask = np.ones((2, 9), np.int64)
    mask[1, 6:] = 0
    given = {"input_ids": ids(2, 9), "attention_mask": mask}
    got, expected = answer(outputs, given), theirs(made, given, "logits")
    np.testing.assert_allclose(got[mask > 0], expected[mask > 0], **TOLERANCE)
    given["attention_mask"] = np.ones_like(mask)
    unpadded = answer(outputs, given)
    np.testing.assert_array_equal(unpadded[1, :6], got[1, :6])  # causal: none sees what follows
    assert np.abs(unpadded[1, 6:] - got[1, 6:]).max() > 1e-3


def test_an_encoder_sees_no_padding(model: Any, load: Load) -> None:
    made = model("BertModel")
    outputs = load(MASKED)
    mask = np.ones((2, 8), np.int64)
    mask[0, 5:] = 0
    given = {"input_ids": ids(2, 8), "attention_mask": mask}
    got = answer(outputs, given)
    np.testing.assert_allclose(got, theirs(made, given, "last_hidden_state"), **TOLERANCE)
    without = {**given, "attention_mask": np.ones_like(mask)}
    assert np.abs(answer(outputs, without)[0] - got[0]).max() > 1e-3


def test_half_precision_weights_become_float32(model: Any, load: Load) -> None:
    made = model("BertModel", "bfloat16")
    weights = codec.read_weights(load(MASKED).artifacts["weights"])
    assert {str(one.dtype) for one in weights.values() if one.dtype.kind == "f"} == {"float32"}
    name = "encoder.layer.0.output.dense.weight"
    np.testing.assert_array_equal(weights[name], made.get_parameter(name).float().detach().numpy())


def test_tied_weights_are_written_once(model: Any, load: Load) -> None:
    model("LlamaForCausalLM", tie_word_embeddings=True)
    weights = codec.read_weights(load().artifacts["weights"])
    tied = {"lm_head.weight", "model.embed_tokens.weight"}
    assert len(tied & weights.keys()) == 1


def test_what_the_weights_lack_is_refused_where_it_is_read(
    model: Any, load: Load, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    model("LlamaForCausalLM", tie_word_embeddings=False)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(StageError, match=r"lack 1 parameters .*: lm_head\.weight"):
        load()


def test_weights_of_other_shapes_are_refused(model: Any, load: Load, tmp_path: Path) -> None:
    model("BertModel")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 50}))
    with pytest.raises(StageError, match="BertModel: RuntimeError"):
        load(MASKED)


def test_a_truncated_file_is_refused(model: Any, load: Load, tmp_path: Path) -> None:
    model("BertModel")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match=r"model\.safetensors is refused"):
        load(MASKED)


def test_another_class_may_be_named_and_an_unknown_one_is_told(model: Any, load: Load) -> None:
    model("BertForMaskedLM")
    with pytest.raises(RecipeError, match="has no model 'BertModell'") as caught:
        load(MASKED, architecture="BertModell")
    assert caught.value.field == "model.architecture"
    assert "BertModel" in caught.value.hint


def test_an_input_that_the_model_lacks_is_told(model: Any, load: Load) -> None:
    model("BertModel")
    with pytest.raises(RecipeError, match="BertModel has no input 'input_id'") as caught:
        load({"input_id": TOKENS["input_ids"]})
    assert caught.value.hint == "did you mean 'input_ids'?"


def test_a_rotary_embedding_that_follows_the_length_is_refused(model: Any, load: Load) -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model("DeepseekV2ForCausalLM", **LATENT, rope_parameters=dynamic)
    with pytest.raises(StageError, match="change with the length of the text"):
        load()


def test_a_tokenizer_goes_along(model: Any, load: Load, tmp_path: Path) -> None:
    model("BertModel")
    (tmp_path / "model" / "tokenizer.json").write_text('{"version": "1.0"}')
    files = load(MASKED).artifacts["files"]
    assert (files / "tokenizer.json").read_text() == '{"version": "1.0"}'
