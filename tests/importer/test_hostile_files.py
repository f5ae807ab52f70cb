"""200 hostile files of a kind, each refused or imported within 5 s of processor time and 1 GB, by
warm workers that stay alive.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from fuzz import imports

pytestmark = [pytest.mark.slow, pytest.mark.torch]
LIMIT_S, LIMIT_MIB = 5.0, 1024.0


@pytest.mark.parametrize("kind", imports.FORMATS)
def test_200_hostile_files_are_refused_or_imported_in_bounds(kind: str) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, imports.start, (kind,)) as pool:
        outcomes = dict(enumerate(pool.map(imports.examine, ((kind, k) for k in range(200)))))
    wrong = {
        seed: one
        for seed, one in outcomes.items()
        if one[0] not in ("refused", "imported") or one[1] > LIMIT_S or one[2] > LIMIT_MIB
    }
    assert not wrong
    results = [one[0] for one in outcomes.values()]
    assert results.count("refused") > 100
    assert "imported" in results
