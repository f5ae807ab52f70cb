"""transformers' model → torch program → Relax, by the recipe's inputs and outputs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tapml.errors import RecipeError, RecipeErrors, nearest

from ...pretrained import without_cache
from ...program import Bounds, Program
from ..torch import convert, export
from ..torch.source import keep
from .adapters import exportable
from .masks import plain_masks

if TYPE_CHECKING:
    from ..stage import Import

_USUAL = ("logits", "last_hidden_state")  # the output that is kept where the recipe names none


def program_of(model: Any, stage: Import, where: str) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights, these as views of the model's.

    Raises: RecipeError(s) for inputs and outputs that the model does not have; StageError for what
            torch cannot export or we cannot import.
    """
    arguments = _arguments(model, stage)
    dims = {name: Bounds(bounds.min, bounds.max) for name, bounds in stage.dims.items()}
    inputs = {
        name: export.Wanted(stage.signature[name].shape, stage.signature[name].dtype)
        for name in arguments
        if name in stage.signature
    }
    without_cache(model)
    with plain_masks(), exportable(model):
        exported = export.export(model, arguments, inputs, dims, where)
    names = export.output_names(exported)
    usual = next((name for name in _USUAL if name in names), None)
    wanted = stage.keep or ((usual,) if usual else ())
    return convert.convert(
        exported,
        inputs={name: want.shape for name, want in inputs.items()},
        outputs=keep(names, wanted),
        dims=dims,
        buckets=stage.buckets,
        where=where,
    )


def _arguments(model: Any, stage: Import) -> dict[str, Any]:
    """Values for the model's forward by name, in its order; tensors for the recipe's inputs."""
    known = list(inspect.signature(model.forward).parameters)
    if not stage.signature:
        main = model.main_input_name
        raise RecipeError(
            field="model.inputs",
            message=f"{type(model).__name__} takes inputs of any size: which are wanted?",
            hint=f"inputs: {{{main}: {{shape: [batch, …], dtype: …}}}}, with dims: {{batch: "
            "{min: 1, max: 64}}",
        )
    errors = [
        RecipeError(
            field=f"model.inputs.{name}",
            message=f"{type(model).__name__} has no input {name!r}",
            hint=nearest(name, known, noun="it has"),
        )
        for name in stage.signature
        if name not in known
    ]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeErrors(errors=tuple(errors), message=f"{len(errors)} mistakes in model.inputs")
    values: dict[str, Any] = {}
    for name in known:
        if name in stage.signature:
            spec = stage.signature[name]
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            values[name] = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
        elif name == "return_dict":
            values[name] = True
    return values
