"""A folder's weights in transformers' model, float32, mapped from the file where they are that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapml.errors import StageError

from ...pretrained import find_class, read_config, reason

# how the model attends and mixes experts, so that torch.export sees plain operators
PLAIN = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}


@dataclass(frozen=True)
class Loaded:
    """`missing`: parameters that the files do not hold."""

    model: Any
    missing: frozenset[str]


def load(folder: Path, architecture: str | None) -> Loaded:
    """transformers' model of a folder that `folder.check` let pass.

    Raises: RecipeError for an architecture that transformers lacks; StageError for files that do
            not fit it.
    """
    import torch

    cls, config = find_class(folder, architecture), read_config(folder)
    try:
        model, info = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **PLAIN,
        )
    except Exception as error:  # safetensors, torch and transformers have each their own
        raise StageError(message=f"{folder}: {cls.__name__}: {reason(error)}") from error
    model = model.eval().requires_grad_(False)
    return Loaded(model, frozenset(info["missing_keys"]))


def demand(missing: frozenset[str], used: frozenset[str], where: str) -> None:
    """Raises StageError when the program reads weights that the model's files do not hold."""
    if lacking := sorted(missing & used):
        raise StageError(
            message=f"{where}: the weights lack {len(lacking)} parameters that the model reads: "
            f"{', '.join(lacking[:6])}",
            hint="another class may fit these weights: model.architecture",
        )
