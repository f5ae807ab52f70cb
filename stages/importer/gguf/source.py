"""GGUF files of llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.formats import gguf as headers

from ..source import Imported

if TYPE_CHECKING:
    from tapml.stage import Context

    from ..stage import Import


def load(stage: Import, ctx: Context) -> Imported:
    """The model of a GGUF file, its weights under transformers' names, as floats and, where they
    are kept, with the scales of the integers that these were made of.

    Raises: RecipeError when inputs or outputs do not fit; StageError for a damaged file, and what
            cannot be imported.
    """
    from ..huggingface.source import imported
    from . import blocks
    from .model import load, write_tokenizer  # torch and transformers

    assert stage.file is not None
    path = Path(stage.file.path)
    loaded = load(path, keep=stage.blocks == "keep")
    loaded.model.config.save_pretrained(ctx.workdir / "source")
    write_tokenizer(path, ctx.workdir / "tokenizer")
    files = {one.name: one for one in (ctx.workdir / "tokenizer").iterdir()}
    made = imported(loaded, stage, ctx, str(path), files)
    tables = (blocks.table(headers.read(path), loaded.blocks.values()),)
    return replace(blocks.keep(made, loaded.blocks), tables=tables)
