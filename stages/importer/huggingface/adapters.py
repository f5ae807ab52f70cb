"""Families that need more than transformers' attention interface: what stands in for their code.

One row a class. Every attention here ends in `attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from .attention import attention, refusal


@contextmanager
def adapted(model: PreTrainedModel, context: int) -> Iterator[None]:
    """Within, the model's own attentions are replaced by ours; afterwards they are back."""
    tables: dict[int, Tensor] = {}  # one for all layers
    with ExitStack() as undo:

        def replace(owner: Any, name: str, value: Any) -> None:
            if name in vars(owner):
                undo.callback(setattr, owner, name, vars(owner)[name])
            else:  # the class has it
                undo.callback(delattr, owner, name)
            setattr(owner, name, value)

        module: Any
        for module in list(model.modules()):
            kind = type(module).__name__
            if kind in _WITH_ALIBI:
                table = tables.setdefault(module.num_heads, _alibi(module.num_heads, context))
                module.register_buffer(_BIAS, table, persistent=False)
                undo.callback(delattr, module, _BIAS)
            for name, stand_in in _METHODS.get(kind, {}).items():
                replace(module, name, partial(stand_in, module))
            if kind in _FUNCTIONS:
                replace(import_module(type(module).__module__), *_FUNCTIONS[kind])
        yield


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
        raise refusal(f"its rotary embedding is {module.rope_type}")
    angles = position_ids[..., None].float() * module.inv_freq.float()
    return torch.stack([angles.cos(), angles.sin()]) * module.attention_scaling


def _deepseek_v2_rotate(query: Tensor, key: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angles.unsqueeze(2).unbind(0)

    def rotated(x: Tensor) -> Tensor:
        real, imaginary = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
        pair = (real * cos - imaginary * sin, real * sin + imaginary * cos)
        return torch.stack(pair, -1).flatten(3)

    return rotated(query), rotated(key)


_BIAS = "bias_by_distance"
_WITH_ALIBI = frozenset({"BloomAttention"})
# class of a module: its methods, or a function beside it, and what stands in for them
_METHODS: dict[str, dict[str, Callable[..., Any]]] = {
    "GPTJAttention": {"_attn": _gptj, "_get_embed_positions": _gptj_table},
    "FalconAttention": {"forward": _falcon},
    "BloomAttention": {"forward": _bloom},
    "DeepseekV2RotaryEmbedding": {"forward": _deepseek_v2_angles},
}
_FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "DeepseekV2Attention": ("apply_rotary_emb", _deepseek_v2_rotate),
}
