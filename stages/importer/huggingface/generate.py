"""Language models that decode: transformers' model → program with its cache as states.

`main(input_ids [batch, n], position [batch], last [batch], *states, *params) → logits [batch,
vocabulary]`: `position` is how many tokens a row's cache holds, `last` the index in this call of
the row's last token, whose logits are given. Prefill is this program; decode is it at n = 1.
"""

from __future__ import annotations

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
from ...attention import Attention, cache_update, cached_attention
from ...compat import tvm
from ...program import Bounds, Program
from ..torch import convert, export
from .adapters import adapted
from .attention import States, attend

if TYPE_CHECKING:
    from ..stage import Import

rx = tvm.relax
TOKENS, BATCH = "n", "batch"  # dims: tokens of a call, rows
FACTS = "generation.json"  # what a generator must know of the model, beside the bundle
_MODEL = "model"  # attribute of Decoder
_TOLERANCE = 1e-3  # of the range, torch against itself: what is wrong is wrong by far more

Shapes = dict[str, tuple[int, ...]]


class Decoder(nn.Module):
    """The model as a function of its states."""

    def __init__(self, model: PreTrainedModel, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context

    def forward(
        self, input_ids: Tensor, position: Tensor, last: Tensor, states: dict[str, Tensor]
    ) -> Tensor:
        return run(self.model, input_ids, last, States(states, position, self.context))


def run(model: PreTrainedModel, input_ids: Tensor, last: Tensor, states: States) -> Tensor:
    """Logits [batch, vocabulary] of each row's last token; the others' are not computed."""

    def pick(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        index = last[:, None, None].expand(-1, 1, args[0].shape[-1])
        return (args[0].gather(1, index),)

    at = states.position[:, None] + torch.arange(input_ids.shape[1])
    head: Any = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(pick)
    try:
        with states.serving(model):
            out = model(
                input_ids=input_ids, position_ids=at, past_key_values=states, use_cache=True
            )
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

    In: `context`: tokens that the cache holds; `batch`: rows, or bounds of their number
    """
    states = check(model, context, where)
    dims = {TOKENS: Bounds(1, context)}
    rows: int | str = batch if isinstance(batch, int) else BATCH
    if isinstance(batch, Bounds):
        dims[BATCH] = batch
    inputs = {
        "input_ids": export.Wanted((rows, TOKENS), "int64"),
        **{name: export.Wanted((rows,), "int64") for name in ("position", "last")},
    }
    held = {name: export.Wanted((rows, *shape[1:]), "float32") for name, shape in states.items()}
    examples = {**_zeros(inputs), "states": _zeros(held)}
    wanted = {**inputs, "states": held}
    with adapted(model, context):
        exported = export.export(Decoder(model, context), examples, wanted, dims, where)
        program, weights = convert.convert(
            exported,
            inputs={name: want.shape for name, want in (inputs | held).items()},
            outputs=["logits"],
            dims=dims,
            buckets=buckets,
            converters={"auto_functionalized_v2": _attend},
            states=list(states),
            where=where,
        )
    return _of_the_model(program, len(inputs)), {_own(name): one for name, one in weights.items()}


def _of_the_model(program: Program, inputs: int) -> Program:
    """The program with its states told from its inputs, its weights named as in the model."""
    io = program.io
    io = replace(
        io,
        inputs=io.inputs[:inputs],
        states=io.inputs[inputs:],
        params=tuple(replace(one, name=_own(one.name)) for one in io.params),
    )
    origins = tuple(
        replace(one, weights=tuple(_own(name) for name in one.weights))
        for one in program.provenance
    )
    return replace(program, io=io, provenance=origins)


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

    Raises: StageError where the logits differ.
    """
    generator = torch.Generator().manual_seed(0)
    ends = [end for end in (4, 5, 6) if end <= context] or [1]
    embeddings: Any = model.get_input_embeddings()
    ids = torch.randint(len(embeddings.weight), (1, ends[-1]), generator=generator)
    held: dict[str, Tensor] = {}
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
        with adapted(model, context):
            for start, end in zip([0, *ends], ends, strict=False):
                states = States(held, torch.tensor([start]), context, checking=True)
                got = run(model, ids[:, start:end], torch.tensor([end - start - 1]), states)[0]
                error = float((got - expected[end - 1]).abs().max() / expected.abs().max())
                if not error <= _TOLERANCE:
                    raise StageError(
                        message=f"{where}: with its cache as states, the model's logits differ by "
                        f"{error:.2g} of their range at token {end}",
                        hint="leave out `task: generate`: the model then runs without a cache",
                    )
    return {name: tuple(state.shape) for name, state in held.items()}


def write_facts(model: PreTrainedModel, stage: Import, folder: Path) -> Path:
    """The file of what a generator must know: the tokens that begin and end a text, the context."""
    config: Any = getattr(model, "generation_config", None) or GenerationConfig()
    end = config.eos_token_id
    facts = {
        "context": stage.context,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": [] if end is None else [end] if isinstance(end, int) else list(end),
        "pad_token_id": config.pad_token_id,
    }
    codec.write_json(folder / FACTS, facts)
    return folder / FACTS


def _check_recipe(model: PreTrainedModel, stage: Import) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
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


def _attend(node: torch.fx.Node, importer: Any) -> Any:
    """`attend` → two updates in place, and an attention that reads what they gave."""
    if node.args[0] is not attend._opoverload:
        raise StageError(message=f"{node.args[0]} writes to its arguments")
    given: dict[str, Any] = dict(node.kwargs)
    env, builder = importer.env, importer.block_builder
    bases = given["_all_bases"]
    states = [env[bases[given[f"_{name}_base_index"]]] for name in ("keys", "values")]
    query, key, value, position = (env[given[one]] for one in ("query", "key", "value", "position"))
    extra = {name: env[given[name]] for name in ("bias", "sinks") if given[name] is not None}
    options = Attention(
        **{name: given[name] for name in ("scale", "softcap", "window")},
        **dict.fromkeys(extra, True),
    )

    def update(state: Any, new: Any) -> Any:
        rows, heads, context, width = (_size(dim) for dim in state.ty.shape.values)
        kernel = builder.add_func(cache_update(rows, heads, context, width), "cache_update")
        args = rx.Tuple([state, new, position])
        return builder.emit(rx.op.call_tir_inplace(kernel, args, 0, state.ty))

    keys, values = (update(*pair) for pair in zip(states, (key, value), strict=True))
    rows, heads, n, width = query.ty.shape.values
    _, held, context, value_width = (_size(dim) for dim in values.ty.shape.values)
    func = cached_attention(
        _size(rows), _size(heads), held, context, _size(width), value_width, options
    )
    kernel = builder.add_func(func, "cached_attention")
    out = rx.TensorType([rows, n, heads, value_width], "float32")
    args = rx.Tuple([query, keys, values, position, *extra.values()])
    return builder.emit(rx.op.call_tir(kernel, args, out)), keys, values


def _size(dim: Any) -> int | None:
    return int(dim) if isinstance(dim, tvm.tirx.IntImm) else None
