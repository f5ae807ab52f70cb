"""Tiny GGUF files, written by the gguf package from a transformers model as llama.cpp would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection as llama.cpp orders them: its rotation takes neighbours,
    transformers' the two halves of a head.
    """
    rows = weight.shape[0] // heads // 2
    halves = weight.reshape(heads, 2, rows, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """A random llama as a GGUF file, its matrices quantised; and the model it was made of."""

    def make(
        quantization: str = "F32",
        extra: dict[str, np.ndarray] | None = None,
        *,
        tied: bool = False,
        **keys: Any,
    ) -> tuple[Path, Any]:
        import gguf
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SMALL, tie_word_embeddings=tied)
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value), alpha=0.1)
        path = tmp_path / "model.gguf"
        out = gguf.GGUFWriter(path, "llama")
        out.add_name("tiny")
        out.add_context_length(config.max_position_embeddings)
        out.add_embedding_length(config.hidden_size)
        out.add_block_count(config.num_hidden_layers)
        out.add_feed_forward_length(config.intermediate_size)
        out.add_head_count(config.num_attention_heads)
        out.add_head_count_kv(config.num_key_value_heads)
        out.add_layer_norm_rms_eps(config.rms_norm_eps)
        out.add_rope_freq_base(10000.0)
        out.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        out.add_vocab_size(config.vocab_size)
        tokens = [*(chr(33 + index) for index in range(config.vocab_size - 1)), "AB"]
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("smollm")
        out.add_token_list(tokens)
        out.add_token_types([1] * len(tokens))
        out.add_token_merges(["A B"])
        out.add_bos_token_id(1)
        out.add_eos_token_id(2)
        for key, value in keys.items():
            out.add_string(key.replace("__", "."), value)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        kind = gguf.GGMLQuantizationType[quantization]
        arrays = {name: value.numpy() for name, value in model.state_dict().items()}
        for name, array in arrays.items():
            stem, _, last = name.rpartition(".")
            if tied and stem == "lm_head":
                continue
            if stem.endswith("q_proj"):
                array = permuted(array, config.num_attention_heads)
            elif stem.endswith("k_proj"):
                array = permuted(array, config.num_key_value_heads)
            found = f"{names.get_name(stem)}.{last}"
            if array.ndim == 2 and quantization != "F32":
                out.add_tensor(found, gguf.quantize(array, kind), raw_dtype=kind)
            else:
                out.add_tensor(found, array)
        for name, array in (extra or {}).items():
            out.add_tensor(name, array)
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        return path, model

    return make
