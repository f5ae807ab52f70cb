"""`tuning.reuse` in a recipe: its files are in the key by their digests, wherever they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from searches import search, trial

from tapml import keys, recipe
from tapml.errors import RecipeError
from tapml.tuning import database
from tapml_stages.metaschedule.stage import MetaSchedule

RECIPE = """\
version: 1
name: little
model: {source: onnx, path: model.onnx, inputs: {x: {shape: [1, 4], dtype: float32}}}
target: {preset: cpu}
"""
INPUTS = {"program": "0" * 64, "records": "1" * 64}


def stage(folder: Path, tuning: str) -> MetaSchedule:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(f"{RECIPE}tuning: {tuning}\n")
    return MetaSchedule.from_recipe(recipe.load(folder / "recipe.yaml"))


def key(folder: Path, tuning: str) -> str:
    return keys.action_key(stage(folder, tuning), INPUTS)


def test_none_is_the_default(tmp_path: Path) -> None:
    assert stage(tmp_path, "{trials: 0}").reused is None
    assert key(tmp_path, "{}") == key(tmp_path, "{reuse: none}")


def test_a_file_is_keyed_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    for name, searches in (("a", [search(trial(1))]), ("b", [search(trial(2))])):
        database.export(searches, tmp_path / f"{name}.jsonl")
    (tmp_path / "c.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    a, b, c = (key(tmp_path, f"{{reuse: {{db: {name}.jsonl}}}}") for name in "abc")
    assert a == c != b
    assert key(tmp_path, "{}") not in (a, b)
    assert key(tmp_path, "{reuse: {db: a.jsonl, pretrain: false}}") != a


def test_a_folder_is_keyed_by_all_of_its_searches(tmp_path: Path) -> None:
    database.merge(tmp_path / "db", [search(trial(1))])
    one = key(tmp_path, "{reuse: {db: db}}")
    assert key(tmp_path, "{reuse: {db: db}}") == one
    (tmp_path / "db" / "notes.txt").write_text("no search")
    assert key(tmp_path, "{reuse: {db: db}}") == one
    database.merge(tmp_path / "db", [search(trial(1), trial(2))])
    two = key(tmp_path, "{reuse: {db: db}}")
    database.merge(tmp_path / "db", [search(trial(1), workload="other")])
    assert len({one, two, key(tmp_path, "{reuse: {db: db}}")}) == 3


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ("{reuse: {db: none.jsonl}}", "no file 'none.jsonl'"),
        ("{reuse: {db: none}}", "no folder 'none'"),
        ("{reuse: {db: empty}}", r"'empty' holds none of \*\.jsonl"),
        ("{reuse: {db: ''}}", "reuse"),
        ("{reuse: last}", "reuse"),
    ],
)
def test_a_database_that_is_not_there_is_told_with_its_place(
    tmp_path: Path, tuning: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=message) as raised:
        stage(tmp_path, tuning)
    assert "recipe.yaml:5:" in str(raised.value)
