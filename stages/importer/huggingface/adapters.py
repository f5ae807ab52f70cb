"""Families that need more than transformers' attention interface: what stands in for their code.

One row a class. Every attention here ends in `attention`; what has no place in a torch program at
all is replaced for every import.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tapml.errors import StageError

from .attention import attention
from .recurrence import STAND_INS
from .states import refusal


@dataclass(frozen=True)
class Adapter:
    """What stands in for methods of a class, and for functions beside it."""

    methods: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any])
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Any])


@contextmanager
def exportable(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model's code that torch.export cannot take is replaced; afterwards it is back."""
    with ExitStack() as undo:
        for module in list(model.modules()):
            _stand_in(undo, module, _EXPORTABLE.get(type(module).__name__))
        yield


@contextmanager
def adapted(model: PreTrainedModel, context: int) -> Iterator[None]:
    """Within, the model is exportable and its own attentions and recurrences are replaced by ours;
    afterwards they are back.
    """
    tables: dict[int, Tensor] = {}  # one for all layers
    with exportable(model), ExitStack() as undo:
        module: Any
        for module in list(model.modules()):
            kind = type(module).__name__
            if kind in _WITH_ALIBI:
                table = tables.setdefault(module.num_heads, _alibi(module.num_heads, context))
                module.register_buffer(_BIAS, table, persistent=False)
                undo.callback(delattr, module, _BIAS)
            if kind in _WITH_BUCKETS:
                module.register_buffer(_BUCKETS, _t5_buckets(module, context), persistent=False)
                undo.callback(delattr, module, _BUCKETS)
            code = vars(import_module(type(module).__module__))
            there = {name: one for name, one in STAND_INS.items() if name in code}
            _stand_in(undo, module, Adapter(functions=there))
            _stand_in(undo, module, _ATTENTIONS.get(kind))
        yield


def _stand_in(undo: ExitStack, module: Any, adapter: Adapter | None) -> None:
    """Replaces what the adapter says until `undo` is left."""

    def replace(owner: Any, name: str, value: Any) -> None:
        if name in vars(owner):
            undo.callback(setattr, owner, name, vars(owner)[name])
        else:  # the class has it
            undo.callback(delattr, owner, name)
        setattr(owner, name, value)

    if adapter is None:
        return
    for name, method in adapter.methods.items():
        replace(module, name, partial(method, module))
    for name, function in adapter.functions.items():
        replace(import_module(type(module).__module__), name, function)


def _gptj(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, None]:
    out = attention(module, query, key, value, mask, scaling=1 / float(module.scale_attn))[0]
    return out.transpose(1, 2), None


def _gptj_table(module: Any, position_ids: Tensor) -> Tensor:
    """Its sines for every row, not copied."""
    return module.embed_positions.expand(position_ids.shape[0], -1, -1)


def _falcon(
    module: Any,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    layer_past: Cache,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    if alibi is not None:
        raise refusal("its ALiBi is rounded to bfloat16")
    fused = module.query_key_value(hidden_states)
    if module.new_decoder_architecture:
        groups, width = module.num_heads // module.num_kv_heads, module.head_dim
        fused = fused.view(*fused.shape[:2], module.num_kv_heads, groups + 2, width)
        query, key, value = fused.split([groups, 1, 1], dim=3)
        heads = (query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3))
    else:
        heads = module._split_heads(fused)
    query, key, value = (one.transpose(1, 2) for one in heads)
    rotate = import_module(type(module).__module__).apply_rotary_pos_emb
    query, key = rotate(query, key, *position_embeddings)
    key, value = layer_past.update(key, value, module.layer_idx)
    out = attention(module, query, key, value, attention_mask, scaling=module.inv_norm_factor)[0]
    return module.dense(out.flatten(2)), None


def _bloom(
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Cache,
    **_: Any,
) -> tuple[Tensor, None]:
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    key, value = layer_past.update(key, value, module.layer_idx)
    options = {"scaling": module.inv_norm_factor, "bias": getattr(module, _BIAS)}
    out = attention(module, query, key, value, attention_mask, **options)[0]
    return residual + module.dense(out.flatten(2)), None


def _alibi(heads: int, context: int) -> Tensor:
    """[heads, context]: what is added to a score, by distance.

    Source: Press et al. 2022; slopes of heads that are no power of 2 as in the authors' code
    """
    whole = 2 ** math.floor(math.log2(heads))
    powers = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    powers += [2 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
    return -torch.tensor(powers)[:, None] * torch.arange(context)


def _t5(
    module: Any,
    hidden_states: Tensor,
    mask: Tensor | None = None,
    key_value_states: Tensor | None = None,
    position_bias: Tensor | None = None,
    past_key_values: Cache | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor | None, None]:
    """Its bias by distance is that of the first layer, which hands it on."""
    if past_key_values is None:  # the encoder
        own = type(module).forward
        return own(module, hidden_states, mask, key_value_states, position_bias)
    source = hidden_states if key_value_states is None else key_value_states
    query, key, value = (
        weight(x).unflatten(-1, (module.n_heads, -1)).transpose(1, 2)
        for weight, x in ((module.q, hidden_states), (module.k, source), (module.v, source))
    )
    key, value = past_key_values.update(key, value, module.layer_idx)
    if position_bias is None and module.has_relative_attention_bias:
        position_bias = module.relative_attention_bias(getattr(module, _BUCKETS)).t()
    out = attention(module, query, key, value, mask, scaling=module.scaling, bias=position_bias)
    return module.o(out[0].flatten(2)), position_bias, None


def _whisper(
    module: Any,
    hidden_states: Tensor,
    key_value_states: Tensor | None = None,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Its own gives the keys of a source as many rows as the text has."""
    if past_key_values is None:  # the encoder
        return type(module).forward(module, hidden_states, attention_mask=attention_mask)
    source = hidden_states if key_value_states is None else key_value_states
    query, key, value = (
        weight(x).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for weight, x in (
            (module.q_proj, hidden_states),
            (module.k_proj, source),
            (module.v_proj, source),
        )
    )
    key, value = past_key_values.update(key, value, module.layer_idx)
    out = attention(module, query, key, value, attention_mask, scaling=module.scaling)[0]
    return module.out_proj(out.flatten(2)), None


def features(model: PreTrainedModel) -> tuple[int, ...]:
    """Sizes of what an encoder reads that reads no tokens, without the rows."""
    config: Any = model.config
    if (kind := type(model).__name__) not in _FEATURES:
        raise refusal(f"{kind} reads {model.main_input_name}, of a size that we do not know")
    return _FEATURES[kind](config)


def _t5_buckets(module: Any, context: int) -> Tensor:
    """[context]: which row of its table is for a distance."""
    sizes = (module.relative_attention_num_buckets, module.relative_attention_max_distance)
    return module._relative_position_bucket(-torch.arange(context), False, *sizes)


def _deepseek_v2_angles(module: Any, x: Tensor, position_ids: Tensor) -> Tensor:
    """[2, batch, n, half]: cos and sin, of which the model makes complex numbers."""
    if module.rope_type in ("dynamic", "longrope"):
        raise StageError(
            message=f"the rotary embedding of this model is {module.rope_type}: its frequencies "
            "change with the length of the text",
            hint="set another rope_type in config.json",
        )
    angles = position_ids[..., None].float() * module.inv_freq.float()
    return torch.stack([angles.cos(), angles.sin()]) * module.attention_scaling


def _deepseek_v2_rotate(query: Tensor, key: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angles.unsqueeze(2).unbind(0)

    def rotated(x: Tensor) -> Tensor:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        pair = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return torch.stack(pair, -1).flatten(3)

    return rotated(query), rotated(key)


def _llava_images(module: Any, pixel_values: Tensor, **_: Any) -> Any:
    """Features of all images in one tensor: a list of them would fix their number."""
    config = module.config
    layers = config.vision_feature_layer
    start = 1 if config.vision_feature_select_strategy == "default" else 0  # behind the class token
    seen = module.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
    chosen = [layers] if isinstance(layers, int) else layers
    features = torch.cat([seen.hidden_states[layer][:, start:] for layer in chosen], dim=-1)
    seen.pooler_output = [module.multi_modal_projector(features).flatten(0, 1)]
    return seen


_BIAS, _BUCKETS = "bias_by_distance", "buckets_by_distance"
_WITH_ALIBI = frozenset({"BloomAttention"})
_WITH_BUCKETS = frozenset({"T5Attention", "MT5Attention"})
# by a module's class
_ATTENTIONS = {
    "GPTJAttention": Adapter({"_attn": _gptj, "_get_embed_positions": _gptj_table}),
    "FalconAttention": Adapter({"forward": _falcon}),
    "BloomAttention": Adapter({"forward": _bloom}),
    **dict.fromkeys(_WITH_BUCKETS, Adapter({"forward": _t5})),
    "WhisperAttention": Adapter({"forward": _whisper}),
}
_EXPORTABLE = {
    "LlavaModel": Adapter({"get_image_features": _llava_images}),
    "DeepseekV2RotaryEmbedding": Adapter({"forward": _deepseek_v2_angles}),
    "DeepseekV2Attention": Adapter(functions={"apply_rotary_emb": _deepseek_v2_rotate}),
}
# class of a model: the sizes of the features that its encoder reads
_FEATURES: dict[str, Callable[[Any], tuple[int, ...]]] = {
    "WhisperForConditionalGeneration": lambda config: (
        config.num_mel_bins,
        2 * config.max_source_positions,  # a convolution halves them
    ),
}
