"""Every family decodes as transformers' model says: from one bundle, at several prompt lengths, one
row and two of different lengths.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from decoding import PROMPTS, TOLERANCE, family
from families import FAMILIES

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_decodes_as_the_model_without_a_cache(name: str, tmp_path: Path) -> None:
    made = family(name, tmp_path)
    for prompts, steps in PROMPTS.items():
        found = made.compare(prompts, steps)
        assert found.answers == len(prompts) * (steps + 1)
        assert found.error <= TOLERANCE, (prompts, found)
        assert not found.missed, (prompts, found)
    for wrong, error in made.controls().items():
        assert error > 100 * TOLERANCE, wrong
