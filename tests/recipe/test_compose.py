"""`extends`, `vars`, `${env:…}` and where each value came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_recipe import HEAD, REGISTRY

from tapml import recipe as recipes
from tapml.errors import RecipeError, RecipeErrors
from tapml.recipe import Recipe
from tapml.recipe.compose import merged
from tapml.recipe.loader import parse
from tapml.recipe.positions import Source
from tapml.recipe.text import dump

BASE = """\
version: 1
name: base
tuning: {trials: 8, seed: 3}
sparsity:
  layers: [a, b]
  format: {kind: bsr, block: [4, 4]}
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / next(iter(files))


def load(folder: Path, child: str, *overrides: str, **files: str) -> Recipe:
    named = {f"{name.replace('__', '/')}.yaml": text for name, text in files.items()}
    path = write(folder, {"recipe.yaml": child, "base.yaml": BASE, **named})
    return recipes.load(path, overrides, REGISTRY, env=("MODEL",))


def errors(folder: Path, child: str, *overrides: str, **files: str) -> list[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        load(folder, child, *overrides, **files)
    error = caught.value
    return list(error.errors) if isinstance(error, RecipeErrors) else [error]


def test_mappings_merge_and_lists_and_scalars_replace(tmp_path: Path) -> None:
    child = "extends: base.yaml\nname: child\ntuning: {trials: 9}\nsparsity: {layers: [c]}\n"
    assert load(tmp_path, child).data == {
        "version": 1,
        "name": "child",
        "tuning": {"trials": 9, "seed": 3},
        "sparsity": {"layers": ["c"], "format": {"kind": "bsr", "block": [4, 4]}},
    }


def test_another_kind_replaces_the_whole_mapping(tmp_path: Path) -> None:
    child = "extends: base.yaml\nsparsity: {format: {kind: csr}}\n"
    assert load(tmp_path, child).data["sparsity"]["format"] == {"kind": "csr"}


def test_the_same_kind_keeps_the_other_fields(tmp_path: Path) -> None:
    child = "extends: base.yaml\nsparsity: {format: {kind: bsr}}\n"
    assert load(tmp_path, child).data["sparsity"]["format"]["block"] == [4, 4]


def test_of_several_the_later_is_laid_over_the_earlier(tmp_path: Path) -> None:
    child = "extends: [base.yaml, more.yaml]\n"
    found = load(tmp_path, child, more="tuning: {trials: 1}\n")
    assert found.data["tuning"] == {"trials": 1, "seed": 3}
    assert [path.name for path in found.reads] == ["recipe.yaml", "base.yaml", "more.yaml"]


def test_what_is_extended_cannot_be_set(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "extends: base.yaml\n", "extends=other.yaml")
    assert error.message == "what a recipe extends stands in the recipe"


def test_recipes_extend_each_other_only_in_one_direction(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "extends: a.yaml\n", a="extends: b.yaml\n", b="extends: a.yaml\n")
    assert "a.yaml → b.yaml → a.yaml" in error.message
    assert error.where.endswith("b.yaml:1:10")


def test_a_chain_has_an_end(tmp_path: Path) -> None:
    chain = {f"r{n}": f"extends: r{n + 1}.yaml\n" for n in range(12)}
    (error,) = errors(tmp_path, "extends: r0.yaml\n", **chain)
    assert error.message == "more than 8 recipes extend one another"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "link.yaml"])
def test_what_is_extended_stays_in_the_recipes_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.yaml").write_text(BASE)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (error,) = errors(inside, f"extends: {name}\n")
    assert "leaves the recipes' folder" in error.message
    assert error.where.endswith("recipe.yaml:1:10")


def test_recipes_beside_a_workflow_file_may_extend_each_other_across_folders(
    tmp_path: Path,
) -> None:
    write(tmp_path, {"workflows.yaml": "workflows: {}\n", "base.yaml": BASE})
    path = write(tmp_path / "team", {"recipe.yaml": "extends: ../base.yaml\nname: team\n"})
    assert recipes.load(path, registry=REGISTRY).name == "team"


def test_a_missing_parent_is_told_where_it_is_named(tmp_path: Path) -> None:
    (error,) = errors(tmp_path, "name: x\nextends: nothing.yaml\n")
    assert error.where.endswith("recipe.yaml:2:10")
    assert "no such file" in error.message


def test_a_path_is_relative_to_the_file_that_it_stands_in(tmp_path: Path) -> None:
    (tmp_path / "workflows.yaml").write_text("workflows: {}\n")
    write(
        tmp_path / "models",
        {"m.onnx": "weights", "base.yaml": HEAD + "model: {source: onnx, path: m.onnx}\n"},
    )
    path = write(tmp_path / "team", {"recipe.yaml": "extends: ../models/base.yaml\nname: team\n"})
    found = recipes.load(path, registry=REGISTRY)
    assert found.file("m.onnx", field="model.path").path == str(tmp_path / "models/m.onnx")


def test_what_is_extended_is_named_as_the_recipe_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"workflows.yaml": "workflows: {}\n", "shared/base.yaml": BASE})
    write(tmp_path, {"team/recipe.yaml": "extends: ../shared/base.yaml\nname: team\n"})
    monkeypatch.chdir(tmp_path)
    found = recipes.load(Path("team/recipe.yaml"), registry=REGISTRY)
    assert found.origin("tuning.seed") == "shared/base.yaml:3"


def test_what_the_machine_gives_to_the_target_is_told(tmp_path: Path) -> None:
    found = load(tmp_path, "extends: base.yaml\n")
    assert found.origin("target.mcpu") == "this machine"
    assert found.origin("target.kind") == "default"
    found = load(tmp_path, "extends: base.yaml\ntarget: {preset: x86-64-v3, cores: 2}\n")
    assert found.origin("target.mcpu") == f"preset, {tmp_path}/recipe.yaml:2"
    assert found.origin("target.cores") == f"{tmp_path}/recipe.yaml:2"
    assert found.origin("target.device.threads") == "this machine"


def test_an_error_names_the_file_that_the_value_came_from(tmp_path: Path) -> None:
    (error,) = errors(
        tmp_path, "extends: bad.yaml\nname: x\n", bad="version: 1\ntuning: {trials: many}\n"
    )
    assert error.where.endswith("bad.yaml:2:18")


def test_each_value_tells_where_it_came_from(tmp_path: Path) -> None:
    child = "extends: base.yaml\nname: child\ntuning: {trials: 9}\n"
    found = load(tmp_path, child, "tuning.max_seconds=4.0")
    assert found.origin("tuning.trials") == f"{tmp_path}/recipe.yaml:3"
    assert found.origin("tuning.seed") == f"{tmp_path}/base.yaml:3"
    assert found.origin("tuning.max_seconds") == "--set tuning.max_seconds=4.0"
    assert found.origin("workflow") == "default"
    lines = {line.split()[0]: line for line in found.explained_yaml().splitlines()}
    assert lines["trials:"].endswith("recipe.yaml:3")
    assert lines["seed:"].endswith("base.yaml:3")
    assert lines["max_seconds:"].endswith("# --set tuning.max_seconds=4.0")
    assert lines["workflow:"].endswith("# default")


def test_the_explained_recipe_loads_to_the_same(tmp_path: Path) -> None:
    found = load(tmp_path, "extends: base.yaml\nname: child\nx-note: [1, a]\n")
    path = tmp_path / "explained.yaml"
    path.write_text(found.explained_yaml())
    again = recipes.load(path, registry=REGISTRY)
    assert again.resolved() == found.resolved()


def test_a_whole_value_takes_the_type_of_its_variable(tmp_path: Path) -> None:
    child = "extends: base.yaml\nvars: {n: 5, f: {kind: csr}}\ntuning: {trials: '${vars.n}'}\n"
    child += "sparsity: {format: '${vars.f}'}\n"
    data = load(tmp_path, child).data
    assert data["tuning"]["trials"] == 5
    assert data["sparsity"]["format"] == {"kind": "csr"}
    assert "vars" not in data


def test_inside_a_text_a_variable_is_text(tmp_path: Path) -> None:
    child = "extends: base.yaml\nvars: {a: 5, b: 'x${vars.a}', ok: true}\n"
    child += "tags: {t: 'n${vars.b}-${vars.ok}'}\n"
    assert load(tmp_path, child).tags == {"t": "nx5-true"}


def test_a_variable_may_be_set_on_the_command_line(tmp_path: Path) -> None:
    child = "extends: base.yaml\nvars: {n: 5}\ntuning: {trials: '${vars.n}'}\n"
    assert load(tmp_path, child, "vars.n=6").data["tuning"]["trials"] == 6


def test_a_wrong_variable_is_told_at_its_value(tmp_path: Path) -> None:
    child = "extends: base.yaml\nvars:\n  n: many\ntuning: {trials: '${vars.n}'}\n"
    (error,) = errors(tmp_path, child)
    assert error.field == "tuning.trials"
    assert error.where.endswith("recipe.yaml:3:6")


@pytest.mark.parametrize("text", ["0123456", "1234567", "12e345678", "true", "~"])
def test_no_number_is_read_out_of_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("TAPML_VAR_COMMIT", text)
    child = "extends: base.yaml\nvars: {year: 2026}\n"
    child += "tags: {commit: '${env:TAPML_VAR_COMMIT}', year: '${vars.year}'}\n"
    assert load(tmp_path, child).tags == {"commit": text, "year": "2026"}


def test_a_description_is_filled_in_and_may_hold_what_is_no_reference(tmp_path: Path) -> None:
    child = "extends: base.yaml\nvars: {n: 5}\ndescription: '${vars.n} $x ${y} ${package:z}'\n"
    assert load(tmp_path, child).head.description == "5 $x ${y} ${package:z}"


SECRET = "ghp_abcdefghijklmnopqrstuvwxyz0123"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (f"tags:\n  t: {SECRET}\n", "tags.t"),
        (f"tags:\n  t: 's3://me:{SECRET}@host/x'\n", "tags.t"),
        (f"vars:\n  v: [1, {SECRET}]\ntags: {{t: '${{vars.v.1}}'}}\n", "vars.v.1"),
        (f"x-note:\n  {{why: 'use {SECRET}'}}\n", "x-note.why"),
        (f"tags:\n  t: '${{env:TAPML_VAR_X:-{SECRET}}}'\n", "tags.t"),
        (f"tuning:\n  trials: {SECRET}\n", "tuning.trials"),
    ],
)
def test_a_secret_is_refused_wherever_it_stands_and_not_repeated(
    tmp_path: Path, body: str, field: str
) -> None:
    found = errors(tmp_path, f"extends: base.yaml\n{body}")
    assert field in [error.field for error in found if "secret" in error.message]
    assert all(SECRET not in str(error) for error in found)


def test_a_secret_of_the_command_line_is_refused_and_not_repeated(tmp_path: Path) -> None:
    found = errors(tmp_path, "extends: base.yaml\n", f"tags.t={SECRET}", f"tuning.seed={SECRET}")
    assert {error.field for error in found} == {"tags.t", "tuning.seed"}
    assert all(SECRET not in str(error) for error in found)


@pytest.mark.parametrize(
    ("variables", "text", "message", "hint"),
    [
        ("{trails: 1}", "${vars.trials}", "unknown variable 'trials'", "did you mean 'trails'?"),
        ("{a: '${vars.b}', b: '${vars.a}'}", "${vars.a}", "variables stand for each other", ""),
        ("{a: [1]}", "x${vars.a}", "'${vars.a}' is a list, which a text cannot hold", ""),
        ("{}", "${env:PATH}", "recipes may not read the variable PATH", "engine: {env: [PATH]}"),
        ("{}", "${env:TAPML_VAR_TOKEN}", "TAPML_VAR_TOKEN holds a secret", "code that needs"),
        ("{}", "${env:TAPML_VAR_GONE}", "the environment has no variable TAPML_VAR_GONE", ":-"),
        ("{}", "${env:TAPML_VAR_KEY}", "the value of TAPML_VAR_KEY looks like a secret", ""),
    ],
)
def test_what_cannot_be_filled_in_is_one_error_at_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: str,
    text: str,
    message: str,
    hint: str,
) -> None:
    monkeypatch.setenv("TAPML_VAR_KEY", "AKIAABCDEFGHIJKLMNOP")
    monkeypatch.delenv("TAPML_VAR_GONE", raising=False)
    (error,) = errors(tmp_path, f"extends: base.yaml\nvars: {variables}\ntags:\n  t: '{text}'\n")
    assert error.message.startswith(message)
    assert hint in error.hint
    assert error.where.endswith("recipe.yaml:4:6")
    assert "AKIA" not in str(error)


def test_variables_of_the_environment_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPML_VAR_TRIALS", "12")
    monkeypatch.delenv("MODEL", raising=False)
    child = "extends: base.yaml\ntuning: {trials: '${env:TAPML_VAR_TRIALS}'}\n"
    child += "tags: {m: '${env:MODEL:-v3}'}\n"
    found = load(tmp_path, child)
    assert found.data["tuning"]["trials"] == 12
    assert found.tags == {"m": "v3"}
    assert found.env_used == {"TAPML_VAR_TRIALS": "12", "MODEL": "v3"}
    assert found.resolved()["x-env"] == found.env_used
    assert found.origin("x-env.MODEL") == "the environment"


def test_variables_cannot_blow_a_recipe_up(tmp_path: Path) -> None:
    rows = "".join(f"  v{n}: ['${{vars.v{n + 1}}}', '${{vars.v{n + 1}}}']\n" for n in range(30))
    child = f"extends: base.yaml\nvars:\n{rows}  v30: x\nx-y: 1\ntags: {{t: '${{vars.v0}}'}}\n"
    (error,) = errors(tmp_path, child)
    assert "more than 50000 values" in error.message
    texts = "".join(f"  v{n}: '${{vars.v{n + 1}}}${{vars.v{n + 1}}}'\n" for n in range(30))
    child = f"extends: base.yaml\nvars:\n{texts}  v30: x\ntags: {{t: '${{vars.v0}}'}}\n"
    (error,) = errors(tmp_path, child)
    assert "more than 4096 characters" in error.message


plain = st.recursive(
    st.integers(0, 9) | st.text("abc", max_size=2),
    lambda below: st.dictionaries(st.sampled_from(["a", "b", "kind"]), below, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from(["a", "b", "c", "kind"]), plain, max_size=4)


def lay(*layers: dict[str, Any]) -> Any:
    nodes = [parse(Source("", dump(layer) if layer else "{}")).root for layer in layers]
    whole = nodes[0]
    for node in nodes[1:]:
        whole = merged(whole, node)
    return whole.data


@given(mappings, mappings)
def test_what_the_upper_recipe_says_holds(base: dict[str, Any], over: dict[str, Any]) -> None:
    whole = lay(base, over)
    for key, value in over.items():
        if not isinstance(value, dict):
            assert whole[key] == value
    assert lay(base, base) == base
    assert lay(base, {}) == base
    assert lay({}, over) == over
