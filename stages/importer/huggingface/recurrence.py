"""How transformers' recurrent layers run when what they hold are a program's states: one torch
operator for all of stages/recurrence.py, and what stands in for the functions that call it.

Its models convolve and scan by functions of fixed names, made to be replaced by faster ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from ...recurrence import RECURRENCES
from .states import refusal, serving


@torch.library.custom_op("tapml::recur", mutates_args=("state",))
def recur(
    state: Tensor, position: Tensor, last: Tensor, inputs: Sequence[Tensor], kind: str
) -> Tensor:
    """[batch, n, channels]: the state read, taken through the tokens and written.

    The meaning of stages/recurrence.py once more, for torch to run: an oracle of the program.
    """
    of = RECURRENCES[kind]
    own, shared, fixed = of.named(inputs)
    always = {name: list(one) for name, one in fixed.items()}
    held = list(state.where(position[:, None, None] > 0, 0.0).unbind(1))
    given = []
    for i in range(inputs[0].shape[1]):
        token = {name: one[:, i] for name, one in own.items()}
        token |= {name: list(one[:, i, :, None].unbind(1)) for name, one in shared.items()}
        moved = of.advance(held, token | always, torch.exp)
        there = (last >= i)[:, None]
        given.append(of.give(moved, token | always).where(there, 0.0))
        held = [new.where(there, old) for new, old in zip(moved, held, strict=True)]
    state.copy_(torch.stack(held, 1))
    return torch.stack(given, 1)


@recur.register_fake
def _(state: Tensor, position: Tensor, last: Tensor, inputs: Sequence[Tensor], kind: str) -> Tensor:
    return torch.empty_like(inputs[0], memory_format=torch.contiguous_format)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **_: Any
) -> Tensor:
    """transformers' `causal_conv1d_fn`: [batch, channels, n].

    In: x [batch, channels, n], weight [channels, taps], bias [channels]
    """
    states = serving()
    state = states.tokens(weight.shape[1], weight.shape[0])
    args = (state, states.position, states.last, [x.transpose(1, 2), weight.t()])
    out = torch.ops.tapml.recur(*args, "convolution").transpose(1, 2)
    if bias is not None:
        out = out + bias[:, None]
    return out if activation is None else ACT2FN[activation](out)


def scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> tuple[Tensor, None] | Tensor:
    """transformers' `mamba_selective_scan`: [batch, channels, n], and no state.

    In: hidden_states, dt, z [batch, channels, n], A [channels, held], B, C [batch, held, n],
        D, delta_bias [channels]
    """
    if A.ndim != 2 or B.ndim != 3:
        raise refusal("its selective scan is of another shape than mamba's")
    states = serving()
    step = dt if delta_bias is None else dt + delta_bias[:, None]
    step = functional.softplus(step) if delta_softplus else step
    inputs = [one.transpose(1, 2) for one in (hidden_states, step, B, C)] + [A.t()]
    state = states.numbers(A.shape[1], A.shape[0])
    args = (state, states.position, states.last, inputs)
    out = torch.ops.tapml.recur(*args, "selective_scan").transpose(1, 2)
    if D is not None:
        out = out + hidden_states * D[:, None]
    if z is not None:
        out = out * functional.silu(z)
    return (out, None) if return_last_state else out


STAND_INS = {"causal_conv1d_fn": convolve, "mamba_selective_scan": scan}
