"""Attention masks of transformers' models in few elementwise operators, whatever the family.

transformers makes every mask by one function for each way to attend, found by name; the one of
"eager" is replaced while a model is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils


@contextmanager
def plain_masks() -> Iterator[None]:
    """Within, masks are ours, and each row of a batch is one sequence: while it is traced,
    transformers cannot look whether positions start anew in a row, and would allow for it.
    """
    masks, packed = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS, "find_packed_sequence_indices"
    before = getattr(masking_utils, packed)
    masks["eager"] = mask
    setattr(masking_utils, packed, _not_packed)
    try:
        yield
    finally:
        del masks["eager"]
        setattr(masking_utils, packed, before)


def mask(
    *,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    dtype: torch.dtype = torch.float32,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    **others: Any,
) -> Tensor | None:
    """What is added to the scores, [batch or 1, 1, queries or 1, keys]: 0, or the least of `dtype`.

    transformers' own indexes the padding by row and key, and has full size whatever it depends on.
    """
    everything = mask_function is masking_utils.bidirectional_mask_function
    if everything and attention_mask is None and allow_is_bidirectional_skip:
        return None
    if use_vmap or (attention_mask is not None and attention_mask.shape[-1] != kv_length):
        return masking_utils.eager_mask(
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            dtype=dtype,
            use_vmap=use_vmap,
            **others,
        )
    seen = []
    if not everything or attention_mask is None:
        row = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
        queries = (torch.arange(q_length) + q_offset)[None, None, :, None]
        keys = (torch.arange(kv_length) + kv_offset)[None, None, None, :]
        seen.append(mask_function(row, row, queries, keys).expand(1, 1, q_length, kv_length))
    if attention_mask is not None:
        seen.append(attention_mask[:, None, None, :])
    share = seen[0].to(dtype) if len(seen) == 1 else seen[0].to(dtype) * seen[1].to(dtype)
    return (share - 1.0) * -torch.finfo(dtype).min


def _not_packed(position_ids: Any) -> None:
    return None
