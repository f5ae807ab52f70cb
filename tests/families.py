"""Tiny random models of the families that decode: `FAMILIES[name]` is a configuration."""

from __future__ import annotations

from typing import Any

from zoo.rows import BASE, MLA

CONTEXT = 80
_BASE = {**BASE, "max_position_embeddings": CONTEXT}
_OWN = {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_KV = {"num_key_value_heads": 2}
_HEAD = {"head_dim": 16}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DEEPSEEK = {**MLA, "max_position_embeddings": CONTEXT}
_MAMBA = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
_GEMMA = {**_BASE, **_KV, **_HEAD, "sliding_window": 4, "query_pre_attn_scalar": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, **_KV},
    "mistral": {**_BASE, **_KV, "sliding_window": 4},
    "mixtral": {**_BASE, **_KV, **_EXPERTS},
    "gpt2": _OWN,
    "gpt_neox": _BASE,
    "gptj": {**_OWN, "rotary_dim": 8},
    "gpt_bigcode": {**_OWN, "n_inner": 128},
    "phi": _BASE,
    "phi3": {**_BASE, **_TOKENS, **_KV},
    "qwen2": {**_BASE, **_KV},
    "qwen3": {**_BASE, **_KV, **_HEAD},
    "stablelm": {**_BASE, **_KV},
    "gemma": {**_BASE, **_HEAD, "num_key_value_heads": 1},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "glm": {**_BASE, **_TOKENS, **_KV, **_HEAD},
    "glm4": {**_BASE, **_TOKENS, **_KV, **_HEAD},
    "starcoder2": {**_BASE, **_KV},
    "cohere": {**_BASE, **_TOKENS, **_KV},
    "cohere2": {**_BASE, **_TOKENS, **_KV},
    "olmo": {**_BASE, **_TOKENS},
    "olmo2": {**_BASE, **_TOKENS},
    "granite": {**_BASE, **_KV},
    "smollm3": {**_BASE, **_TOKENS, **_KV},
    "opt": {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 128,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 64,
    },
}
FLOOR = tuple(FAMILIES)
FAMILIES |= {
    "falcon": {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "new_decoder_architecture": False,
        "multi_query": True,
    },
    "bloom": {"vocab_size": 256, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "gpt_oss": {**_BASE, **_KV, **_HEAD, **_EXPERTS, "sliding_window": 4},
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "phimoe": {**_BASE, **_KV, "num_local_experts": 4},
    "qwen2_moe": {
        **_BASE,
        **_KV,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_BASE,
        **_KV,
        **_HEAD,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "olmoe": {**_BASE, **_TOKENS, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "jamba": {  # a layer of mamba with experts, then one of attention
        **_BASE,
        **_KV,
        "mamba_d_state": 8,
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
    },
    "t5": {
        "vocab_size": 256,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 32,
    },
    "whisper": {
        "vocab_size": 256,
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "num_mel_bins": 20,
        "max_source_positions": 30,
        "max_target_positions": CONTEXT,
        **_TOKENS,
        "decoder_start_token_id": 1,
    },
    "lfm2": {**_BASE, **_KV, "layer_types": ["conv", "full_attention"]},
}


def make(name: str, **changes: Any) -> Any:
    """The family's model, as `source: huggingface` would load it; its weights are random, and
    large enough that attention is sharp and biases count.
    """
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSpeechSeq2Seq,
    )

    config = AutoConfig.for_model(name, **{**FAMILIES[name], **changes})
    torch.manual_seed(0)
    kind = AutoModelForCausalLM
    if config.is_encoder_decoder:
        kind = (
            AutoModelForSpeechSeq2Seq if hasattr(config, "num_mel_bins") else AutoModelForSeq2SeqLM
        )
    model = kind.from_config(
        config, attn_implementation="eager", experts_implementation="batched_mm"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)
