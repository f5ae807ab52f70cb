"""Keys and values that a language model keeps for each token, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from .model import Cache

_MOST = 1 << 24  # layers, heads, sizes: what is more is no configuration
_BYTES = 4  # of a float32
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_WITHOUT = ("mamba", "mamba2", "rwkv", "falcon_mamba")  # a state of one size, however many tokens


def classes(config: Mapping[str, Any]) -> list[str]:
    """transformers' classes that a configuration names."""
    named: object = config.get("architectures")
    return [str(one) for one in cast("list[object]", named)] if isinstance(named, list) else []


def generates(config: Mapping[str, Any]) -> bool:
    """Whether a configuration of transformers is of a model that writes text."""
    return any(one.endswith(_GENERATES) for one in classes(config))


def of_transformers(config: Mapping[str, Any]) -> Cache | None:
    """The cache of a model of transformers, by its config.json; None where it has none."""
    if not generates(config) or config.get("model_type") in _WITHOUT:
        return None
    inner: object = config.get("text_config")
    one = {**config, **cast("dict[str, Any]", inner)} if isinstance(inner, dict) else config
    layers = _first(one, "num_hidden_layers", "n_layer", "num_layers", "decoder_layers")
    heads = _first(one, "num_attention_heads", "n_head", "num_heads", "decoder_attention_heads")
    hidden = _first(one, "hidden_size", "n_embd", "d_model")
    if not (layers and heads and hidden):
        return None
    keys = _first(one, "num_key_value_heads", "num_kv_heads") or heads
    if one.get("multi_query") is True and one.get("new_decoder_architecture") is not True:
        keys = 1
    width = _first(one, "head_dim", "d_kv") or hidden // heads
    numbers = keys * 2 * width
    if _first(one, "kv_lora_rank"):  # what is compressed in the model is kept for every head
        sizes = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        numbers = heads * sum(_first(one, size) or 0 for size in sizes)
    return Cache(layers, layers * numbers * _BYTES, context_of(one))


def context_of(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model of transformers was made for."""
    return _first(
        config, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length",
        "max_target_positions",
    )  # fmt: skip


def of_gguf(metadata: Mapping[str, Any]) -> Cache | None:
    """The cache of a GGUF model, by its metadata."""
    kind = str(metadata.get("general.architecture", ""))
    layers = _first(metadata, f"{kind}.block_count")
    heads = _first(metadata, f"{kind}.attention.head_count")
    hidden = _first(metadata, f"{kind}.embedding_length")
    if not (layers and heads and hidden):
        return None
    keys = _first(metadata, f"{kind}.attention.head_count_kv") or heads
    key = _first(metadata, f"{kind}.attention.key_length") or hidden // heads
    value = _first(metadata, f"{kind}.attention.value_length") or key
    context = _first(metadata, f"{kind}.context_length")
    return Cache(layers, layers * keys * (key + value) * _BYTES, context)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    """The first of several fields that is a size; a list of sizes counts as its largest."""
    for name in names:
        value: object = config.get(name)
        sizes = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
        found = [one for one in sizes if type(one) is int and 0 < one < _MOST]
        if found:
            return max(found)
    return None
