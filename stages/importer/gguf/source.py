"""GGUF files of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..source import Imported

if TYPE_CHECKING:
    from tapml.stage import Context

    from ..stage import Import


def load(stage: Import, ctx: Context) -> Imported:
    """The model of a GGUF file, its weights under transformers' names.

    Raises: RecipeError when inputs or outputs do not fit; StageError for a damaged file, and what
            cannot be imported.
    """
    from ..huggingface.source import imported
    from .model import load, write_tokenizer  # torch and transformers

    assert stage.file is not None
    path = Path(stage.file.path)
    loaded = load(path)
    loaded.model.config.save_pretrained(ctx.workdir / "source")
    write_tokenizer(path, ctx.workdir / "tokenizer")
    files = {one.name: one for one in (ctx.workdir / "tokenizer").iterdir()}
    return imported(loaded, stage, ctx, str(path), files)
