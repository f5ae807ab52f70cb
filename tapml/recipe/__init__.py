"""Recipes: YAML text, composed and filled in, checked against what the stages declare.

text, loader → positions   a file as a tree of values, each with its place
compose, matrix, variables what `extends`, `matrix` and `${…}` make of trees
schema, validate           the model that the stages' sections make, and its errors at their places
check                      all of these, in order: the recipes of a file
recipe, resolve            what a checked recipe holds, and the files and Python it points at
editor, reference          the JSON Schema and `docs/recipes.md`, from the same models
"""

from .check import load, load_all
from .editor import json_schema
from .recipe import Recipe
from .schema import Gates

__all__ = ["Gates", "Recipe", "json_schema", "load", "load_all"]
