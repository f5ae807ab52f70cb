"""Where the shipped recipes and workflows lie (package data; symlinks in a checkout)."""

from __future__ import annotations

from pathlib import Path

from .errors import RecipeError, nearest

_ROOT = Path(__file__).parent / "shipped"


def workflows() -> Path:
    """The packaged `workflows.yaml`."""
    return _ROOT / "workflows.yaml"


def recipes() -> dict[str, Path]:
    """Packaged recipes by name, sorted."""
    return {path.stem: path for path in sorted((_ROOT / "recipes").glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The packaged recipe `name`. Raises: RecipeError with the nearest name."""
    known = recipes()
    if name not in known:
        message = f"no recipe {name!r} ships with tapml"
        raise RecipeError(message=message, hint=nearest(name, list(known)))
    return known[name]
