"""200 hostile files, each refused or imported within 5 s of processor time and 1 GB, by warm
workers that stay alive.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from fuzz import onnx_files

pytestmark = pytest.mark.slow
LIMIT_S, LIMIT_MIB = 5.0, 1024.0


def test_200_hostile_files_are_refused_or_imported_in_bounds() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=onnx_files.start) as pool:
        outcomes = dict(enumerate(pool.map(onnx_files.examine, range(200))))
    wrong = {
        seed: one
        for seed, one in outcomes.items()
        if one[0] not in ("refused", "imported") or one[1] > LIMIT_S or one[2] > LIMIT_MIB
    }
    assert not wrong
    assert sum(one[0] == "refused" for one in outcomes.values()) > 100
