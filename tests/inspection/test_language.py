"""Language models from their headers: the cache is what an imported program keeps."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from fuzz import models

from tapml import inspection
from tapml.errors import RecipeError
from tapml.inspection.language import of_transformers
from tapml.inspection.model import Cache

TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN = {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {**TINY, "num_key_value_heads": 2},
    "Qwen3ForCausalLM": {**TINY, "num_key_value_heads": 2, "head_dim": 32},
    "GemmaForCausalLM": {**TINY, "num_key_value_heads": 1, "head_dim": 16},
    "GPT2LMHeadModel": OWN,
    "GPTNeoXForCausalLM": TINY,
    "PhiForCausalLM": TINY,
    "FalconForCausalLM": {**TINY, "new_decoder_architecture": False, "multi_query": True},
    "GPTBigCodeForCausalLM": {**OWN, "n_inner": 128, "multi_query": True},
    "BloomForCausalLM": {"vocab_size": 256, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "DeepseekV3ForCausalLM": {**TINY, **LATENT},
}


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_is_as_large_as_the_states_of_a_program(name: str) -> None:
    """Those of an import with `task: generate`, which keeps them for every token of a context."""
    import transformers

    from tapml_stages.importer.huggingface import generate

    cls: Any = getattr(transformers, name)
    config = cls.config_class(**FAMILIES[name])
    model = cls._from_config(config, attn_implementation="eager").eval()
    context = 8
    states = generate.check(model, context, name).values()
    found = of_transformers({**json.loads(config.to_json_string()), "architectures": [name]})
    assert found is not None
    assert found.bytes_per_token * context == sum(4 * math.prod(shape) for shape in states)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in models.sound("huggingface").items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_a_folder_gives_parameters_weights_and_cache(folder: Path) -> None:
    found = inspection.inspect(str(folder))
    assert (found.kind, found.parameters, found.nbytes) == ("huggingface", 11, 38)
    assert found.by_dtype == {"float32": 32, "bfloat16": 6}
    # 2 layers × 2 heads × (16 + 16) numbers of 4 bytes
    assert found.cache == Cache(2, 512, 128)
    assert found.cache.nbytes == 512 * 128
    assert found.operators is None


def test_an_encoder_keeps_nothing_for_a_token() -> None:
    assert of_transformers({**TINY, "architectures": ["BertModel"]}) is None
    assert (
        of_transformers({**TINY, "architectures": ["MambaForCausalLM"], "model_type": "mamba"})
        is None
    )
    assert of_transformers({"architectures": ["LlamaForCausalLM"]}) is None


def test_a_gguf_file_gives_parameters_weights_and_cache(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(models.sound("gguf")["model.gguf"])
    found = inspection.inspect(str(path))
    assert (found.parameters, found.by_dtype) == (320, {"q8_0": 272, "float32": 256})
    # 2 layers × 4 heads × (16 + 16) numbers of 4 bytes
    assert found.cache == Cache(2, 1024, 128)
    assert [one.weight for one in found.prunable] == ["blk.0.ffn_up.weight"]


def test_heads_of_keys_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    metadata = [
        ("general.architecture", 8, models.string("x")),
        ("x.block_count", 4, struct.pack("<I", 2)),
        ("x.embedding_length", 4, struct.pack("<I", 64)),
        ("x.attention.head_count", 4, struct.pack("<I", 4)),
        ("x.attention.head_count_kv", 9, struct.pack("<IQ2I", 4, 2, 1, 2)),
    ]
    (tmp_path / "m.gguf").write_bytes(models.gguf((), metadata))
    cache = inspection.inspect(str(tmp_path / "m.gguf")).cache
    assert cache is not None
    assert cache.bytes_per_token == 2 * 2 * 32 * 4


def test_an_id_is_found_in_the_hubs_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--some--model"
    (model / "snapshots" / commit).mkdir(parents=True)
    for name in models.sound("huggingface"):
        (folder / name).rename(model / "snapshots" / commit / name)
    found = inspection.inspect("some/model")
    assert found.parameters == 11
    assert f"id: some/model, revision: {commit}" in " ".join(inspection.draft(found).split())
    assert inspection.inspect(f"some/model@{commit[:8]}").parameters == 11
    other = model / "snapshots" / "f00dfeed00000000000000000000000000000000"
    other.mkdir()
    with pytest.raises(RecipeError, match="several commits of some/model: 0123456789ab, f00dfeed"):
        inspection.inspect("some/model")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(f"{commit}\n")
    assert inspection.inspect("some/model").parameters == 11
    for name in ("some/other", "some/model@ffffffff"):
        with pytest.raises(RecipeError, match=r"no such model in [\s\S]*hf download some/"):
            inspection.inspect(name)
