"""Models of the Hugging Face hub, and folders of its layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..source import Imported
from . import folder as folders
from .files import CONFIG

if TYPE_CHECKING:
    from tapml.stage import Context

    from ..stage import Import
    from .model import Loaded


def load(stage: Import, ctx: Context) -> Imported:
    """The model of a commit on the hub, or of a folder.

    Raises: EnvironmentalError where the hub cannot be reached or does not give it; RecipeError when
            inputs, outputs or architecture do not fit; StageError for what is refused, and what
            cannot be imported.
    """
    folder = Path(stage.folder.path) if stage.folder else _from_hub(stage)
    where = str(folder) if stage.folder else f"{stage.id} at {(stage.revision or '')[:12]}"
    folders.check(folder, stage.architecture)

    from .model import load  # torch and transformers

    loaded = load(folder, stage.architecture)
    source = ctx.workdir / "source"
    source.mkdir()
    shutil.copyfile(folder / CONFIG, source / CONFIG)
    return imported(loaded, stage, ctx, where, folders.tokenizer(folder))


def imported(
    loaded: Loaded, stage: Import, ctx: Context, where: str, files: dict[str, Path]
) -> Imported:
    """What a model of transformers becomes, wherever its weights came from."""
    from . import export, generate  # TVM
    from .model import demand

    if stage.task == "generate":
        program, weights = generate.program_of(loaded.model, stage, where)
        files = {**files, generate.FACTS: generate.write_facts(loaded.model, ctx.workdir)}
    else:
        program, weights = export.program_of(loaded.model, stage, where)
    demand(loaded.missing, frozenset(weights), where)
    facts = {"kind": "huggingface", "architecture": type(loaded.model).__name__}
    return Imported(program, weights, facts, files)


def _from_hub(stage: Import) -> Path:
    from .hub import snapshot

    assert stage.id is not None
    assert stage.revision is not None
    return snapshot(stage.id, stage.revision)
