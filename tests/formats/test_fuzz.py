"""Whatever a model file holds, `tapml inspect` reads or refuses it, soon and in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import models


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


@pytest.mark.parametrize("kind", models.FORMATS)
def test_a_sample_of_mutated_files_is_read_or_refused(here: Path, kind: str) -> None:
    done = [models.examine((kind, seed)) for seed in range(20)]
    assert [one for one in done if one.problems] == []
    assert {code for one in done for code in one.codes} >= {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize("kind", models.FORMATS)
def test_200_mutated_files_are_read_or_refused_within_5_s_and_1_gb(kind: str) -> None:
    done = list(models.sweep([(kind, seed) for seed in range(1000, 1200)], jobs=1))
    assert len(done) == 200
    assert [one for one in done if one.problems] == []
    assert {code for one in done for code in one.codes} >= {0, 1}


@pytest.mark.parametrize("kind", models.FORMATS)
def test_what_is_not_mutated_is_read(here: Path, kind: str) -> None:
    for name, data in models.sound(kind).items():
        (here / name).write_bytes(data)
    outcome = models.inspected(here, kind)
    assert outcome.problems == ()
    assert outcome.codes == (0,)


FOUND = {  # what a sweep found
    "a number of another kind in a configuration": ("huggingface", 1662),
    "a name of a shard that is too long": ("huggingface", 1266),
    "a kind of model of thousands of characters": ("huggingface", 41),
    "a dim's name that is no text": ("onnx", 1387),
    "an operator's name that is no text": ("onnx", 1547),
    "a dim without bounds": ("pt2", 6161),
}


@pytest.mark.parametrize("which", FOUND.values(), ids=FOUND)
def test_what_a_sweep_found_is_mended(here: Path, which: tuple[str, int]) -> None:
    assert models.examine(which).problems == ()


def test_a_seed_always_makes_the_same_files() -> None:
    assert models.case("pt2", 7) == models.case("pt2", 7)
    assert models.case("pt2", 7) != models.case("pt2", 8)
