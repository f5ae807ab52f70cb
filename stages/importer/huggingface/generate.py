"""Language models that decode: transformers' model → program with its cache as states.

`main(input_ids [batch, n], position [batch], last [batch], *states, *params) → logits [batch,
vocabulary]`: `position` is how many tokens a row's states hold, `last` the index in this call of
the row's last token, whose logits are given. Prefill is this program; decode is it at n = 1.

A model with an encoder takes a source too (encoders.py). Decode is for an empty one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from tapml.errors import RecipeError, StageError

from ... import codec
from ...program import Bounds, Program
from ..torch import convert, export
from . import encoders
from .adapters import adapted
from .lowering import writes_to_states
from .states import CACHE, Source, States, refusal

if TYPE_CHECKING:
    from ..stage import Import

TOKENS, BATCH = "n", "batch"  # dims: tokens of a call, rows
FACTS = "generation.json"  # what a generator must know of the model, beside the bundle
_CACHES = ("past_key_values", "cache_params")  # what models call it
_MODEL = "model"  # attribute of Decoder
_TOLERANCE = 1e-3  # of the range, torch against itself: what is wrong is wrong by far more

Shapes = dict[str, tuple[int, ...]]


class Decoder(nn.Module):
    """The model as a function of its states."""

    def __init__(self, model: PreTrainedModel, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(
        self,
        input_ids: Tensor,
        position: Tensor,
        last: Tensor,
        source: Tensor | None = None,
        source_length: Tensor | None = None,
        *,
        states: dict[str, Tensor],
    ) -> Tensor:
        read = None if source is None else Source(source, source_length)
        return run(self.model, input_ids, States(states, position, last, self.context, source=read))


def run(model: PreTrainedModel, input_ids: Tensor, states: States) -> Tensor:
    """Logits [batch, vocabulary] of each row's last token; the others' are not computed."""

    def pick(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        index = states.last.clamp(min=0)[:, None, None].expand(-1, 1, args[0].shape[-1])
        return (args[0].gather(1, index),)

    at = states.position[:, None] + torch.arange(input_ids.shape[1])
    head: Any = model.get_output_embeddings()
    arguments = inspect.signature(model.forward).parameters
    cache = next((name for name in _CACHES if name in arguments), None)
    if cache is None:
        raise refusal(f"{type(model).__name__} takes no cache that we know")
    prefix, given = "", dict[str, Any]({cache: states})
    if states.source is not None:
        prefix, given["encoder_outputs"] = "decoder_", encoders.encoded(model, states.source)
    if f"{prefix}position_ids" in arguments or not prefix:
        given[f"{prefix}position_ids"] = at
    hook = head.register_forward_pre_hook(pick)
    try:
        with states.serving(model):
            out = model(**{f"{prefix}input_ids": input_ids}, use_cache=True, **given)
    finally:
        hook.remove()
    return out.logits.squeeze(1)


def program_of(
    model: PreTrainedModel, stage: Import, where: str
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights, these as views of the model's.

    Raises: RecipeError for a context, inputs or dims that do not fit; StageError for a model whose
            attention or cache is another than ours, or that gives other logits with it; for what
            torch cannot export or we cannot import.
    """
    assert stage.context is not None
    _check_recipe(model, stage)
    return decoder(model, stage.context, _rows(stage), stage.buckets, where)


def decoder(
    model: PreTrainedModel,
    context: int,
    batch: int | Bounds = 1,
    buckets: tuple[Mapping[str, int], ...] = (),
    where: str = "the model",
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of a language model.

    In: `context`: tokens that the cache holds, and of a call at most; `batch`: rows, or bounds of
        their number
    """
    states = check(model, context, where)
    dims = {TOKENS: Bounds(1, context)}
    rows, most = (batch, batch) if isinstance(batch, int) else (BATCH, batch.max)
    if isinstance(batch, Bounds):
        dims[BATCH] = batch
    inputs = {
        "input_ids": export.Wanted((rows, TOKENS), "int64"),
        **{name: export.Wanted((rows,), "int64") for name in ("position", "last")},
    }
    source = encoders.inputs(model, rows, most, context)
    inputs |= source.inputs
    exported_dims = dims | source.exported
    held = {name: export.Wanted((rows, *shape[1:]), "float32") for name, shape in states.items()}
    examples = {**_zeros(inputs), "states": _zeros(held)}
    wanted = {**inputs, "states": held}
    with adapted(model, context):
        exported = export.export(Decoder(model, context), examples, wanted, exported_dims, where)
        program, weights = convert.convert(
            exported,
            inputs={name: want.shape for name, want in (inputs | held).items()},
            outputs=["logits"],
            dims=exported_dims,
            buckets=buckets,
            converters={"auto_functionalized_v2": writes_to_states},
            states=list(states),
            where=where,
        )
    limit = context if any(name.startswith(f"{CACHE}.") for name in states) else None
    program = _of_the_model(program, len(inputs), limit, dims | source.dims)
    return program, {_own(name): one for name, one in weights.items()}


def _of_the_model(
    program: Program, inputs: int, context: int | None, dims: dict[str, Bounds]
) -> Program:
    """The program with its states told from its inputs, its weights named as in the model."""
    io = program.io
    io = replace(
        io,
        inputs=io.inputs[:inputs],
        states=io.inputs[inputs:],
        context=context,
        dims=dims,
        params=tuple(replace(one, name=_own(one.name)) for one in io.params),
    )
    origins = tuple(
        replace(one, weights=tuple(_own(name) for name in one.weights))
        for one in program.provenance
    )
    mod = program.mod.clone()
    least, most = ({n: getattr(one, end) for n, one in dims.items()} for end in ("min", "max"))
    bounds = {"tir_var_lower_bound": least, "tir_var_upper_bound": most}
    mod["main"] = mod["main"].with_attrs(bounds)
    return replace(program, mod=mod, io=io, provenance=origins)


def _own(weight: str) -> str:
    return weight.removeprefix(f"{_MODEL}.")


def _zeros(wanted: Mapping[str, export.Wanted]) -> dict[str, Tensor]:
    """Tensors of their shapes, 1 for a dim."""
    return {
        name: torch.zeros(
            [dim if isinstance(dim, int) else 1 for dim in want.shape],
            dtype=getattr(torch, want.dtype),
        )
        for name, want in wanted.items()
    }


def check(model: PreTrainedModel, context: int, where: str) -> Shapes:
    """Shapes of the model's states by name, after a first run of the model with and without them.

    Raises: StageError where the logits differ, or the model keeps tensors itself.
    """
    generator = torch.Generator().manual_seed(0)
    ends = [end for end in (4, 5, 6) if end <= context] or [1]
    embeddings: Any = model.get_input_embeddings()
    ids = torch.randint(len(embeddings.weight), (1, ends[-1]), generator=generator)
    held: dict[str, Tensor] = {}
    source, whole = encoders.example(model, ids)
    before = _kept(model)
    with torch.no_grad():
        expected = model(**whole, use_cache=False).logits[0]
        with adapted(model, context):
            for start, end in zip([0, *ends], ends, strict=False):
                place = torch.tensor([start]), torch.tensor([end - start - 1])
                states = States(held, *place, context, source=source, checking=True)
                got = run(model, ids[:, start:end], states)[0]
                error = float((got - expected[end - 1]).abs().max() / expected.abs().max())
                if not error <= _TOLERANCE:
                    raise StageError(
                        message=f"{where}: with its cache as states, the model's logits differ by "
                        f"{error:.2g} of their range at token {end}",
                        hint="leave out `task: generate`: the model then runs without a cache",
                    )
    if kept := sorted(_kept(model) - before):
        raise refusal(f"it keeps {', '.join(kept[:4])} itself, from call to call")
    return {name: tuple(state.shape) for name, state in held.items()}


def _kept(model: PreTrainedModel) -> set[str]:
    """Tensors that its modules have as plain attributes."""
    return {
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def write_facts(model: PreTrainedModel, folder: Path) -> Path:
    """The file of what a generator must know: the tokens that begin and end a text."""
    config: Any = getattr(model, "generation_config", None) or GenerationConfig()
    end = config.eos_token_id
    facts = {
        "bos_token_id": config.bos_token_id,
        "decoder_start_token_id": config.decoder_start_token_id,
        "eos_token_ids": [] if end is None else [end] if isinstance(end, int) else list(end),
        "pad_token_id": config.pad_token_id,
    }
    codec.write_json(folder / FACTS, facts)
    return folder / FACTS


def _check_recipe(model: PreTrainedModel, stage: Import) -> None:
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_target_positions")
    longest = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    if longest is not None and stage.context is not None and stage.context > longest:
        raise RecipeError(
            field="model.context",
            message=f"{type(model).__name__} knows positions up to {longest}",
            hint=f"write a context of at most {longest}",
        )
    if stage.signature:
        raise RecipeError(
            field="model.inputs",
            message="a model that generates has inputs of its own: input_ids, position, last",
            hint="leave `inputs` out",
        )
    for name in stage.dims:
        if name != BATCH:
            raise RecipeError(
                field=f"model.dims.{name}",
                message="a model that generates has one dim to bound: batch",
                hint="dims: {batch: {min: 1, max: 4}}",
            )


def _rows(stage: Import) -> int | Bounds:
    bounds = stage.dims.get(BATCH)
    if bounds is None:
        return 1
    return bounds.min if bounds.min == bounds.max else Bounds(bounds.min, bounds.max)
