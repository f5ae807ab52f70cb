"""How transformers attends when its cache is a program's states: one torch operator for update and
attention, and what calls it.

transformers looks up masks and attention by name. Under ours no mask is made: which tokens are seen
is told by `position` and a window. The first run of a model checks that this is what it asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...attention import OVERFLOW
from .states import CACHE, IMPLEMENTATION, SOURCE, refusal, serving

_ROWS = 64  # rows of a mask that are compared with the window's

# what transformers hands to every attention function, and a cached one has no use for
_NOT_USED = frozenset(
    [
        "cache_position",
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "output_router_logits",
        "position_embeddings",
        "return_dict",
        "use_cache",
    ]
)


@torch.library.custom_op("tapml::attend", mutates_args=("keys", "values"))
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
    window: int,
    across: bool,
) -> Tensor:
    """[batch, n, heads, value width]: `key` and `value` stored at `position`, then attended.
    Across, they are stored from the first slot on, and `position` is how many of them there are.

    The meaning of stages/attention.py once more, for torch to run: an oracle of the program.
    """
    batch, heads, n, _ = query.shape
    held, context = keys.shape[1:3]
    start, count = torch.zeros_like(position) if across else position, key.shape[2]
    if bool((start < 0).any()) or bool((start + count > context).any()):
        raise RuntimeError(OVERFLOW)
    at = start[:, None] + torch.arange(count)
    row = torch.arange(batch)[:, None]
    if len(key):
        keys[row, :, at] = key.transpose(1, 2)
        values[row, :, at] = value.transpose(1, 2)
    slot = torch.arange(context)
    end = position[:, None] + (torch.zeros(n, dtype=torch.int64) if across else 1 + torch.arange(n))
    distance = end[:, :, None] - 1 - slot  # [batch, n, context]
    seen = (distance >= 0) & (distance < window if window else True)
    written = (slot < end[:, -1:])[:, None, :, None]  # the rest may hold anything
    repeats = heads // held
    scores = query @ keys.repeat_interleave(repeats, 1).transpose(2, 3) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias[:, distance.clamp(min=0)].transpose(0, 1)
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(batch, -1, n, 1)], -1)
    weights = scores.softmax(-1)[..., :context]
    stored = values.where(written, 0.0).repeat_interleave(repeats, 1)
    return (weights @ stored).transpose(1, 2).contiguous()


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    batch, heads, n = query.shape[:3]
    return query.new_empty((batch, n, heads, value.shape[-1]))


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [batch, n, heads, width], and no weights.

    In:     `bias`: of adapters, [heads, context] by distance
    Raises: StageError for an argument that is not known, or a mask that is not the window's.
    """
    states = serving()
    unknown = sorted(
        name for name, one in others.items() if name not in _NOT_USED and one is not None
    )
    both_sides = others.get("is_causal") is False or not getattr(module, "is_causal", True)
    across = both_sides and states.source is not None
    if both_sides and not across:
        unknown.append("is_causal: False")
    if unknown:
        raise refusal(f"{type(module).__name__} attends with {', '.join(unknown)}")
    window = states.window(sliding_window)
    if states.checking and not across:
        _demand_window(module, attention_mask, window)
    elif attention_mask is not None:
        raise refusal(f"{type(module).__name__} attends with a mask of its own")
    keys, values = states.take(key, value, SOURCE if across else CACHE)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    position = states.position
    if across and states.source is not None:
        length = states.source.length
        position = torch.full_like(position, key.shape[2]) if length is None else length
    args = (query, key, value, keys, values, position, bias, s_aux)
    return torch.ops.tapml.attend(*args, scale, float(softcap or 0.0), window, across), None


def mask(*, mask_function: Any, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """transformers' mask function: no mask, or in a first run the size of the window, 4-d like one.

    Raises: StageError when tokens see others than the window's.
    """
    states = serving()
    if not states.checking:
        return None
    if attention_mask is not None:
        raise refusal("the model makes a padding mask of its own")
    if states.source is not None and mask_function is bidirectional_mask_function:
        return None  # the source, which all tokens see
    column = torch.arange(states.context)
    row = torch.linspace(0, states.context - 1, min(_ROWS, states.context)).long()[:, None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    seen = torch.as_tensor(mask_function(zero, zero, row, column)).expand(len(row), len(column))
    count = int(seen[-1].sum())
    distance = row - column
    if not torch.equal(seen, (distance >= 0) & (distance < count)):
        raise refusal("tokens see others than the last ones before them (chunks, or both sides)")
    return torch.tensor(states.window(count)).reshape(1, 1, 1, 1)


def _demand_window(module: Any, marker: Tensor | None, window: int) -> None:
    if marker is not None and marker.numel() == 1 and int(marker) == window:
        return
    there = "no mask" if marker is None else f"a mask {list(marker.shape)}"
    if marker is not None and marker.numel() == 1:
        there = f"a window of {int(marker)}"
    raise refusal(f"{type(module).__name__} attends in a window of {window}, but is given {there}")


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, mask)
