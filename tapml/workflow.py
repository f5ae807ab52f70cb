"""The graph of stages that a recipe's workflow describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx

    from .recipe import Recipe


def find(recipe_path: Path, explicit: Path | None = None) -> Path:
    """The workflow file of a recipe: `explicit`, else of the nearest folder above it, else the packaged one."""
    raise NotImplementedError


def graph(recipe: Recipe, workflow_file: Path) -> nx.DiGraph[str]:
    """Stage instances by node name: attributes `stage`: Stage, `inputs`: {input: (node, output)}; edges downstream."""
    raise NotImplementedError
