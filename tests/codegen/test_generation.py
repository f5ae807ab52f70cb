"""A bundle with states: sessions, generation, and the command that writes with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import language
import numpy as np
import pytest
from click.testing import CliRunner, Result
from small_programs import HOST

from tapml import bundle as bundles
from tapml.cli import generate as _command  # noqa: F401  # registers it
from tapml.cli.app import app
from tapml.errors import EnvironmentalError, RecipeError
from tapml_stages.compat import tvm

pytestmark = pytest.mark.slow
MODEL = language.Llama(batch=None)
PROMPTS = [[1, 2, 3, 4, 5], [9], [7, 8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language.stages(MODEL, tmp_path_factory.mktemp("language"), HOST)["bundle"]


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Any:
    return bundles.load(folder)


@pytest.fixture(scope="module")
def generator(folder: Path, bundle: Any) -> Any:
    return bundles.module(folder, "generate.py").Generator(bundle)


def continued(prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, by the whole sequence in float64."""
    weights, tokens = MODEL.weights(), list(prompt)
    for _ in range(count):
        tokens.append(int(language.logits(MODEL, weights, np.array(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


def test_rows_of_different_lengths_are_each_continued_as_if_alone(generator: Any) -> None:
    written = list(zip(*generator.generate(PROMPTS, max_tokens=12), strict=True))
    assert [list(row) for row in written] == [continued(prompt, 12) for prompt in PROMPTS]
    assert generator.speed.prompt_tokens == 8
    assert generator.speed.tokens == 33


def test_every_step_gives_the_logits_of_the_whole_sequence(bundle: Any) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, MODEL.vocabulary, (1, MODEL.context))
    expected = language.logits(MODEL, MODEL.weights(), tokens[0])
    session = bundle.session(batch=1, fill=np.nan)
    zero = np.array([0])
    for start in range(2):  # a second round on the states that the first has left
        first = session(
            input_ids=tokens[:, : 7 + start], position=zero, last=np.array([6 + start])
        )["logits"]
        assert np.abs(first - expected[6 + start]).max() < 1e-5
        for at in range(7 + start, MODEL.context):
            step = session(input_ids=tokens[:, at : at + 1], position=np.array([at]), last=zero)
            assert np.abs(step["logits"] - expected[at]).max() < 1e-5


def test_a_wrong_position_or_a_wiped_cache_is_seen(bundle: Any) -> None:
    tokens = np.random.default_rng(1).integers(0, MODEL.vocabulary, (1, 9))
    expected = language.logits(MODEL, MODEL.weights(), tokens[0])[8]
    session, zero = bundle.session(batch=1), np.array([0])

    def last(position: int) -> np.ndarray:
        return session(input_ids=tokens[:, 8:], position=np.array([position]), last=zero)["logits"]

    session(input_ids=tokens[:, :8], position=zero, last=np.array([7]))
    assert np.abs(last(8) - expected).max() < 1e-5
    assert np.abs(last(7) - expected).max() > 0.01
    session.reset()
    assert all((state == 0).all() for state in session.states.values())
    assert np.abs(last(8) - expected).max() > 0.01


def test_a_session_writes_what_it_was_told_into_its_own_memory_and_nothing_beyond(
    bundle: Any,
) -> None:
    one, other = bundle.session(batch=1, fill=7.5), bundle.session(batch=1, fill=7.5)
    one(input_ids=np.array([[3, 4, 5]]), position=np.array([2]), last=np.array([2]))
    for state in one.states.values():
        assert (state[:, :, 2:5] != 7.5).all()
        assert (np.delete(state, [2, 3, 4], axis=2) == 7.5).all()
    assert all((state == 7.5).all() for state in other.states.values())


def test_what_the_machine_allocates_does_not_grow_with_the_calls(bundle: Any) -> None:
    session = bundle.session(batch=1)
    names: list[str] = []

    def note(_func: Any, name: str, before: bool, _result: Any, *_args: Any) -> None:
        if before and "alloc_storage" in name:
            names.append(name)

    bundle._machine.set_instrument(note)
    counts = []
    for at in range(6):
        session(input_ids=np.array([[3]]), position=np.array([at]), last=np.array([0]))
        counts.append(len(names))
        names.clear()
    bundle._machine.set_instrument(lambda *_: None)
    assert counts[0] > 0
    assert len(set(counts[1:])) == 1


def test_a_full_cache_is_an_error_in_words(bundle: Any, generator: Any) -> None:
    session = bundle.session(batch=1)
    with pytest.raises(RuntimeError, match="above the context of the cache"):
        session(input_ids=np.zeros((1, 4), "int64"), position=np.array([30]), last=np.array([0]))
    with pytest.raises(ValueError, match="5 tokens and 30 more exceed the context of 32"):
        next(generator.generate([[1, 2, 3, 4, 5]], max_tokens=30))
    with pytest.raises(ValueError, match="a prompt is empty"):
        next(generator.generate([[]]))
    assert len(list(generator.generate([[1, 2, 3, 4, 5]]))) == 28


def test_prefill_and_decode_can_be_called_by_name(folder: Path, bundle: Any) -> None:
    session, params = bundle.session(batch=1), bundle._params
    library = tvm.runtime.load_module(str(folder / "lib.so"))
    machine = tvm.relax.VirtualMachine(library, tvm.cpu())
    ids, zero = np.array([[4]]), np.array([0])
    expected = session(input_ids=ids, position=zero, last=zero)["logits"]
    arrays = [tvm.runtime.tensor(one) for one in (ids, zero, zero)]
    for name in ("decode", "prefill"):
        states = [tvm.runtime.tensor(state) for state in session.states.values()]
        found = machine[name](*arrays, *states, *params).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_seed_draws_the_same_tokens_again_and_another_one_others(
    folder: Path, generator: Any
) -> None:
    sampling = bundles.module(folder, "generate.py").Sampling

    def drawn(seed: int) -> list[list[int]]:
        options = sampling(temperature=2.0, top_p=0.95, seed=seed)
        return list(generator.generate(PROMPTS, max_tokens=8, sampling=options))

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_tokens_are_drawn_by_their_share_of_the_likeliest(folder: Path) -> None:
    code = bundles.module(folder, "generate.py")
    weights = np.array([0.1, 0.5, 0.4])
    rows = np.log(np.tile(weights, (20_000, 1)))
    draws = code.draw(rows, code.Sampling(1.0, 0.85), np.random.default_rng(0))
    # five standard deviations of 20 000 draws
    assert np.bincount(draws, minlength=3) / len(draws) == pytest.approx(
        [0, 5 / 9, 4 / 9], abs=0.02
    )
    assert (code.draw(rows[:5], code.Sampling(1.0, 0.3), np.random.default_rng(0)) == 1).all()


def test_the_manifest_states_memory_of_weights_and_cache(folder: Path) -> None:
    manifest = bundles.manifest(folder)
    assert [one["name"] for one in manifest["states"]][:2] == ["cache.0.key", "cache.0.value"]
    sizes = {"batch": 4}
    shapes = [[sizes.get(n, n) for n in one["shape"]] for one in manifest["states"]]
    assert manifest["state_bytes"] == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert manifest["params"]["bytes"] > 0


def run(*args: str) -> Result:
    return CliRunner().invoke(app, ["generate", *args], catch_exceptions=True)


def test_the_command_writes_numbers_for_numbers(folder: Path) -> None:
    result = run(str(folder), "--tokens", "1,2,3,4,5", "--max-tokens", "4")
    assert result.stdout.split() == [str(token) for token in continued(PROMPTS[0], 4)]
    assert "prefill 5 tokens" in result.stderr
    document = json.loads(run(str(folder), "--tokens", "9", "--max-tokens", "4", "--json").stdout)
    assert document["tokens"] == continued([9], 4)
    assert document["decode"]["tokens"] == 3


@pytest.fixture(scope="module")
def with_text(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with a tokenizer of one word for each token, a template, and an end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    copy = tmp_path_factory.mktemp("text") / "bundle"
    shutil.copytree(folder, copy)
    words = {f"w{k}": k for k in range(MODEL.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(copy / "tokenizer.json"))
    template = "{% for m in messages %}w1 {{ m.content }} w5{% endfor %}"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return copy


def test_the_command_writes_text_and_stops_where_it_is_told(with_text: Path) -> None:
    tokens = continued(PROMPTS[0], 6)
    words = " ".join(f"w{token}" for token in tokens)
    prompt = " ".join(f"w{token}" for token in PROMPTS[0])
    assert run(str(with_text), prompt, "--max-tokens", "6").stdout.strip() == words
    chat = run(str(with_text), "w2 w3 w4", "--chat", "--max-tokens", "6")
    assert chat.stdout.strip() == words
    stop = next(f" w{token}" for token in tokens[1:] if token != tokens[0])
    stopped = run(str(with_text), prompt, "--max-tokens", "6", "--stop", stop).stdout
    assert stopped.rstrip("\n") == words[: words.index(stop)]


def test_a_text_ends_at_the_end_that_the_model_names(with_text: Path) -> None:
    tokens = continued(PROMPTS[0], 6)
    end = next(token for token in tokens if token != tokens[0])
    settings = with_text / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [end]}))
    try:
        result = run(str(with_text), "--tokens", "1,2,3,4,5", "--max-tokens", "6")
    finally:
        settings.unlink()
    assert result.stdout.split() == [str(token) for token in tokens[: tokens.index(end)]]


def test_what_cannot_be_written_is_said_in_words(folder: Path, tmp_path: Path) -> None:
    def error(*args: str) -> Any:
        return run(*args).exception

    for args, kind, words in (
        ((str(tmp_path), "x"), RecipeError, "is no bundle"),
        ((str(folder), "x"), RecipeError, "has no tokenizer.json"),
        ((str(folder), "--tokens", "1,50"), RecipeError, r"50 is no token: they are 0\.\.49"),
        ((str(folder), "--tokens", "1,x"), RecipeError, "no list of numbers"),
        ((str(folder), "--tokens", "1", "--max-tokens", "40"), RecipeError, "exceed the context"),
    ):
        with pytest.raises(kind, match=words):
            raise error(*args)
    copy = tmp_path / "stateless"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "states": []}))
    with pytest.raises(RecipeError, match="it keeps no states"):
        raise error(str(copy), "--tokens", "1")


def test_text_without_tokenizers_names_what_to_install(
    with_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapml.generate.find_spec", lambda _: None)
    with pytest.raises(EnvironmentalError, match="text needs tokenizers"):
        raise run(str(with_text), "w1").exception
