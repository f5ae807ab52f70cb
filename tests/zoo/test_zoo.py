"""Every row of the zoo through the whole line, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from zoo import line
from zoo.rows import ROWS, Row

from tapml.errors import TapmlError

pytestmark = [pytest.mark.torch, pytest.mark.slow]
FLOOR = 2e-5  # float32 sums in another order, over a few layers; measured: below 1e-6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("row", [one for one in ROWS if not one.refused], ids=lambda one: one.name)
def test_one_bundle_gives_what_transformers_gives_at_every_size(
    row: Row, tmp_path: Path, store: Path
) -> None:
    errors = line.errors(row, line.run(row, tmp_path, store))
    assert max(errors.values()) <= FLOOR, errors


@pytest.mark.parametrize("row", [one for one in ROWS if one.refused], ids=lambda one: one.name)
def test_what_cannot_be_built_is_refused_in_words(row: Row, tmp_path: Path, store: Path) -> None:
    with pytest.raises(TapmlError, match=row.refused):
        line.run(row, tmp_path, store)
