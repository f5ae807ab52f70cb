"""Cases of a language model that keeps states: calls that go on from each other.

The reference keeps none. It runs each sequence whole, and what it gives at the last token of a call
is what the call must give. A model with an encoder reads a source for each row in the first call,
and an empty one in those behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tapml.errors import StageError

from ..program import Bounds, Io, TensorSpec
from .cases import Arrays, Case, Kind, Real
from .runners.runner import Run

STEPS = 64  # calls of one token each behind the first prompt; behind the others two
PROMPTS = (5, 37, 128)  # tokens
ROWS = 3  # of a batch, where its size is free; each row is one token shorter than the one before
INPUTS: tuple[str, ...] = ("input_ids", "position", "last")
SOURCE: tuple[str, ...] = ("source", "source_length")
SOURCE_TOKENS = 11  # each row has one less than the one before


def make(io: Io, real: Real | None) -> list[Case]:
    """Chains of calls: a prompt, then its continuation token by token; real sequences first.

    Raises: StageError when the program is no language model, or real sequences are no tokens.
    """
    if tuple(spec.name for spec in io.inputs) not in (
        INPUTS,
        INPUTS + SOURCE,
        INPUTS + SOURCE[:1],
    ):
        names = ", ".join(spec.name for spec in io.inputs)
        raise StageError(
            message=f"only language models are checked with their states; this takes {names}"
        )
    rows, step = io.inputs[0].shape
    bounds = io.dims[step] if isinstance(step, str) else None
    context = bounds.max if bounds is not None else 1
    cases: list[Case] = []
    for index, (tokens, source) in enumerate(_real_tokens(io, real)):
        if tokens.shape[1] > context:
            message = f"a real sequence has {tokens.shape[1]} tokens, the context is {context}"
            raise StageError(message=message)
        first = max(1, tokens.shape[1] - STEPS)
        sources = _sources(io, source, np.full(len(source), source.shape[1]))
        cases += _chain(f"real/{index}", "real", io, tokens, np.full(len(tokens), first), sources)
    prompts = [size for bucket in io.buckets if (size := bucket.get(str(step), 1)) > 1]
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
        most = min(context, SOURCE_TOKENS)
        source = _random_source(io, rng, count, most)
        sources = _sources(io, source, np.maximum(1, most - np.arange(count)))
        cases += _chain(f"random/{index}", "random", io, tokens, lengths, sources)
    return cases


def _sources(io: Io, source: np.ndarray, lengths: np.ndarray) -> tuple[Arrays, Arrays]:
    """Inputs of an encoder: of a call that brings a source, and of one that does not.

    In: tokens [rows, m] with the lengths of the rows, or features, each of their full size
    """
    match [spec.name for spec in io.inputs[len(INPUTS) :]]:
        case []:
            return {}, {}
        case [name]:
            return {name: source}, {name: source[:0]}
    inside = np.arange(source.shape[1]) < lengths[:, None]
    read, none = np.where(inside, source, 0).astype(np.int64), np.zeros((len(source), 0), np.int64)
    full, empty = (dict(zip(SOURCE, (one, lengths), strict=True)) for one in (read, none))
    return full, empty


def _random_source(io: Io, rng: np.random.Generator, rows: int, most: int) -> np.ndarray:
    spec = io.inputs[-1]
    if spec.dtype == "float32":
        return rng.standard_normal((rows, *map(int, spec.shape[1:]))).astype(np.float32)
    return rng.integers(0, int(io.outputs[0].shape[-1]), (rows, most))


def _real_tokens(io: Io, real: Real | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Sequences [rows, n] of token numbers with what the encoder reads before, every one of them in
    as many as the batch holds.

    The last are taken again where too few are left.
    """
    if real is None:
        return
    rows, vocabulary = io.inputs[0].shape[0], int(io.outputs[0].shape[-1])
    bounds = io.dims[rows] if isinstance(rows, str) else Bounds(rows, rows)
    specs = [spec for spec in io.inputs if spec.name in (INPUTS[0], SOURCE[0])]
    wanted = {spec.name: "tokens [rows, n]" for spec in specs}
    wanted |= {s.name: f"floats [rows, {_sizes(s)}]" for s in specs if s.dtype == "float32"}
    for batch in real.batches if real.batches is not None else [real.samples or {}]:
        every = [np.asarray(batch.get(name)) for name in wanted]
        fit = all(_fits(one, spec) for one, spec in zip(every, specs, strict=True))
        if set(batch) != set(wanted) or not fit or len({len(one) for one in every}) > 1:
            told = ", ".join(f"{name!r}: {what}" for name, what in wanted.items())
            raise StageError(message=f"{real.origin} must give {{{told}}} alone")
        numbers = [one for one in every if one.dtype.kind in "iu"]
        if not all(one.min() >= 0 and one.max() < vocabulary for one in numbers):
            raise StageError(message=f"{real.origin} gave tokens outside 0..{vocabulary - 1}")
        count = len(every[0])
        if count < bounds.min:
            message = f"{real.origin} gave {count} sequences, the batch has {bounds.min}"
            raise StageError(message=message, hint="give more, or a batch of fewer rows")
        pairs = zip(every, specs, strict=True)
        every = [one.astype(spec.dtype) for one, spec in pairs]
        for start in range(0, count, bounds.max):
            here = slice(start := min(start, count - bounds.min), start + bounds.max)
            yield every[0][here], every[-1][here]


def _fits(array: np.ndarray, spec: TensorSpec) -> bool:
    if spec.dtype == "float32":
        return array.dtype.kind == "f" and array.shape[1:] == spec.shape[1:]
    return array.ndim == 2 and array.size > 0 and array.dtype.kind in "iu"


def _sizes(spec: TensorSpec) -> str:
    return ", ".join(map(str, spec.shape[1:]))


def _chain(
    name: str,
    kind: Kind,
    io: Io,
    tokens: np.ndarray,
    lengths: np.ndarray,
    sources: tuple[Arrays, Arrays],
) -> Iterator[Case]:
    """A call on the first `lengths` tokens of the rows, then one for each token that is left."""

    def case(label: str, after: str, ids: np.ndarray, position: np.ndarray, last: Any) -> Case:
        arrays = dict(zip(INPUTS, (ids, position, last), strict=True))
        arrays |= sources[1] if after else sources[0]
        sizes = {
            dim: size
            for spec in io.inputs
            for dim, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }
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
    read = {name: chain[0].inputs[name] for name in SOURCE if name in chain[0].inputs}
    whole = run({"input_ids": tokens, **read})[output]
    return [{output: whole[np.arange(len(end)), end]} for end in ends]
