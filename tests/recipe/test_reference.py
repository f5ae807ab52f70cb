import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tapml.cli import main
from tapml.recipe import json_schema, reference
from tapml.recipe.editor import model_schema
from tapml.recipe.loader import DISCRIMINATORS
from tapml.recipe.schema import compose
from tapml.registry import Registry, installed

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "docs/engine.md"
DOCS, SCHEMA = ROOT / "docs/recipes.md", ROOT / "recipes/recipe.schema.json"


def shipped() -> Registry:
    """The stages of tapml alone: a machine's plug-ins are in no document of ours."""
    loaders = installed().loaders
    own = {n: f for n, f in loaders.items() if f().__module__.startswith("tapml_stages.")}
    return Registry(own)


def test_golden_reference_of_recipes_is_what_the_models_say() -> None:
    text = reference.markdown(shipped())
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        DOCS.write_text(text, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == text, "`make golden` writes docs/recipes.md anew"


def test_golden_table_of_the_engines_settings_is_what_the_models_say() -> None:
    head, begin, rest = ENGINE.read_text(encoding="utf-8").partition("<!-- settings -->\n")
    table, end, tail = rest.partition("<!-- end -->\n")
    assert begin
    assert end
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        text = "".join((head, begin, "\n", reference.settings(), "\n", end, tail))
        ENGINE.write_text(text, encoding="utf-8")
    assert table.strip() == reference.settings().strip(), "`make golden` writes it anew"


def test_golden_schema_beside_the_recipes_is_what_the_models_say() -> None:
    text = json.dumps(json_schema(shipped()), indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("TAPML_UPDATE_GOLDEN"):
        SCHEMA.write_text(text, encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == text, "`make golden` writes it anew"


def test_every_field_of_every_section_is_in_the_reference() -> None:
    text = reference.markdown(shipped())
    for name, model in compose(shipped()).sections.items():
        for field in model.model_fields:
            assert f"| `{name}.{field}` |" in text


def test_fields_of_alternatives_are_listed_under_the_one_they_belong_to() -> None:
    text = reference.markdown(shipped())
    assert (
        "| `sparsity.prune (method: magnitude).density` | number > 0 ≤ 1 | share | **required** |"
        in text
    )
    assert "| `model.dims.NAME.min` |" in text


def fields() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each field of each model that a recipe is made of, with its JSON Schema."""
    schema = model_schema(shipped())
    for model, own in (("recipe", schema), *schema["$defs"].items()):
        yield from ((f"{model}.{name}", one) for name, one in own.get("properties", {}).items())


def test_every_field_has_a_meaning_and_an_example_and_every_number_a_unit() -> None:
    rows = [
        re.split(r" (?<!\\)\| ", line.strip("| "))
        for line in reference.markdown(shipped()).splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 50
    for name, values, unit, _, example, meaning in rows:
        assert example, name
        assert meaning, name
        assert unit or not re.search(r"\bnumber\b", values), name


def test_every_example_is_a_value_that_its_field_takes() -> None:
    models = model_schema(shipped())["$defs"]
    checked = 0
    for name, field in fields():
        validator = Draft202012Validator({**field, "$defs": models})
        for example in field.get("examples", ()):
            assert list(validator.iter_errors(example)) == [], name
            checked += 1
    assert checked > 40


def test_what_tells_alternatives_apart_is_what_replaces_a_mapping() -> None:
    text = json.dumps(model_schema(shipped()))
    assert set(re.findall(r'"propertyName": "(\w+)"', text)) <= DISCRIMINATORS


BLOCK = re.compile(r"```(yaml|console)\n(.*?)```", re.DOTALL)


def test_the_language_is_explained_by_examples_that_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TAPML_STORE", str(tmp_path / "store"))
    blocks = BLOCK.findall(DOCS.read_text(encoding="utf-8"))
    for kind, text in blocks:
        if kind == "yaml":
            Path(text.split()[1]).write_text(text, encoding="utf-8")
    commands = [one for kind, text in blocks if kind == "console" for one in text.split("$ ")[1:]]
    assert len(commands) >= 6
    for one in commands:
        command, _, expected = one.partition("\n")
        assignments, _, arguments = command.partition("tapml ")
        with monkeypatch.context() as patched:
            for name, _, value in (part.partition("=") for part in assignments.split()):
                patched.setenv(name, value)
            patched.setattr(sys, "argv", ["tapml", *shlex.split(arguments)])
            with pytest.raises(SystemExit) as ended:
                main()
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        lines = iter(shown.out.splitlines())
        for line in expected.splitlines():
            assert any(line in found for found in lines), f"{command}: {line}"
