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
    """A language model with its cache. `speed` tells how the last prompts fared."""

    bundle: Any
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        names = {spec["name"] for spec in manifest["inputs"]}
        if not manifest.get("states") or names != INPUTS:
            raise GenerateError(
                f"{self.bundle.folder} is no language model that decodes: it takes "
                f"{', '.join(sorted(names))}; build one with `task: generate`"
            )
        self.context: int = manifest["states"][0]["shape"][2]
        ids = next(spec for spec in manifest["inputs"] if spec["name"] == "input_ids")
        self._rows, steps = ids["shape"]
        self._most = steps if isinstance(steps, int) else manifest["dims"][steps]["max"]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = Sampling(),  # frozen
        stop: Collection[int] = (),
    ) -> Iterator[list[int | None]]:
        """One token of each prompt at a time, until all have met a token of `stop`, which is given
        too, or have `max_tokens`; None for a prompt that has ended before.

        Raises: GenerateError when a prompt is empty, or with `max_tokens` more than the context.
        """
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._check(prompts, lengths, max_tokens)
        left = self.context - int(lengths.max()) + 1  # the last token is drawn, never read
        count = left if max_tokens is None else max_tokens
        rng = np.random.default_rng(sampling.seed)
        session = self._session(len(prompts))
        self.speed = Speed(prompt_tokens=int(lengths.sum()))
        began = time.perf_counter()
        logits = self._prefill(session, prompts, lengths)
        self.speed.prefill_s = time.perf_counter() - began
        ended = np.zeros(len(prompts), bool)
        for k in range(count):
            tokens = draw(logits, sampling, rng)
            yield [None if over else int(one) for one, over in zip(tokens, ended, strict=True)]
            ended |= np.isin(tokens, list(stop))
            if ended.all() or k == count - 1:
                return
            began = time.perf_counter()
            # a row that has ended stays where it is: it may be the one that fills the context
            at = np.where(ended, 0, lengths + k)
            logits = session(input_ids=tokens[:, None], position=at, last=np.zeros_like(lengths))[
                "logits"
            ]
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
        if longest + more - 1 > self.context:
            raise GenerateError(
                f"a prompt of {longest} tokens and {more} more exceed the context of "
                f"{self.context}; shorten it, ask for fewer, or build with a larger `context`"
            )

    def _prefill(
        self, session: Any, prompts: Sequence[Sequence[int]], lengths: np.ndarray
    ) -> np.ndarray:
        """Logits behind each prompt, which is read in pieces as long as the bundle takes.

        Shorter prompts are padded at the end: what the padding leaves in the cache lies behind
        their last token, and is overwritten before it is read.
        """
        ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        logits: np.ndarray | None = None
        for start in range(0, ids.shape[1], self._most):
            piece = ids[:, start : start + self._most]
            last = np.clip(lengths - 1 - start, 0, piece.shape[1] - 1)
            here = session(input_ids=piece, position=np.full_like(lengths, start), last=last)
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
