"""Cases of a language model that keeps states: calls that go on from each other.

The reference keeps none. It runs each sequence whole, and what it gives at the last token of a call
is what the call must give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapml.errors import StageError

from ..program import Bounds, Io
from .cases import Arrays, Case, Kind, Real
from .runners.runner import Run

STEPS = 64  # calls of one token each behind the first prompt; behind the others two
PROMPTS = (5, 37, 128)  # tokens
ROWS = 3  # of a batch, where its size is free; each row is one token shorter than the one before
INPUTS: tuple[str, ...] = ("input_ids", "position", "last")


def make(io: Io, real: Real | None) -> list[Case]:
    """Chains of calls: a prompt, then its continuation token by token; real sequences first.

    Raises: StageError when the program is no language model, or real sequences are no tokens.
    """
    if tuple(spec.name for spec in io.inputs) != INPUTS or len(io.steps) != 1:
        names = ", ".join(spec.name for spec in io.inputs)
        raise StageError(
            message=f"only language models are checked with their states; this takes {names}"
        )
    rows, step = io.inputs[0].shape
    bounds = io.dims[step] if isinstance(step, str) else None
    context = bounds.max if bounds is not None else 1
    cases: list[Case] = []
    for index, tokens in enumerate(_real_tokens(io, real)):
        if tokens.shape[1] > context:
            message = f"a real sequence has {tokens.shape[1]} tokens, the context is {context}"
            raise StageError(message=message)
        first = max(1, tokens.shape[1] - STEPS)
        cases += _chain(f"real/{index}", "real", io, tokens, np.full(len(tokens), first))
    prompts = [bucket[io.steps[0]] for bucket in io.buckets if bucket.get(io.steps[0], 1) > 1]
    vocabulary = int(io.outputs[0].shape[-1])
    for index, prompt in enumerate(dict.fromkeys(min(n, context) for n in (*PROMPTS, *prompts))):
        if isinstance(rows, int):
            count = rows
        else:
            count = min(io.dims[rows].max, max(io.dims[rows].min, ROWS if index else 1))
        total = min(context, prompt + (2 if index else STEPS))
        rng = np.random.default_rng([0, index])
        tokens = rng.integers(0, vocabulary, (count, total))
        lengths = np.maximum(1, prompt - np.arange(count))
        cases += _chain(f"random/{index}", "random", io, tokens, lengths)
    return cases


def _real_tokens(io: Io, real: Real | None) -> Iterator[np.ndarray]:
    """Sequences [rows, n] of token numbers, every one of them in as many as the batch holds.

    The last are taken again where too few are left.
    """
    if real is None:
        return
    rows, vocabulary = io.inputs[0].shape[0], int(io.outputs[0].shape[-1])
    bounds = io.dims[rows] if isinstance(rows, str) else Bounds(rows, rows)
    for batch in real.batches if real.batches is not None else [real.samples or {}]:
        tokens = np.asarray(batch.get(INPUTS[0]))
        is_tokens = tokens.ndim == 2 and tokens.size and tokens.dtype.kind in "iu"
        if set(batch) != {INPUTS[0]} or not is_tokens:
            message = f"{real.origin} must give {{'{INPUTS[0]}': tokens [rows, n]}} alone"
            raise StageError(message=message)
        if not (tokens.min() >= 0 and tokens.max() < vocabulary):
            raise StageError(message=f"{real.origin} gave tokens outside 0..{vocabulary - 1}")
        if len(tokens) < bounds.min:
            message = f"{real.origin} gave {len(tokens)} sequences, the batch has {bounds.min}"
            raise StageError(message=message, hint="give more, or a batch of fewer rows")
        for start in range(0, len(tokens), bounds.max):
            start = min(start, len(tokens) - bounds.min)
            yield tokens[start : start + bounds.max].astype(np.int64)


def _chain(
    name: str, kind: Kind, io: Io, tokens: np.ndarray, lengths: np.ndarray
) -> Iterator[Case]:
    """A call on the first `lengths` tokens of the rows, then one for each token that is left."""
    batch, step = io.inputs[0].shape

    def case(label: str, after: str, ids: np.ndarray, position: np.ndarray, last: Any) -> Case:
        named = zip((batch, step), ids.shape, strict=True)
        sizes = {dim: n for dim, n in named if isinstance(dim, str)}
        arrays = dict(zip(INPUTS, (ids, position, last), strict=True))
        return Case(label, kind, sizes, arrays, after)

    width = int(lengths.max())
    inside = np.arange(width) < lengths[:, None]
    zeros = np.zeros_like(lengths)
    yield case(name, "", np.where(inside, tokens[:, :width], 0), zeros, lengths - 1)
    before = name
    for k in range(tokens.shape[1] - width):
        ids = np.take_along_axis(tokens, (lengths + k)[:, None], 1)
        label = f"{name}+{k + 1}"
        yield case(label, before, ids, lengths + k, zeros)
        before = label


def chains(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that go on from each other, together."""
    found: list[list[Case]] = []
    for case in cases:
        if case.after:
            found[-1].append(case)
        else:
            found.append([case])
    return found


def answers(run: Run, chain: Sequence[Case], output: str) -> list[Arrays]:
    """What the reference, which is given whole sequences, says to each call of a chain."""
    ends = [case.inputs["position"] + case.inputs["last"] for case in chain]
    tokens = np.zeros((len(ends[0]), 1 + int(max(end.max() for end in ends))), np.int64)
    for case, end in zip(chain, ends, strict=True):
        for row, (start, stop) in enumerate(zip(case.inputs["position"], end + 1, strict=True)):
            tokens[row, start:stop] = case.inputs["input_ids"][row, : stop - start]
    whole = run({"input_ids": tokens})[output]
    return [{output: whole[np.arange(len(end)), end]} for end in ends]
