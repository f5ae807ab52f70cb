"""The cache that transformers sees when its states are those of a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tapml.errors import StageError

IMPLEMENTATION = "tapml"  # of attention, among transformers' own
# what the names of states begin with that hold each token, or each one of the source
CACHE, SOURCE = "cache", "source"


@dataclass(frozen=True)
class Source:
    """What an encoder reads: tokens [batch, m], of which each row has `length` [batch]; or features
    [s, …] of one size, and no lengths. Of nothing (m or s = 0) nothing is stored: the states hold
    what a call before has read.
    """

    values: Tensor
    length: Tensor | None = None


class States(Cache):
    """The cache that a model sees: it stores nothing itself, but knows the layer's tensors until
    the kernel that follows the update.

    In: `held`: states by name; those missing are made, empty, when a layer first asks for them.
        `position`, `last` [batch]: tokens that a row holds, and its last one in this call
        `source`: of a model that reads one first
        `checking`: whether masks are compared with what the attention will do (a first run).
    """

    def __init__(
        self,
        held: dict[str, Tensor],
        position: Tensor,
        last: Tensor,
        context: int,
        *,
        source: Source | None = None,
        checking: bool = False,
    ) -> None:
        super().__init__(layers=[])
        self.held, self.position, self.last, self.context = held, position, last, context
        self.source, self.checking = source, checking
        self._waiting: int | None = None  # the layer that has handed over what is new
        self._recurring: int | None = None  # the layer whose recurrence is next

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if self._waiting is not None:
            raise refusal(f"layer {self._waiting} stores keys and never attends through us")
        self._waiting = layer_idx
        return key_states, value_states

    def take(self, key: Tensor, value: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The states of the layer that has just updated: of its CACHE, or of its SOURCE."""
        layer, self._waiting = self._waiting, None
        if layer is None:
            raise refusal("a layer attends to keys that it did not store")
        pair = []
        for what, new in (("key", key), ("value", value)):
            _, heads, count, width = new.shape
            whole = name == SOURCE and self.source is not None and self.source.length is None
            shape = (self.position.shape[0], heads, count if whole else self.context, width)
            pair.append(self._state(f"{name}.{layer}.{what}", shape))
        return pair[0], pair[1]

    def _state(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.held:
            self.held[name] = torch.zeros(shape)
        return self.held[name]

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None: the model is to go on as at a prompt, which is what our kernels do."""

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """None, as above."""
        self._recurring = layer_idx

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        return False

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Tensor:
        return self.update(conv_states, conv_states, layer_idx)[0]

    def tokens(self, taps: int, channels: int) -> Tensor:
        """The last tokens of the layer that has just handed over new ones."""
        layer, self._waiting = self._waiting, None
        if layer is None:
            raise refusal("a layer convolves what it did not store")
        return self._state(f"tokens.{layer}", (self.position.shape[0], taps, channels))

    def numbers(self, held: int, channels: int) -> Tensor:
        """What the layer that asked last holds from token to token."""
        layer, self._recurring = self._recurring, None
        if layer is None:
            raise refusal("a layer goes from token to token and never asked for its state")
        return self._state(f"recurrent.{layer}", (self.position.shape[0], held, channels))

    def update_recurrent_state(
        self, recurrent_states: Tensor | None, layer_idx: int, state_idx: int = 0, **_: Any
    ) -> Any:
        if recurrent_states is not None:
            raise refusal(f"layer {layer_idx} goes from token to token by code of its own")

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


def serving() -> States:
    """The states that the running model goes on from."""
    states = _serving.get()
    assert states is not None
    return states


def refusal(reason: str) -> StageError:
    return StageError(
        message=f"this model cannot decode with states: {reason}",
        hint="leave out `task: generate`: the model then runs without a cache",
    )
