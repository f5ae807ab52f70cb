"""A model with an encoder reads a source once: what the decoder attends to is kept as states."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from decoding import TOLERANCE, build, lower, padded
from families import CONTEXT, make

from tapml import bundle as bundles
from tapml.cli import generate as _command  # noqa: F401  # registers it
from tapml.cli.app import app
from tapml.errors import RecipeError
from tapml_stages import program as programs
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, kernel_of, op_name, operands
from tapml_stages.program import DECODE, PREFILL, Bounds

rx = tvm.relax

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def model() -> Any:
    return make("t5")


@pytest.fixture(scope="module")
def program(model: Any) -> Any:
    from tapml_stages.importer.huggingface.generate import decoder

    return decoder(model, CONTEXT, Bounds(1, 4))


@pytest.fixture(scope="module")
def bundle(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made, weights = program
    return build(made, dict(weights), tmp_path_factory.mktemp("source"))


def tokens(seed: int, *lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, length) for length in lengths]


def whole(model: Any, source: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Logits of transformers' model after the last token."""
    ids, begun = (torch.from_numpy(one)[None] for one in (source, written))
    with torch.no_grad():
        return model(input_ids=ids, decoder_input_ids=begun).logits[0, -1].numpy()


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE * (expected.max() - expected.min())


def test_a_token_costs_nothing_of_the_encoder(program: Any, tmp_path: Path) -> None:
    made = programs.load(lower(program[0], tmp_path)["program"])

    def written(clone: str) -> Iterator[str]:
        for _, value in bindings(made.mod[clone]):
            if op_name(value) == "relax.call_tir_inplace":
                yield value.args[1].fields[0].name

    def values(clone: str) -> set[str]:
        """What was imported that its kernels compute."""
        return {name for row in made.call_sites()[clone] for name in row["values"]}

    states = [spec.name.replace(".", "_") for spec in made.io.states]
    assert sorted(written(PREFILL)) == sorted(states)
    assert sorted(written(DECODE)) == [name for name in sorted(states) if name.startswith("cache")]
    source = made.mod[DECODE].params[3]
    reads = [leaf for _, value in bindings(made.mod[DECODE]) for leaf in operands(value)]
    assert source.name == "source"
    assert not any(leaf.same_as(source) for leaf in reads)
    calls = {
        clone: sum(bool(kernel_of(value)) for _, value in bindings(made.mod[clone]))
        for clone in (PREFILL, DECODE)
    }
    assert calls[DECODE] < 0.7 * calls[PREFILL]
    assert values(DECODE) < values(PREFILL)


def test_another_source_takes_the_place_of_a_longer_one(bundle: Any, model: Any) -> None:
    session, zero = bundle.session(batch=2, fill=np.nan), np.zeros(2, np.int64)
    begun = np.array([[0, 3, 4], [0, 5, 6]])
    for seed, lengths in ((0, (40, 7)), (1, (3, 9))):
        sources = tokens(seed, *lengths)
        first = session(input_ids=begun[:, :1], position=zero, last=zero, **padded(sources))
        # two tokens at once, behind the one before, of the same source
        rest = {"input_ids": begun[:, 1:], "position": zero + 1, "last": zero + 1}
        second = session(**rest, **padded(sources, empty=True))
        for row, source in enumerate(sources):
            assert_near(first["logits"][row], whole(model, source, begun[row, :1]))
            assert_near(second["logits"][row], whole(model, source, begun[row]))


def test_a_row_without_a_source_is_an_error(bundle: Any) -> None:
    session, one = bundle.session(batch=1), np.array([[3]])
    zero = np.array([0])
    for length in (0, CONTEXT + 1):
        with pytest.raises(Exception, match="source is empty, or above the context"):
            session(
                input_ids=one,
                position=zero,
                last=zero,
                source=np.zeros((1, 0), np.int64),
                source_length=np.array([length]),
            )


def test_texts_are_written_from_their_own_sources(bundle: Any, model: Any) -> None:
    code = bundles.module(bundle.folder, "generate.py")
    generator, sources = code.Generator(bundle), tokens(2, 12, 5, 8)
    prompts = [[0], [0, 7, 9], [0]]
    made = generator.generate(prompts, max_tokens=10, sources=[one.tolist() for one in sources])
    written = list(zip(*made, strict=True))
    for source, prompt, row in zip(sources, prompts, written, strict=True):
        text = list(prompt)
        for token in row:
            assert token == whole(model, source, np.array(text)).argmax()
            text.append(token)
    for wrong in ([], [[1]], [[], [1], [1]], [[1] * (CONTEXT + 1), [1], [1]]):
        with pytest.raises(code.GenerateError, match="source"):
            next(generator.generate(prompts, sources=wrong))


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, args)], catch_exceptions=True)


def error(*args: Any) -> Any:
    return run(*args).exception


def test_the_command_gives_a_prompt_to_the_encoder(bundle: Any, model: Any) -> None:
    [source] = tokens(3, 6)
    args = (bundle.folder, "--tokens", ",".join(map(str, source)), "--max-tokens", 3)
    with pytest.raises(RecipeError, match="names no token to begin with"):
        raise error(*args)
    facts = bundle.folder / "generation.json"
    facts.write_text(json.dumps({"decoder_start_token_id": 0, "eos_token_ids": []}))
    try:
        written = [int(token) for token in run(*args).stdout.split()]
    finally:
        facts.unlink()
    for k, token in enumerate(written):
        assert token == whole(model, source, np.array([0, *written[:k]])).argmax()
    assert len(written) == 3
    with pytest.raises(RecipeError, match="reads no features"):
        raise error(*args, "--source", bundle.folder / "manifest.json")


def test_features_are_read_from_a_file(tmp_path: Path) -> None:
    from tapml_stages.importer.huggingface.generate import decoder

    model = make("whisper")
    made, weights = decoder(model, CONTEXT)
    folder = build(made, dict(weights), tmp_path / "rooms").folder
    features = np.random.default_rng(4).standard_normal(
        [int(size) for size in made.io.inputs[3].shape[1:]], "float32"
    )
    np.save(tmp_path / "features.npy", features)
    read = ("--source", tmp_path / "features.npy")
    result = run(folder, *read, "--tokens", "1,5", "--max-tokens", 4)
    written = [int(token) for token in result.stdout.split()]
    heard = torch.from_numpy(features)[None]
    with torch.no_grad():
        text = torch.tensor([[1, 5, *written]])
        logits = model(input_features=heard, decoder_input_ids=text).logits[0]
    assert written == logits.argmax(-1)[1:-1].tolist()
    assert len(written) == 4
    np.save(tmp_path / "short.npy", features[:, 1:])
    for args, words in (
        (("--tokens", "1,5"), "reads features .*, no text"),
        (("--source", tmp_path / "short.npy", "--tokens", "1"), "a source is features"),
        (("--source", folder / "manifest.json", "--tokens", "1"), "is no readable .npy"),
        (read, "names no token to begin with|has no tokenizer.json"),
    ):
        with pytest.raises(RecipeError, match=words):
            raise error(folder, *args)
