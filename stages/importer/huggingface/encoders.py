"""Models that read a source with an encoder before they write: what the program takes of it.

Tokens are `source [batch, m], source_length [batch]`; features, which are of one size, `source
[s, …]`, as many rows as the batch. Of an empty source (m or s is 0) nothing is stored, and the call
goes on with the source of one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ...program import Bounds
from ..torch.export import Wanted
from .adapters import features
from .masks import plain_masks
from .states import Source

TOKENS, ROWS = "m", "s"  # dims: of the source's tokens, of the rows that have features


@dataclass(frozen=True)
class Inputs:
    """What a program takes of a source, its dims as torch exports them (0 is a size of its own
    there) and as they are.
    """

    inputs: dict[str, Wanted] = field(default_factory=dict[str, Wanted])
    exported: dict[str, Bounds] = field(default_factory=dict[str, Bounds])
    dims: dict[str, Bounds] = field(default_factory=dict[str, Bounds])


def inputs(model: PreTrainedModel, rows: int | str, most: int, context: int) -> Inputs:
    """None for a model without an encoder.

    In: `rows` of the batch, a size or its dim, and how many at most
    """
    if not model.config.is_encoder_decoder:
        return Inputs()
    if not _reads_tokens(model):
        source = Wanted((ROWS, *features(model)), "float32")
        exported = {ROWS: Bounds(1, max(2, most))}  # a dim of torch has two sizes at least
        return Inputs({"source": source}, exported, {ROWS: Bounds(0, most)})
    wanted = {
        "source": Wanted((rows, TOKENS), "int64"),
        "source_length": Wanted((rows,), "int64"),
    }
    return Inputs(wanted, {TOKENS: Bounds(1, context)}, {TOKENS: Bounds(0, context)})


def example(model: PreTrainedModel, ids: Tensor) -> tuple[Source | None, dict[str, Tensor]]:
    """A source, and the arguments with which the model runs `ids` [1, n] whole behind it."""
    if not model.config.is_encoder_decoder:
        return None, {"input_ids": ids}
    if not _reads_tokens(model):
        generator = torch.Generator().manual_seed(0)
        source = Source(torch.randn((1, *features(model)), generator=generator))
        return source, {model.main_input_name: source.values, "decoder_input_ids": ids}
    length = max(1, ids.shape[1] - 1)  # padded, where there is room
    source = Source(ids.flip(1), torch.tensor([length]))
    return source, {"input_ids": source.values[:, :length], "decoder_input_ids": ids}


def encoded(model: PreTrainedModel, source: Source) -> BaseModelOutput:
    """What the model's own encoder makes of a source."""
    encoder: Any = model.get_encoder()
    there = None
    if source.length is not None:
        there = (torch.arange(source.values.shape[1]) < source.length[:, None]).long()
    with plain_masks():
        out = encoder(source.values, attention_mask=there)
    return BaseModelOutput(last_hidden_state=out.last_hidden_state)


def _reads_tokens(model: PreTrainedModel) -> bool:
    return model.main_input_name == "input_ids"
