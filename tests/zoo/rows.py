"""The zoo: one row for each architecture, tiny and with random weights. No code for any model here.

A row names a class of transformers, the fields of its configuration, and its inputs; what a family
needs to be exported is the importer's business. The few that transformers lacks are functions of
networks.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOKENS = 256
LENGTHS = (3, 13, 37)  # of a sequence; none is the size that the model is exported at
BATCHES = (1, 3)


@dataclass(frozen=True)
class Tensor:
    """An input: its dims (a name is dynamic), and the integers below which its values lie; floats
    are standard normal. `first`: what every row of it begins with.
    """

    shape: tuple[int | str, ...]
    below: int | None = None
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """An architecture. `paper`: the model of the TapML paper that it is, or stands in for;
    `lengths`: sizes of its dynamic dims but the batch; `source`: of the recipe, and so who answers
    for it.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    output: str = "logits"
    paper: str = ""
    lengths: tuple[int, ...] = LENGTHS
    sub_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    source: str = "huggingface"

    @property
    def dims(self) -> dict[str, tuple[int, int]]:
        """Bounds of the dynamic dims."""
        names = {dim for one in self.inputs.values() for dim in one.shape if isinstance(dim, str)}
        limits = {"batch": (1, 4)}
        return {name: limits.get(name, (1, 48)) for name in sorted(names)}


IDS = Tensor(("batch", "n"), TOKENS)
MASK = Tensor(("batch", "n"), 0)  # all ones
TEXT = {"input_ids": IDS}
MASKED = {"input_ids": IDS, "attention_mask": MASK}
PAIR = {"input_ids": IDS, "decoder_input_ids": Tensor(("batch", "m"), TOKENS)}


def image(size: int = 64) -> dict[str, Tensor]:
    return {"pixel_values": Tensor(("batch", 3, size, size))}


BASE = {
    "vocab_size": TOKENS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
KV2 = {"num_key_value_heads": 2}
HEAD16 = {"head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"vocab_size": TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
BART = {
    "vocab_size": TOKENS,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    **SPECIAL,
    "decoder_start_token_id": 1,
}
MLA = {
    **BASE,
    **SPECIAL,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
IMAGE_TOKEN = 250
QUERY = {**KV2, **HEAD16, "sliding_window": 4, "query_pre_attn_scalar": 16}


def decoder(name: str, model: str, config: Mapping[str, Any], paper: str = "") -> Row:
    return Row(name, model, config, TEXT, paper=paper)


def recurrent(name: str, model: str, config: Mapping[str, Any], paper: str = "") -> Row:
    """A decoder whose code walks over its tokens one by one in Python: its length is fixed."""
    return Row(name, model, config, {"input_ids": Tensor(("batch", 13), TOKENS)}, paper=paper)


def encoder(name: str, model: str, config: Mapping[str, Any], output: str = "logits") -> Row:
    return Row(name, model, config, MASKED, output)


def vision(name: str, model: str, config: Mapping[str, Any], size: int = 64) -> Row:
    return Row(name, model, {"num_labels": 10, **config}, image(size))


ROWS = (
    decoder("llama", "LlamaForCausalLM", {**BASE, **KV2}, "llama; baichuan, orion (its layout)"),
    decoder("mistral", "MistralForCausalLM", {**BASE, **KV2, "sliding_window": 4}, "mistral"),
    decoder("mixtral", "MixtralForCausalLM", {**BASE, **KV2, **EXPERTS}, "mixtral"),
    decoder("gpt2", "GPT2LMHeadModel", GPT, "gpt2"),
    decoder("gpt_neox", "GPTNeoXForCausalLM", BASE, "gpt_neox"),
    decoder("gptj", "GPTJForCausalLM", {**GPT, "rotary_dim": 8}),
    decoder("gpt_bigcode", "GPTBigCodeForCausalLM", {**GPT, "n_inner": 128}, "gpt_bigcode"),
    decoder(
        "gpt_neo",
        "GPTNeoForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    recurrent(
        "rwkv",
        "RwkvForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "attention_hidden_size": 64,
            "intermediate_size": 128,
            "context_length": 64,
            "rescale_every": 0,  # else it writes to its weights, for float16's sake
        },
        "rwkv5, rwkv6 (transformers has rwkv4)",
    ),
    decoder("phi", "PhiForCausalLM", BASE, "phi"),
    decoder("phi3", "Phi3ForCausalLM", {**BASE, **SPECIAL, **KV2}),
    decoder("phimoe", "PhimoeForCausalLM", {**BASE, **KV2, "num_local_experts": 4}),
    decoder("qwen2", "Qwen2ForCausalLM", {**BASE, **KV2}, "qwen2; qwen (its successor)"),
    decoder(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            **BASE,
            **KV2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    decoder("qwen3", "Qwen3ForCausalLM", {**BASE, **KV2, **HEAD16}),
    decoder(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {
            **BASE,
            **KV2,
            **HEAD16,
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    decoder("stablelm", "StableLmForCausalLM", {**BASE, **KV2}, "stable_lm"),
    decoder("gemma", "GemmaForCausalLM", {**BASE, "num_key_value_heads": 1, **HEAD16}, "gemma"),
    decoder("gemma2", "Gemma2ForCausalLM", {**BASE, **QUERY}),
    decoder("gemma3", "Gemma3ForCausalLM", {**BASE, **QUERY}),
    decoder("glm", "GlmForCausalLM", {**BASE, **SPECIAL, **KV2, **HEAD16}),
    decoder("glm4", "Glm4ForCausalLM", {**BASE, **SPECIAL, **KV2, **HEAD16}),
    decoder("starcoder2", "Starcoder2ForCausalLM", {**BASE, **KV2}),
    decoder("cohere", "CohereForCausalLM", {**BASE, **SPECIAL, **KV2}),
    decoder("cohere2", "Cohere2ForCausalLM", {**BASE, **SPECIAL, **KV2}),
    decoder("olmo", "OlmoForCausalLM", {**BASE, **SPECIAL}),
    decoder("olmo2", "Olmo2ForCausalLM", {**BASE, **SPECIAL}),
    decoder(
        "olmoe",
        "OlmoeForCausalLM",
        {
            **BASE,
            **SPECIAL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    decoder("deepseek_v2", "DeepseekV2ForCausalLM", MLA),
    decoder("deepseek_v3", "DeepseekV3ForCausalLM", MLA),
    recurrent(
        "mamba",
        "MambaForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
        },
    ),
    recurrent(
        "mamba2",
        "Mamba2ForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    decoder(
        "opt",
        "OPTForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 64,
        },
    ),
    decoder(
        "falcon",
        "FalconForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "new_decoder_architecture": False,
            "multi_query": True,
        },
    ),
    decoder(
        "bloom",
        "BloomForCausalLM",
        {
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "n_layer": 2,
            "n_head": 4,
        },
    ),
    decoder(
        "gpt_oss",
        "GptOssForCausalLM",
        {
            **BASE,
            **KV2,
            **HEAD16,
            **EXPERTS,
            "sliding_window": 4,
        },
    ),
    decoder("smollm3", "SmolLM3ForCausalLM", {**BASE, **SPECIAL, **KV2}),
    decoder("granite", "GraniteForCausalLM", {**BASE, **KV2}),
    decoder(
        "ministral",
        "MinistralForCausalLM",
        {**BASE, **KV2, **HEAD16, "sliding_window": 4},
        "internlm (absent; the same layers)",
    ),
    encoder("bert", "BertForMaskedLM", BASE),
    encoder(
        "distilbert",
        "DistilBertForMaskedLM",
        {
            "vocab_size": TOKENS,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "hidden_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    encoder("roberta", "RobertaForMaskedLM", {**BASE, **SPECIAL, "max_position_embeddings": 80}),
    encoder("albert", "AlbertForMaskedLM", {**BASE, "embedding_size": 32}),
    encoder("electra", "ElectraForMaskedLM", {**BASE, "embedding_size": 32}),
    encoder("mpnet", "MPNetForMaskedLM", {**BASE, **SPECIAL, "max_position_embeddings": 80}),
    encoder(
        "modernbert",
        "ModernBertForMaskedLM",
        {
            **BASE,
            **SPECIAL,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 8,
        },
    ),
    Row(
        "t5",
        "T5ForConditionalGeneration",
        {
            "vocab_size": TOKENS,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            **SPECIAL,
            "decoder_start_token_id": 0,
        },
        PAIR,
    ),
    Row("bart", "BartForConditionalGeneration", BART, PAIR),
    Row("pegasus", "PegasusForConditionalGeneration", BART, PAIR),
    Row(
        "whisper",
        "WhisperForConditionalGeneration",
        {
            "vocab_size": TOKENS,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "max_target_positions": 64,
            **SPECIAL,
            "decoder_start_token_id": 1,
        },
        {
            "input_features": Tensor(("batch", 16, 64)),
            "decoder_input_ids": Tensor(("batch", "n"), TOKENS),
        },
    ),
    Row(
        "wav2vec2",
        "Wav2Vec2ForCTC",
        {
            "vocab_size": 32,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "conv_dim": [32, 32],
            "conv_kernel": [10, 3],
            "conv_stride": [5, 2],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        {"input_values": Tensor(("batch", 1600))},
    ),
    vision(
        "resnet",
        "ResNetForImageClassification",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [2, 2],
            "layer_type": "basic",
        },
    ),
    vision(
        "efficientnet",
        "EfficientNetForImageClassification",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "hidden_dim": 320,
            "image_size": 64,
        },
    ),
    vision(
        "mobilenet_v2",
        "MobileNetV2ForImageClassification",
        {
            "depth_multiplier": 0.25,
            "image_size": 64,
        },
    ),
    vision(
        "convnext",
        "ConvNextForImageClassification",
        {
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_stages": 2,
            "image_size": 64,
        },
    ),
    vision(
        "vit",
        "ViTForImageClassification",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 16,
        },
    ),
    vision(
        "deit",
        "DeiTForImageClassification",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 16,
        },
    ),
    vision(
        "swin",
        "SwinForImageClassification",
        {
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "image_size": 64,
            "patch_size": 4,
        },
    ),
    vision(
        "segformer",
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [4, 2],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
    ),
    Row(
        "yolos",
        "YolosForObjectDetection",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": [64, 64],
            "patch_size": 16,
            "num_detection_tokens": 10,
            "num_labels": 5,
        },
        image(),
    ),
    Row(
        "clip",
        "CLIPModel",
        {"projection_dim": 32},
        {
            "input_ids": IDS,
            "attention_mask": MASK,
            "pixel_values": Tensor(("batch", 3, 64, 64)),
        },
        "logits_per_image",
        sub_configs={
            "text_config": {**BASE, **SPECIAL},
            "vision_config": {
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "image_size": 64,
                "patch_size": 16,
            },
        },
    ),
    Row(
        "llava",
        "LlavaForConditionalGeneration",
        {"image_token_index": IMAGE_TOKEN},
        {
            "input_ids": Tensor(("batch", "n"), IMAGE_TOKEN, (5, *[IMAGE_TOKEN] * 4)),
            **image(32),
        },
        paper="llava",
        lengths=(7, 13, 37),
        sub_configs={
            "text_config": {"model_type": "llama", **BASE, **KV2},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "image_size": 32,
                "patch_size": 16,
                "projection_dim": 32,
            },
        },
    ),
    Row("unet", "unet", {}, image(), source="torch"),
    Row(
        "gcn",
        "gcn",
        {},
        {
            "x": Tensor((24, 16)),
            "start": Tensor(("edges", 1), 24),
            "end": Tensor(("edges", 1), 24),
        },
        source="onnx",
    ),
)
