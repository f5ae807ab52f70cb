"""Models of the Hugging Face hub that its offline cache holds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import RecipeError

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[0-9a-f]{7,40})?")


def is_id(name: str) -> bool:
    """Whether `name` reads as `owner/model`, or `owner/model@commit`."""
    return _ID.fullmatch(name) is not None and not name.startswith((".", "/"))


def find(name: str) -> Path:
    """The folder of a model's commit in the cache: the one asked for, else its main, else the only.

    Raises: RecipeError when it is not there, or there are several.
    """
    model, _, revision = name.partition("@")
    folder = cache() / f"models--{model.replace('/', '--')}"
    main = folder / "refs" / "main"
    if not revision and main.is_file():
        revision = main.read_text(encoding="utf-8", errors="replace").strip()[:40]
    found = sorted((folder / "snapshots").glob(f"{revision or ''}*")) if folder.is_dir() else []
    if not found:
        raise RecipeError(
            message=f"no file or folder {name}, and no such model in {cache()}",
            hint=f"fetch it first: hf download {model}"
            + (f" --revision {revision}" * bool(revision)),
        )
    if len(found) > 1:
        raise RecipeError(
            message=f"{cache()} has several commits of {model}: "
            + ", ".join(one.name[:12] for one in found),
            hint=f"name one: {model}@{found[0].name[:12]}",
        )
    return found[0]


def cache() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    if place := os.environ.get("HF_HUB_CACHE"):
        return Path(place)
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(home, "hub").expanduser()
