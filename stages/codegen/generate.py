"""Text from this bundle, token by token. Needs the TVM runtime and NumPy only.

from run import load
from generate import Generator
for tokens in Generator(load(".")).generate([[1, 2, 3]], max_tokens=32):
    print(tokens)                  # one more token of each prompt; None once it has ended
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

INPUTS = {"input_ids", "position", "last"}
SOURCE = {"source", "source_length"}  # what a model with an encoder takes; of features no length


class GenerateError(ValueError):
    """The bundle is no language model, or what is asked of it does not fit its context."""


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. `temperature` 0: the likeliest; `top_p`: among the likeliest that hold
    this share of probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Speed:
    """Tokens and seconds so far: of prompts, and of what was written after them."""

    prompt_tokens: int = 0
    prefill_s: float = 0.0
    tokens: int = 0
    decode_s: float = 0.0


@dataclass
class Generator:
    """A language model with its states. `speed` tells how the last prompts fared; `context`: tokens
    that it can hold, None where that has no end; `source`: what its encoder reads, by the manifest.
    """

    bundle: Any
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        names = {spec["name"] for spec in manifest["inputs"]}
        if not manifest.get("states") or not INPUTS <= names <= INPUTS | SOURCE:
            raise GenerateError(
                f"{self.bundle.folder} is no language model that decodes: it takes "
                f"{', '.join(sorted(names))}; build one with `task: generate`"
            )
        self.context: int | None = manifest["context"]
        specs = {spec["name"]: spec for spec in manifest["inputs"]}
        self.source: dict[str, Any] | None = specs.get("source")
        self._rows, steps = specs["input_ids"]["shape"]
        self._most = steps if isinstance(steps, int) else manifest["dims"][steps]["max"]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # frozen
        stop: Collection[int] = (),
        sources: Sequence[Sequence[int]] | Sequence[np.ndarray] = (),
    ) -> Iterator[list[int | None]]:
        """One token of each prompt at a time, until all have met a token of `stop`, which is given
        too, or have `max_tokens`; None for a prompt that has ended before.

        In:     `sources`: what an encoder reads for each prompt, tokens or features
        Raises: GenerateError when a prompt or source is empty, or with `max_tokens` more than the
                context.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._check(prompts, lengths, max_tokens)
        if max_tokens is None:
            assert self.context is not None
            max_tokens = self.context - int(lengths.max()) + 1  # the last is drawn, never read
        read, then = self._source(sources, len(prompts))
        rng = np.random.default_rng(sampling.seed)
        session = self._session(len(prompts))
        source_tokens = int(read.get("source_length", np.zeros(1, np.int64)).sum())
        self.speed = Speed(prompt_tokens=int(lengths.sum()) + source_tokens)
        began = time.perf_counter()
        logits = self._prefill(session, prompts, lengths, read)
        self.speed.prefill_s = time.perf_counter() - began
        ended = np.zeros(len(prompts), bool)
        for k in range(max_tokens):
            tokens = draw(logits, sampling, rng)
            yield [None if over else int(one) for one, over in zip(tokens, ended, strict=True)]
            ended |= np.isin(tokens, list(stop))
            if ended.all() or k == max_tokens - 1:
                return
            began = time.perf_counter()
            # a row that has ended stays where it is: it may be the one that fills the context
            at = np.where(ended, 0, lengths + k)
            last = np.zeros_like(lengths)
            step = session(input_ids=tokens[:, None], position=at, last=last, **then)
            logits = step["logits"]
            self.speed.decode_s += time.perf_counter() - began
            self.speed.tokens += int((~ended).sum())

    def _session(self, rows: int) -> Any:
        return self.bundle.session(**({self._rows: rows} if isinstance(self._rows, str) else {}))

    def _check(
        self, prompts: Sequence[Sequence[int]], lengths: np.ndarray, max_tokens: int | None
    ) -> None:
        if isinstance(self._rows, int) and len(prompts) != self._rows:
            raise GenerateError(f"takes {self._rows} prompts a call, got {len(prompts)}")
        if not len(prompts) or not lengths.all():
            raise GenerateError("a prompt is empty: give at least one token")
        longest, more = int(lengths.max()), 1 if max_tokens is None else max_tokens
        if self.context is None:
            if max_tokens is None:
                raise GenerateError("no context ends this text: say how many tokens (max_tokens)")
            return
        if longest + more - 1 > self.context:
            raise GenerateError(
                f"a prompt of {longest} tokens and {more} more exceed the context of "
                f"{self.context}; shorten it, ask for fewer, or build with a larger `context`"
            )

    def _source(
        self, sources: Sequence[Any], rows: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The inputs of an encoder: with a prompt, and with what follows it, an empty source."""
        if len(sources) != (rows if self.source else 0):
            wanted = "one source for each prompt" if self.source else "no sources"
            raise GenerateError(f"takes {wanted}, got {len(sources)}")
        if self.source is None:
            return {}, {}
        if self.source["dtype"] != "int64":
            wanted, shapes = self.source["shape"][1:], {np.shape(one) for one in sources}
            if shapes != {tuple(wanted)}:
                raise GenerateError(f"a source is features {wanted}, got {sorted(shapes)}")
            features = np.asarray(sources, self.source["dtype"])
            return {"source": features}, {"source": features[:0]}
        length = np.array([len(one) for one in sources], np.int64)
        if not length.all() or (self.context is not None and length.max() > self.context):
            raise GenerateError(f"a source has 1..{self.context} tokens, got {length.tolist()}")
        ids = np.zeros((rows, int(length.max())), np.int64)
        for row, one in zip(ids, sources, strict=True):
            row[: len(one)] = one
        empty = {"source": ids[:, :0], "source_length": length}
        return {"source": ids, "source_length": length}, empty

    def _prefill(
        self,
        session: Any,
        prompts: Sequence[Sequence[int]],
        lengths: np.ndarray,
        read: dict[str, np.ndarray],
    ) -> np.ndarray:
        """Logits behind each prompt, which is read in pieces as long as the bundle takes.

        Shorter prompts are padded at the end: what the padding leaves in a cache lies behind their
        last token, and is overwritten before it is read; a recurrence stops at `last`, which is -1
        for a prompt that has ended in a piece before.
        """
        ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        logits: np.ndarray | None = None
        for start in range(0, ids.shape[1], self._most):
            piece = ids[:, start : start + self._most]
            last = np.clip(lengths - 1 - start, -1, piece.shape[1] - 1)
            at = np.full_like(lengths, start)
            here = session(input_ids=piece, position=at, last=last, **read)
            ends = (lengths > start)[:, None]
            logits = here["logits"] if logits is None else np.where(ends, here["logits"], logits)
        assert logits is not None
        return logits


def draw(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
    """A token for each row of logits [rows, vocabulary]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    order = np.argsort(-weights, axis=-1, kind="stable")
    likely = np.take_along_axis(weights, order, -1)
    before = likely.cumsum(-1) - likely  # share of the likelier ones
    likely[before >= sampling.top_p] = 0.0
    cumulative = likely.cumsum(-1)
    picked = (cumulative < rng.random(len(logits))[:, None] * cumulative[:, -1:]).sum(-1)
    return np.take_along_axis(order, picked[:, None], -1)[:, 0]
