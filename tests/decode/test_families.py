"""Every family decodes as transformers' model says: from one bundle, at several prompt lengths, one
row and two of different lengths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding import Comparison, build, compare, decode
from families import CONTEXT, FAMILIES, make

from tapml_stages.program import Bounds

TOLERANCE = 2e-5  # of the logits' range; seen: 3e-6
PROMPTS = ((5,), (1,), (16,), (7, 3), (1, 1))
STEPS = (64, 12, 12, 12, 12)  # one token a call, after the prompt

pytestmark = [pytest.mark.torch, pytest.mark.slow]


def prepared(name: str, folder: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """A bundle, tokens [2, n], and the model's logits of them."""
    import torch

    from tapml_stages.importer.huggingface.generate import decoder

    model = make(name)
    program, weights = decoder(model, CONTEXT, Bounds(1, 4), where=name)
    tokens = torch.randint(256, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=tokens, use_cache=False).logits.numpy()
    return build(program, dict(weights), folder), tokens.numpy(), expected


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_decodes_as_the_model_without_a_cache(name: str, tmp_path: Path) -> None:
    bundle, tokens, expected = prepared(name, tmp_path)

    def run(prompts: tuple[int, ...], steps: int, **wrong: Any) -> Comparison:
        return compare(decode(bundle, tokens, prompts, steps, **wrong), expected, TOLERANCE)

    for prompts, steps in zip(PROMPTS, STEPS, strict=True):
        found = run(prompts, steps)
        assert found.answers == len(prompts) * (steps + 1)
        assert found.error <= TOLERANCE, (prompts, found)
        assert not found.missed, (prompts, found)
    assert run((7,), 4, shift=1, fill=0).error > 100 * TOLERANCE
    assert run((7,), 4, wiped=True).error > 100 * TOLERANCE
