"""Whatever the text, a recipe loads or fails as a TapmlError that is safe to print."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzz import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapml import recipe as recipes
from tapml.errors import TapmlError
from tapml.recipe import loader, text
from tapml.recipe.positions import Source
from tapml.registry import Registry
from tapml.terminal import columns

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(TEXT, max_size=12)
    | st.sampled_from(["no", "1e3", "012", "~", "<<", "=", "null", "0x1", " a ", "a: b", "- x"])
)
KEYS = st.text(TEXT, min_size=1, max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
YAML_TEXT = st.text("{}[]:,-?#&*!|>'\"%@` \n\tab0.~<\\$é\x07\u202e", max_size=60)


def load(content: bytes, overrides: Sequence[str], registry: Registry) -> recipes.Recipe | None:
    """The recipe, or None when it is refused by a TapmlError that is safe to print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        try:
            return recipes.load(path, overrides, registry)
        except TapmlError as error:
            shown = str(error)
            assert shown.strip()
            for line in shown.split("\n"):
                assert line.isprintable()
                if " | " in line[:12]:
                    assert columns(line) <= 160
            return None


@quick
@given(st.binary(max_size=80))
def test_random_bytes_are_no_traceback(registry: Registry, content: bytes) -> None:
    load(content, (), registry)


@quick
@given(YAML_TEXT)
def test_random_yaml_is_no_traceback(registry: Registry, body: str) -> None:
    load(f"version: 1\nname: x\n{body}".encode(), (), registry)


@quick
@given(YAML_TEXT, st.sampled_from(["tuning", "model.path", "target.mcpu", "sparsity.format.kind"]))
def test_random_overrides_are_no_traceback(
    registry: Registry, whole: str, body: str, key: str
) -> None:
    load(whole.encode(), [f"{key}={body}"], registry)
    load(whole.encode(), [body], registry)


@quick
@given(st.data())
def test_mutated_recipes_are_no_traceback(registry: Registry, whole: str, data: Any) -> None:
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 6))
    noise = data.draw(YAML_TEXT)
    load((whole[:start] + noise + whole[start + length :]).encode(), (), registry)


@quick
@given(st.data(), VALUES)
def test_a_value_of_any_type_anywhere_is_no_traceback(
    registry: Registry, whole: str, data: Any, value: object
) -> None:
    tree: Any = yaml.safe_load(whole)
    spot, parent, key = tree, None, None
    while isinstance(spot, dict | list) and spot and (parent is None or data.draw(st.booleans())):
        parent = spot
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else range(len(spot))))
        spot = parent[key]
    parent[key] = value
    load(text.dump(tree).encode(), (), registry)


@quick
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_dumped_data_reads_back(data: dict[str, Any]) -> None:
    dumped = text.dump(data)
    document = loader.parse(Source("f", dumped))
    assert not document.errors
    assert document.root.data == data


@pytest.mark.parametrize("word", ["no", "1e3", "012", "~", "", "0x1F", "<<", "true", ".inf"])
def test_strings_that_look_like_other_types_are_quoted(word: str) -> None:
    assert loader.parse(Source("f", text.dump({"k": word}))).root.data == {"k": word}


FIRST = 1_000_000  # `tests/fuzz/run.py` does the first 20 000
HEAD = "version: 1\nname: found\n"
SMALL = HEAD + "workflow: deploy\nmodel: {source: operator, python: operator_sparse.py:linear}\n"
LONG = "x" * 200_000
FOUND = {  # the least text that shows what a sweep found
    "a pipe to extend hangs": HEAD + "extends: pipe\n",
    "a device to extend never ends": HEAD + "extends: zero\n",
    "a recipe extended 3000 times is read as often": HEAD + f"extends: [{'base.yaml, ' * 3000}]\n",
    "levels that extend twice grow exponentially": HEAD + f"extends: [{'wide0.yaml, ' * 9}]\n",
    "a long key fills the screen": SMALL + f"tuning:\n  ? {LONG}\n  : 1\n",
    "a long key in a union fills the screen": SMALL
    + f"validation:\n  gates:\n    metric:\n      ? {LONG}\n      : {{mim: 1}}\n",
    "each wrong key costs time": HEAD + "".join(f"{i}: {{{i}}}\n" for i in range(12_400)),
    "a secret in a name is repeated": SMALL + f"tuning: {{{run.mutations.SECRET}: 1}}\n",
    "a long text of blanks costs time": SMALL + f"description: '{' ' * 900_000}'\n",
    "links in a ring make a glob endless": SMALL
    + "validation: {inputs: {python: 'magika_inputs.py:files', reads: ['**/x']}}\n",
    "each unknown key costs time": HEAD + "".join(f"k{i}: {{}}\n" for i in range(20_000)),
}
FOUND_OPTIONS = {
    "a long value fills the screen": f"--set=model.path={LONG}",
    "many mistakes in one --set fill the screen": "--set=validation.metric="
    + str({str(i): i for i in range(300)}),
    "a long key of --set fills the screen": f"--set={LONG}=1",
    "a long name of a stage fills the screen": f"--to={LONG}",
}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TAPML_STORE", "store")
    monkeypatch.setenv("NO_COLOR", "1")
    with run.house() as folder:
        for level in range(7):
            parents = f"wide{level + 1}.yaml, " * 9
            (folder / f"wide{level}.yaml").write_text(f"extends: [{parents}]\n")
        (folder / "wide7.yaml").write_text(HEAD)
        yield folder


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_sample_of_the_sweep_finds_nothing(hostile: Path, count: int) -> None:
    done = [run.examine(seed) for seed in range(FIRST, FIRST + count)]
    assert [one for one in done if one.problems] == []
    assert {code for one in done for code in one.codes} >= {0, 2}


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_what_a_sweep_found_in_a_recipe_is_mended(hostile: Path, text: str) -> None:
    (hostile / "recipe.yaml").write_text(text)
    code, out, err = run.call("validate", "recipe.yaml")
    assert list(run.judged(code, out, err, 0.0)) == []
    assert code == 2


@pytest.mark.parametrize("option", FOUND_OPTIONS.values(), ids=FOUND_OPTIONS)
def test_what_a_sweep_found_in_an_option_is_mended(hostile: Path, option: str) -> None:
    code, out, err = run.call("plan", "operator_sparse.yaml", option)
    assert list(run.judged(code, out, err, 0.0)) == []
    assert code == 2


def test_a_seed_always_makes_the_same_case() -> None:
    assert run.mutations.case(4711) == run.mutations.case(4711)
    assert run.mutations.case(4711) != run.mutations.case(4712)
