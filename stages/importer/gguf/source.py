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
    from ..huggingface.export import program_of  # torch and transformers, then TVM
    from ..huggingface.model import demand
    from .model import load, write_tokenizer

    assert stage.file is not None
    path = Path(stage.file.path)
    loaded = load(path)
    program, weights = program_of(loaded.model, stage, str(path))
    demand(loaded.missing, frozenset(weights), str(path))
    source, tokenizer = ctx.workdir / "source", ctx.workdir / "tokenizer"
    loaded.model.config.save_pretrained(source)
    write_tokenizer(path, tokenizer)
    facts = {"kind": "huggingface", "architecture": type(loaded.model).__name__}
    return Imported(program, weights, facts, {one.name: one for one in tokenizer.iterdir()})
