"""transformers' models by the class that a config.json names; their weights are given, not made.

Import and reference build the same class; what each asks of it (how it attends) is its own matter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tapml.errors import RecipeError, StageError


def find_class(folder: Path, architecture: str | None) -> Any:
    """transformers' class of `architecture`, else of what config.json says.

    Raises: RecipeError for a name that transformers does not have; StageError when config.json
            names none.
    """
    import transformers

    named = architecture or _named(folder)
    found = getattr(transformers, named, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    close = get_close_matches(named, [one for one in dir(transformers) if one[0].isupper()], n=3)
    message = f"transformers {transformers.__version__} has no model {named!r}"
    hint = f"nearest: {', '.join(close)}" if close else "newer versions have more"
    if architecture is not None:
        raise RecipeError(field="model.architecture", message=message, hint=hint)
    raise StageError(message=f"{folder}: {message}", hint=f"{hint}; or name it: model.architecture")


def _named(folder: Path) -> str:
    names = json.loads((folder / "config.json").read_bytes()).get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    raise StageError(
        message=f"{folder}: config.json names no architecture",
        hint="name transformers' class: model.architecture, say BertModel",
    )


def read_config(folder: Path) -> Any:
    """The configuration of a folder. StageError where transformers cannot make one of it."""
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # configurations check themselves in many ways
        raise StageError(message=f"{folder}/config.json: {reason(error)}") from error


def build(cls: Any, config: Any, **options: Any) -> Any:
    """A model in float32 whose parameters hold nothing yet: `fill` it.

    In: `options`: `attn_implementation`, `experts_implementation`
    """
    import torch
    from transformers import initialization

    try:
        with initialization.no_init_weights():
            model = cls._from_config(config, dtype=torch.float32, **options)
        model.tie_weights()
    except Exception as error:  # the model's own code, on a configuration out of a file
        raise StageError(message=f"{cls.__name__}: {reason(error)}") from error
    return model.eval().requires_grad_(False)


def fill(model: Any, tensors: Mapping[str, Any]) -> None:
    """Gives a model its parameters and buffers, without a copy; parameters not given become NaN."""
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones are one object
    held = {**parameters, **dict(model.named_buffers(remove_duplicate=False))}
    for name in tensors.keys() & held.keys():
        held[name].data = tensors[name]
    given = {id(held[name]) for name in tensors.keys() & held.keys()}
    for parameter in parameters.values():
        if id(parameter) not in given:
            parameter.data = torch.full((), torch.nan).expand(parameter.shape)


def without_cache(model: Any) -> None:
    """Tells a model, and every model in it, to give no cache back."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.use_cache = False


def reason(error: Exception) -> str:
    """The first line of what a library says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
