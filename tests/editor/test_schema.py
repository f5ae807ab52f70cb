"""The JSON Schema of recipes is one, and says of recipes what tapml says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tapml import recipe as recipes

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())


def test_the_schema_holds_what_its_own_schema_demands(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_hold_what_it_demands(path: Path, schema: dict[str, Any]) -> None:
    Draft202012Validator(schema).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_resolved_recipes_hold_what_it_demands(path: Path, schema: dict[str, Any]) -> None:
    for recipe in recipes.load_all(path):
        Draft202012Validator(schema).validate(recipe.resolved())


@pytest.mark.parametrize(
    "change",
    [
        {"tunning": {}},
        {"tuning": {"trials": "many"}},
        {"tuning": {"trials": -1}},
        {"version": 2},
        {"model": {"source": "keras"}},
        {"tuning": None},
        {"matrix": {"limit": 1000}},
    ],
    ids=str,
)
def test_it_refuses_what_tapml_refuses(change: dict[str, Any], schema: dict[str, Any]) -> None:
    tree = yaml.safe_load((ROOT / "recipes" / "magika.yaml").read_text())
    validator = Draft202012Validator(schema)
    assert validator.is_valid(tree)
    assert not validator.is_valid(tree | change)
