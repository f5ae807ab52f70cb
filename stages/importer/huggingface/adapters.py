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

from .attention import attention, refusal


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
            _stand_in(undo, module, _EXPORTABLE)
        yield


@contextmanager
def adapted(model: PreTrainedModel, context: int) -> Iterator[None]:
    """Within, the model is exportable and its own attentions are replaced by ours; afterwards they
    are back.
    """
    tables: dict[int, Tensor] = {}  # one for all layers
    with exportable(model), ExitStack() as undo:
        module: Any
        for module in list(model.modules()):
            if type(module).__name__ in _WITH_ALIBI:
                table = tables.setdefault(module.num_heads, _alibi(module.num_heads, context))
                module.register_buffer(_BIAS, table, persistent=False)
                undo.callback(delattr, module, _BIAS)
            _stand_in(undo, module, _ATTENTIONS)
        yield


def _stand_in(undo: ExitStack, module: Any, table: Mapping[str, Adapter]) -> None:
    """Replaces what the table has for the module's class until `undo` is left."""

    def replace(owner: Any, name: str, value: Any) -> None:
        if name in vars(owner):
            undo.callback(setattr, owner, name, vars(owner)[name])
        else:  # the class has it
            undo.callback(delattr, owner, name)
        setattr(owner, name, value)

    adapter = table.get(type(module).__name__, Adapter())
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


_BIAS = "bias_by_distance"
_WITH_ALIBI = frozenset({"BloomAttention"})
# by a module's class
_ATTENTIONS = {
    "GPTJAttention": Adapter({"_attn": _gptj, "_get_embed_positions": _gptj_table}),
    "FalconAttention": Adapter({"forward": _falcon}),
    "BloomAttention": Adapter({"forward": _bloom}),
}
_EXPORTABLE = {
    "LlavaModel": Adapter({"get_image_features": _llava_images}),
    "DeepseekV2RotaryEmbedding": Adapter({"forward": _deepseek_v2_angles}),
    "DeepseekV2Attention": Adapter(functions={"apply_rotary_emb": _deepseek_v2_rotate}),
}
