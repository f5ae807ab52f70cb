"""Text from a bundle that decodes: its tokenizer, and where a text ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from . import bundle as bundles
from . import chat as chats
from .errors import EnvironmentalError, RecipeError

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Request:
    """What is asked of a language model. `stop`: texts that end it, and are not given."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    """Tokens that were read or written, and how long it took."""

    tokens: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_data(self) -> dict[str, float]:
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.per_second,
        }


class Writer:
    """A language model and its tokenizer, if it has one.

    Raises: RecipeError when the folder holds no bundle that decodes; EnvironmentalError when it is
            damaged, or made for another machine.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        manifest = bundles.manifest(folder)
        if not manifest.get("states") or not (folder / "generate.py").is_file():
            raise RecipeError(
                message=f"{folder} is no language model that decodes: it keeps no states",
                hint="build one with `task: generate` under `model`",
            )
        bundles.verify(folder)
        runner = bundles.module(folder, "run.py")
        self._code = bundles.module(folder, "generate.py")
        try:
            loaded = runner.load(folder, verify=False, threads=threads)
        except runner.BundleError as error:
            raise EnvironmentalError(message=str(error)) from error
        self._generator = self._code.Generator(loaded)
        self._folder = folder
        self._vocabulary: int = manifest["outputs"][0]["shape"][-1]
        self.written: list[int] = []

    def encode(self, prompt: str, *, chat: bool = False) -> list[int]:
        """Tokens of a prompt; with `chat` as the user's turn in the model's own template."""
        text = chats.rendered(self._folder, prompt) if chat else prompt
        encoded = self._tokenizer().encode(text, add_special_tokens=not chat)
        return list(encoded.ids)

    def check(self, tokens: Sequence[int]) -> None:
        """Raises RecipeError for a number that is no token."""
        for token in tokens:
            if not 0 <= token < self._vocabulary:
                raise RecipeError(
                    message=f"{token} is no token: they are 0..{self._vocabulary - 1}"
                )

    def tokens(
        self, prompt: Sequence[int], request: Request, source: Path | None = None
    ) -> Iterator[int]:
        """The tokens behind a prompt, to the model's own end, which is not given. A model with an
        encoder reads the prompt there, or the features of a `source` (.npy), and writes from its
        own first token on.
        """
        sampling = self._code.Sampling(request.temperature, request.top_p, request.seed)
        ends = self._ends()
        self.written = []
        made = self._generator.generate(
            **self._given(prompt, source),
            max_tokens=request.max_tokens,
            sampling=sampling,
            stop=ends,
        )
        try:
            for [token] in made:
                if token not in ends:
                    self.written.append(token)
                    yield token
        except self._code.GenerateError as error:
            raise RecipeError(message=str(error)) from error

    def text(
        self, prompt: Sequence[int], request: Request, source: Path | None = None
    ) -> Iterator[str]:
        """The text behind a prompt, in pieces as they are certain; `stop` ends it."""
        from tokenizers.decoders import DecodeStream

        tokenizer, stream = self._tokenizer(), DecodeStream(skip_special_tokens=True)
        held = ""
        for token in self.tokens(prompt, request, source):
            held += stream.step(tokenizer, token) or ""
            ends = [held.index(one) for one in request.stop if one in held]
            if ends:
                yield held[: min(ends)]
                return
            kept = _may_begin(held, request.stop)
            yield held[: len(held) - kept]
            held = held[len(held) - kept :]
        yield held

    def paces(self) -> tuple[Pace, Pace]:
        """Of reading the last prompt, and of writing behind it."""
        speed = self._generator.speed
        prefill = Pace(speed.prompt_tokens, speed.prefill_s)
        return prefill, Pace(speed.tokens, speed.decode_s)

    def _tokenizer(self) -> Any:
        if not (self._folder / TOKENIZER).is_file():
            raise RecipeError(
                message=f"{self._folder} has no {TOKENIZER}",
                hint="give numbers of tokens: --tokens 1,2,3",
            )
        if find_spec("tokenizers") is None:
            raise EnvironmentalError(
                message="text needs tokenizers, not installed here",
                hint="pip install 'tapml[generate]', or give --tokens 1,2,3",
            )
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / TOKENIZER))

    def _ends(self) -> set[int]:
        """Tokens that end a text: what the import wrote of the model, else the model's own settings
        or its tokenizer's name.
        """
        for file, name in (
            ("generation.json", "eos_token_ids"),
            ("generation_config.json", "eos_token_id"),
        ):
            named: object = chats.settings_of(self._folder, file).get(name)
            if isinstance(named, int):
                return {named}
            if isinstance(named, list) and named:
                return {int(one) for one in cast("list[int]", named)}
        token = chats.special_tokens(self._folder).get("eos_token")
        if token is None or not (self._folder / TOKENIZER).is_file() or not find_spec("tokenizers"):
            return set()
        number = self._tokenizer().token_to_id(token)
        return set() if number is None else {number}

    def _given(self, prompt: Sequence[int], source: Path | None) -> dict[str, Any]:
        """What goes to the encoder, where there is one, and what the text begins with."""
        reads = self._generator.source
        if reads is not None and reads["dtype"] != "int64":
            if source is None:
                raise RecipeError(
                    message=f"{self._folder} reads features {reads['shape'][1:]}, no text",
                    hint="--source FILE.npy, with --tokens for what the text begins with",
                )
            return {"prompts": [prompt or [self._start()]], "sources": [_features(source)]}
        if source is not None:
            raise RecipeError(message=f"{self._folder} reads no features; leave out --source")
        if reads is None:
            return {"prompts": [prompt]}
        return {"prompts": [[self._start()]], "sources": [prompt]}

    def _start(self) -> int:
        """The token that a model with an encoder begins to write with."""
        settings = chats.settings_of(self._folder, "generation.json")
        token: object = settings.get("decoder_start_token_id")
        if not isinstance(token, int):
            raise RecipeError(
                message=f"{self._folder} names no token to begin with",
                hint='generation.json: {"decoder_start_token_id": N}, as the model was trained',
            )
        return token


def _features(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RecipeError(message=f"{path} is no readable .npy: {error}") from error


def _may_begin(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the start of one of `stops`."""
    lengths = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max(lengths, default=0)
