"""How transformers attends when its cache is a program's states: one torch operator for update and
attention, and what calls it.

transformers looks up masks and attention by name. Under ours no mask is made: which tokens are seen
is told by `position` and a window. The first run of a model checks that this is what it asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tapml.errors import StageError

from ...attention import OVERFLOW

IMPLEMENTATION = "tapml"
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
) -> Tensor:
    """[batch, n, heads, value width]: `key` and `value` stored at `position`, then attended.

    The meaning of stages/attention.py once more, for torch to run: an oracle of the program.
    """
    batch, heads, n, _ = query.shape
    held, context = keys.shape[1:3]
    if bool((position < 0).any()) or bool((position + n > context).any()):
        raise RuntimeError(OVERFLOW)
    at = position[:, None] + torch.arange(n)
    row = torch.arange(batch)[:, None]
    keys[row, :, at] = key.transpose(1, 2)
    values[row, :, at] = value.transpose(1, 2)
    slot = torch.arange(context)
    distance = at[:, :, None] - slot  # [batch, n, context]
    seen = (distance >= 0) & (distance < window if window else True)
    written = (slot < position[:, None] + n)[:, None, :, None]  # the rest may hold anything
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


class States(Cache):
    """The cache that a model sees: it stores nothing itself, but knows the layer's tensors until
    the attention that follows the update.

    In: `held`: states by name; those missing are made, empty, when a layer first asks for them.
        `checking`: whether masks are compared with what the attention will do (a first run).
    """

    def __init__(
        self, held: dict[str, Tensor], position: Tensor, context: int, *, checking: bool = False
    ) -> None:
        super().__init__(layers=[])
        self.held, self.position, self.context = held, position, context
        self.checking = checking
        self.served = 0  # attentions so far
        self._waiting: int | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if self._waiting is not None:
            raise refusal(f"layer {self._waiting} stores keys and never attends through us")
        self._waiting = layer_idx
        return key_states, value_states

    def take(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the layer that has just updated."""
        layer, self._waiting = self._waiting, None
        if layer is None:
            raise refusal("a layer attends to keys that it did not store")
        self.served += 1
        return self._state(f"cache.{layer}.key", key), self._state(f"cache.{layer}.value", value)

    def _state(self, name: str, new: Tensor) -> Tensor:
        if name not in self.held:
            batch, heads, _, width = new.shape
            self.held[name] = new.new_zeros((batch, heads, self.context, width))
        return self.held[name]

    def window(self, size: int | None) -> int:
        """0 for a window that all of the context fits in."""
        return size if size and size < self.context else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.context, 0

    @contextmanager
    def serving(self, model: PreTrainedModel) -> Iterator[None]:
        """Within, the model's attention is ours; afterwards it is what it was."""
        modules: list[Any] = list(model.modules())
        configs = {id(one.config): one.config for one in modules if hasattr(one, "config")}
        before = {key: config._attn_implementation for key, config in configs.items()}
        token = _serving.set(self)
        try:
            for config in configs.values():
                config._attn_implementation = IMPLEMENTATION
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = before[key]
            _serving.reset(token)


_serving: ContextVar[States | None] = ContextVar("_serving", default=None)


def serving() -> States | None:
    """The states that the running model attends with; None where it runs as it is."""
    return _serving.get()


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
    assert states is not None
    unknown = sorted(
        name for name, one in others.items() if name not in _NOT_USED and one is not None
    )
    if others.get("is_causal") is False or not getattr(module, "is_causal", True):
        unknown.append("is_causal: False")
    if unknown:
        raise refusal(f"{type(module).__name__} attends with {', '.join(unknown)}")
    window = states.window(sliding_window)
    if states.checking:
        _demand_window(module, attention_mask, window)
    elif attention_mask is not None:
        raise refusal(f"{type(module).__name__} attends with a mask of its own")
    keys, values = states.take(key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    args = (query, key, value, keys, values, states.position, bias, s_aux)
    return torch.ops.tapml.attend(*args, scale, float(softcap or 0.0), window), None


def mask(*, mask_function: Any, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """transformers' mask function: no mask, or in a first run the size of the window, 4-d like one.

    Raises: StageError when tokens see others than the window's.
    """
    states = serving()
    assert states is not None
    if not states.checking:
        return None
    if attention_mask is not None:
        raise refusal("the model makes a padding mask of its own")
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


def refusal(reason: str) -> StageError:
    return StageError(
        message=f"this model cannot decode with states: {reason}",
        hint="leave out `task: generate`: the model then runs without a cache",
    )


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, mask)
