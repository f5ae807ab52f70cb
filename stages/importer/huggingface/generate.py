"""Language models that decode: transformers model → program with its cache as states.

`main(input_ids [batch, n], position [batch], last [batch], *states, *params) → logits [batch,
vocab]`: `position` is how many tokens a row's cache holds, `last` the index in this call of the
row's last token, whose logits are given. Prefill is this program; decode is it at n = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tapml.errors import StageError

from ...attention import Attention, cache_update, cached_attention
from ...compat import tvm
from ...program import Bounds, Program
from ..torch.convert import convert
from .adapters import adapted
from .attention import States

rx = tvm.relax
_TOKENS = "n"  # the dim of a call's tokens
_TOLERANCE = 1e-3  # of torch against itself, of the range: what is wrong is wrong by far more


class Decoder(nn.Module):
    """The model as a function of its states."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str], context: int) -> None:
        super().__init__()
        self.model, self.names, self.context = model, tuple(names), context

    def forward(
        self, input_ids: Tensor, position: Tensor, last: Tensor, states: tuple[Tensor, ...]
    ) -> Tensor:
        held = dict(zip(self.names, states, strict=True))
        return run(self.model, input_ids, last, States(held, position, self.context))


def run(model: PreTrainedModel, input_ids: Tensor, last: Tensor, states: States) -> Tensor:
    """Logits [batch, vocab] of each row's last token; those of the others are not computed."""

    def pick(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        index = last[:, None, None].expand(-1, 1, args[0].shape[-1])
        return (args[0].gather(1, index),)

    at = states.position[:, None] + torch.arange(input_ids.shape[1])
    hook = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        with states.serving(model):
            out = model(
                input_ids=input_ids, position_ids=at, past_key_values=states, use_cache=True
            )
    finally:
        hook.remove()
    return out.logits.squeeze(1)


def convert_decoder(
    model: PreTrainedModel, context: int, batch: int | Bounds, where: str
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of a language model.

    In:     `context`: tokens that a cache holds; `batch`: rows, or the bounds of their number
    Raises: StageError for a model whose attention or cache is another than ours, or that gives
            other logits with it; for what torch cannot export or we cannot import.
    """
    model = model.eval()
    names = check(model, context, where)
    decoder = Decoder(model, list(names), context)
    rows = batch if isinstance(batch, int) else max(2, batch.min)
    dims = {_TOKENS: Bounds(1, context)}
    axes: dict[str, Any] = {"batch": batch}
    tokens = torch.export.Dim(_TOKENS, min=1, max=context)
    dynamic: dict[int, Any] | None = None
    if isinstance(batch, Bounds):
        dims["batch"] = batch
        axes["batch"] = "batch"
        dynamic = {0: torch.export.Dim("batch", min=batch.min, max=batch.max)}
    n = min(5, context)
    states = tuple(torch.zeros(rows, *shape[1:]) for shape in names.values())
    arguments = (
        torch.zeros(rows, n, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int64),
        torch.zeros(rows, dtype=torch.int64),
        states,
    )
    with torch.no_grad(), adapted(model, context):
        exported = torch.export.export(
            decoder,
            arguments,
            dynamic_shapes=(
                {**(dynamic or {}), 1: tokens},
                dynamic,
                dynamic,
                (dynamic,) * len(states),
            ),
            strict=False,
        )
    b = axes["batch"]
    program, weights = convert(
        exported,
        inputs={
            "input_ids": (b, _TOKENS),
            "position": (b,),
            "last": (b,),
            **{name: (b, *shape[1:]) for name, shape in names.items()},
        },
        outputs=["logits"],
        dims=dims,
        converters={"auto_functionalized_v2": converter},
        states=list(names),
        where=where,
    )
    io = program.io
    return program, weights


def check(model: PreTrainedModel, context: int, where: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's states, by name, after a first run of the model with and without them.

    Raises: StageError where they differ.
    """
    generator = torch.Generator().manual_seed(0)
    length = min(6, context)
    vocab = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocab, (1, length), generator=generator)
    held: dict[str, Tensor] = {}
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0]
    with torch.no_grad(), adapted(model, context):
        for start, end in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
            states = States(held, torch.tensor([start]), context, checking=True)
            got = run(model, ids[:, start:end], torch.tensor([end - start - 1]), states)[0]
            error = (got - expected[end - 1]).abs().max() / expected.abs().max()
            if not error <= _TOLERANCE:
                raise StageError(
                    message=f"{where}: with its cache as states the model's logits differ by "
                    f"{float(error):.2g} of their range at token {end}",
                    hint="leave out `task: generate`: the model then runs without a cache",
                )
    return {name: tuple(state.shape) for name, state in held.items()}


def converter(node: torch.fx.Node, importer: Any) -> Any:
    """`attend` → two updates in place and an attention that reads what they gave."""
    if node.args[0] is not torch.ops.tapml.attend.default:
        raise StageError(message=f"{node.args[0]} writes to its arguments")
    given: Mapping[str, Any] = node.kwargs
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
