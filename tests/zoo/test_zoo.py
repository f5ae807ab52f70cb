"""Every row of the zoo through the whole line, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import line
from zoo.rows import ROWS, Row

pytestmark = [pytest.mark.torch, pytest.mark.slow]
FLOOR = 2e-5  # float32 sums in another order, over a few layers; measured: below 1e-6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("row", ROWS, ids=lambda one: one.name)
def test_one_bundle_gives_what_transformers_gives_at_every_size(
    row: Row, tmp_path: Path, store: Path
) -> None:
    errors = line.errors(row, line.run(row, tmp_path, store))
    assert max(errors.values()) <= FLOOR, errors
