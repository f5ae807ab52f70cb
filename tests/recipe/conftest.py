"""Recipes of a tiny house, loaded from a folder that has what they point at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from small_recipe import REGISTRY, WHOLE

from tapml import recipe as recipes
from tapml.errors import RecipeError, RecipeErrors, TapmlError
from tapml.recipe import Recipe
from tapml.registry import Registry


@pytest.fixture
def registry() -> Registry:
    return REGISTRY


@pytest.fixture
def whole() -> str:
    return WHOLE


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Recipe]:
    """Loads a recipe's text from a folder that has a model and Python beside it."""
    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "inputs.py").write_text("def files(): ...\ndef same_label(): ...\n")

    def load_text(text: str, *overrides: str, registry: Registry = REGISTRY) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return recipes.load(path, overrides, registry)

    return load_text


@pytest.fixture
def errors_of(load: Callable[..., Recipe]) -> Callable[..., list[RecipeError]]:
    """The mistakes of a text, in order of their places, without the folder's name."""

    def find(text: str, *overrides: str) -> list[RecipeError]:
        try:
            load(text, *overrides)
        except RecipeErrors as several:
            found: Sequence[TapmlError] = several.errors
        except RecipeError as one:
            found = [one]
        else:
            found = []
        for error in found:
            assert isinstance(error, RecipeError)
            error.where = error.where.rpartition("/")[2]
        return [error for error in found if isinstance(error, RecipeError)]

    return find
