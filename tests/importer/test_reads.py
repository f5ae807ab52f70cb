"""Files that a model's Python reads: in the key, and there when the reference calls it again."""

from __future__ import annotations

import json
from pathlib import Path

from tapml import keys
from tapml import recipe as recipes
from tapml_stages.importer.operator import write_source
from tapml_stages.importer.stage import Import

RECIPE = {
    "version": 1,
    "name": "net",
    "workflow": "deploy",
    "model": {"source": "torch", "python": "net.py:net", "reads": ["data/*.pth"]},
    "target": {"preset": "cpu"},
}


def stage(folder: Path) -> Import:
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    (folder / "net.py").write_text("def net(): ...\n")
    (found,) = recipes.load_all(folder / "recipe.yaml", ())
    return Import.from_recipe(found)


def test_other_weights_are_another_key_and_lie_beside_the_copied_function(tmp_path: Path) -> None:
    weights = tmp_path / "data" / "net.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    before = stage(tmp_path)
    assert before.python is not None
    write_source(before.python, tmp_path / "copy")
    assert (tmp_path / "copy" / "data" / "net.pth").read_bytes() == b"one"
    weights.write_bytes(b"two")
    assert keys.action_key(stage(tmp_path), {}) != keys.action_key(before, {})
