"""What an author sees in an editor: nothing false, what is wrong underlined, help at each key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tapml.recipe.schema import compose
from tapml.registry import installed

if TYPE_CHECKING:
    from conftest import LanguageServer

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
MODELINE = "# yaml-language-server: $schema=recipe.schema.json\n"
HEAD = MODELINE + "version: 1\nname: x\n"
MODEL = "model: {source: onnx, path: m.onnx}\n"
KEYS = {  # a field of each section, a word of what is told of it, a value that it does not take
    "model": ("buckets", "compiled exactly", "many"),
    "target": ("cores", "compile for", "all"),
    "sparsity": ("choose", "by measurement", "fastest"),
    "tuning": ("trials", "(measurements)", "many"),
    "validation": ("repeats", "timed calls", "twice"),
    "relax": ("reciprocal", "divides by a constant", "maybe"),
    "requires": ("packages", "as pip names them", "numpy"),
    "build": ("opt_level", "optimisation level", "9"),
}
HEAD_KEYS = ("extends", "vars", "matrix", "tags", "workflow", "description", *KEYS)
COMPOSED = """\
extends: base.yaml
vars: {density: 0.5, trials: 8, kind: bsr, any: [1, {a: b}]}
tags: {team: "${vars.kind}"}
x-note: [anything, {at: all}]
sparsity:
  prune: {density: "${vars.density}"}       # its method is the other recipe's
  choose: "${vars.kind}"
tuning: {trials: "${vars.trials}", seed: "${env:TAPML_VAR_SEED:-1}"}
matrix:
  tuning.max_seconds: [1.0, 2.0]
  sparsity.format: [{kind: csr}, {kind: bsr, block: [16, 16]}]
  exclude: [{tuning.max_seconds: 1.0, sparsity.format: {kind: csr}}]
  include: [{tuning.max_seconds: 3.0}]
  limit: 16
"""

pytestmark = pytest.mark.install  # npm brings the server


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Where a recipe would lie, beside the schema that its first line names."""
    shutil.copy(ROOT / "recipes" / "recipe.schema.json", tmp_path)
    return tmp_path / "recipe.yaml"


def underlined(text: str, found: list[dict[str, Any]]) -> list[str]:
    """The pieces of the text that are underlined."""
    lines, pieces = text.split("\n"), list[str]()
    for one in found:
        start, end = one["range"]["start"], one["range"]["end"]
        assert start["line"] == end["line"], one["message"]
        pieces.append(lines[start["line"]][start["character"] : end["character"]])
    return pieces


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_nothing_is_underlined_in_a_shipped_recipe(server: LanguageServer, path: Path) -> None:
    assert path.read_text().startswith(MODELINE)
    assert server.open(path, path.read_text()) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_recipe_is_explained(server: LanguageServer, path: Path) -> None:
    text = path.read_text()
    server.open(path, text)
    for number, line in enumerate(text.split("\n")):
        key = line.partition(":")[0]
        if key.isidentifier() and ":" in line:
            assert len(server.hover(path, number, 1)) > len(key) + 10, key


@pytest.mark.parametrize("section", KEYS)
def test_fields_are_offered_in_each_section(
    server: LanguageServer, page: Path, section: str
) -> None:
    server.open(page, HEAD + f"{section}:\n  \n")
    assert KEYS[section][0] in server.completions(page, 4, 2)


def test_each_section_is_looked_at() -> None:
    assert set(KEYS) == {*compose(installed()).sections, "requires"}


@pytest.mark.parametrize("section", KEYS)
def test_a_wrong_value_is_underlined_in_each_section(
    server: LanguageServer, page: Path, section: str
) -> None:
    field, _, wrong = KEYS[section]
    more = {"model": "source: onnx", "sparsity": "layers: [a]"}.get(section, "")
    text = HEAD + ("" if section == "model" else MODEL)
    text += f"{section}:\n  {field}: {wrong}\n  {more}\n"
    assert underlined(text, server.open(page, text)) == [wrong]


@pytest.mark.parametrize("section", KEYS)
def test_a_field_of_each_section_is_explained(
    server: LanguageServer, page: Path, section: str
) -> None:
    field, words, _ = KEYS[section]
    server.open(page, HEAD + f"{section}:\n  {field}: \n")
    told = server.hover(page, 4, 3)
    assert len(told) > 20, told
    assert words in told.lower()


def test_sections_are_offered_at_the_top(server: LanguageServer, page: Path) -> None:
    server.open(page, HEAD + "\n")
    assert server.completions(page, 3, 0) >= set(HEAD_KEYS)


def test_kinds_are_offered_as_values(server: LanguageServer, page: Path) -> None:
    server.open(page, HEAD + "model:\n  source: \n")
    assert server.completions(page, 4, 10) >= {"onnx", "operator"}


@pytest.mark.parametrize("extends", ["", "extends: base.yaml\n"], ids=["alone", "extending"])
@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("tuning: {trials: many}\n", "many"),
        ("tuning:\n  trails: 3\n", "trails"),
        ("tunning: {trials: 3}\n", "tunning"),
        ("target: {kind: cuda}\n", "cuda"),
        ("validation:\n  gates: {bundle_mib: big}\n", "big"),
        ("sparsity:\n  layers: [a]\n  format: {kind: bs}\n", "bs"),
        ("sparsity:\n  layers: [a]\n  prune: {method: magnitude, density: half}\n", "half"),
        ("workflow: [deploy]\n", "[deploy]"),
        ("matrix: {limit: 0, tuning.trials: [1]}\n", "0"),
        ("requires: {packages: numpy}\n", "numpy"),
    ],
    ids=lambda value: value if value.isalnum() else "",
)
def test_what_is_wrong_is_underlined_and_nothing_else(
    server: LanguageServer, page: Path, body: str, wrong: str, extends: str
) -> None:
    text = HEAD + extends + MODEL + body
    assert underlined(text, server.open(page, text)) == [wrong]


def test_a_missing_field_is_told_where_nothing_can_give_it(
    server: LanguageServer, page: Path
) -> None:
    text = HEAD + "model: {path: m.onnx}\n"
    (found,) = server.open(page, text)
    assert "source" in found["message"]
    assert server.open(page, text + "extends: base.yaml\n") == []


def test_nothing_is_underlined_that_another_recipe_or_a_variable_gives(
    server: LanguageServer, page: Path
) -> None:
    assert underlined(HEAD + COMPOSED, server.open(page, HEAD + COMPOSED)) == []
