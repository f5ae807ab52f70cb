from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from tapml.errors import EnvironmentalError, RecipeError
from tapml.recipe import Recipe, json_schema
from tapml.recipe.schema import compose
from tapml.registry import Registry, installed
from tapml.stage import Frozen, PythonRef, Stage

HEAD = "version: 1\nname: tiny\n"
ErrorsOf = Callable[..., list[RecipeError]]
Load = Callable[..., Recipe]


def test_a_recipe_has_its_head_target_and_gates(load: Load, whole: str) -> None:
    recipe = load(whole)
    assert (recipe.name, recipe.workflow, recipe.tags) == ("tiny", "deploy", {"team": "compilers"})
    assert recipe.target.mcpu == "x86-64-v3"
    assert recipe.gates.bundle_mib == 30
    assert recipe.gates.metric is not None
    assert recipe.path.is_absolute()


def test_a_section_of_several_rooms_is_an_instance_of_each_rooms_model(
    load: Load, whole: str, registry: Registry
) -> None:
    recipe = load(whole)
    for model in registry.sections()["sparsity"]:
        assert isinstance(recipe.section("sparsity", model), model)
    assert recipe.section("sparsity", registry.sections()["sparsity"][0]).layers == (  # pyright: ignore[reportAttributeAccessIssue]
        "*Dense_*",
        "no",
        "1e3",
    )


def test_a_section_that_is_left_out_has_its_defaults(load: Load, registry: Registry) -> None:
    recipe = load(HEAD)
    (tuning,) = registry.sections()["tuning"]
    assert not recipe.has("tuning")
    assert recipe.section("tuning", tuning) == tuning()


def test_one_rooms_fields_have_defaults_though_anothers_are_required(
    load: Load, registry: Registry
) -> None:
    _, formats = registry.sections()["sparsity"]
    assert load(HEAD).section("sparsity", formats) == formats()


def test_a_section_with_required_fields_cannot_be_left_out_by_who_reads_it(
    load: Load, registry: Registry
) -> None:
    (model,) = registry.sections()["model"]
    with pytest.raises(RecipeError, match=r"model: required section is missing\n.*needs: source"):
        load(HEAD).section("model", model)


def test_two_stages_that_declare_one_field_differently_are_an_error() -> None:
    class Other(Frozen):
        trials: str = ""

    class One(Frozen):
        trials: int = 0

    class A(Stage):
        name: ClassVar[str] = "a"
        sections: ClassVar[Mapping[str, type[Frozen]]] = {"tuning": One}

    class B(Stage):
        name: ClassVar[str] = "b"
        sections: ClassVar[Mapping[str, type[Frozen]]] = {"tuning": Other}

    with pytest.raises(EnvironmentalError, match=r"tuning\.trials is declared differently"):
        compose(Registry.of(A, B))


def test_a_section_that_no_stage_declares_is_an_unknown_key(errors_of: ErrorsOf) -> None:
    (error,) = errors_of(HEAD + "tunning: {trials: 3}\n")
    assert (error.field, error.message) == ("tunning", "unknown key")
    assert "did you mean 'tuning'?" in error.hint


def test_another_version_is_the_only_error(errors_of: ErrorsOf) -> None:
    (error,) = errors_of("version: 2\nname: tiny\nfuture: {}\n")
    mine = metadata.version("tapml")
    assert error.message == f"tapml {mine} reads version 1 of the recipe language, not 2"
    assert "pip install --upgrade tapml" in error.hint
    assert error.where == "recipe.yaml:1:10"


@pytest.mark.parametrize("version", ["'1'", "1.0", "true", "0", "[1]", ""])
def test_what_is_nearly_the_version_is_not_it(errors_of: ErrorsOf, version: str) -> None:
    (error,) = errors_of(f"version: {version}\nname: tiny\nfuture: {{}}\n")
    assert error.field == "version"
    assert error.hint == "write version: 1"


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        ("sparsity: {layers: [a], prune: {}}", "'method' is missing", "one of: magnitude, none"),
        (
            "model: {inputs: {x: {shape: [1], dtype: f32}}}",
            "unknown value 'f32'",
            "did you mean 'float32'",
        ),
        ("tags: {a: '${b}'}", "unknown reference '${b}'", "${vars.NAME}, ${env:NAME}"),
        ("validation: {random: {x: [1]}}", "validation.random.x.1: a value is missing", ""),
    ],
)
def test_what_is_wrong_or_missing_is_told_with_what_could_stand_there(
    load: Load, body: str, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(HEAD + body, registry=installed())
    told = str(caught.value).partition(message)[2]
    assert told
    assert hint in told


def test_an_unknown_target_is_told_with_all_else(errors_of: ErrorsOf) -> None:
    text = HEAD + "target:\n  mcpu: zvner3\ntuning: {trials: many}\n"
    target, tuning = errors_of(text)
    assert (target.field, target.where) == ("target.mcpu", "recipe.yaml:4:9")
    assert "did you mean 'znver3'?" in target.hint
    assert tuning.field == "tuning.trials"


def test_a_number_in_quotes_is_not_offered_as_its_own_correction(load: Load) -> None:
    with pytest.raises(RecipeError, match=r"opt_level: expected 0, 1, 2 or 3, not the string '3'"):
        load(HEAD + "build: {opt_level: '3'}\n", registry=installed())


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ("tuning: {trials: '3'}", "tuning.trials", "expected an integer, not the string '3'"),
        ("tuning: {trials: 1.5}", "tuning.trials", "expected an integer, not 1.5"),
        ("tuning: {trials: true}", "tuning.trials", "expected an integer, not true"),
        ("tuning: {trials: -1}", "tuning.trials", "-1: should be greater than or equal to 0"),
        ("tuning: 3", "tuning", "expected a mapping, not 3"),
        ("tuning:", "tuning", "the section is empty"),
        ("sparsity: {layers: all}", "sparsity.layers", "expected a list, not the string 'all'"),
        ("sparsity: {density: .5}", "sparsity.layers", "required field is missing"),
        (
            "sparsity: {layers: [a], format: {kind: csrr}}",
            "sparsity.format.kind",
            "unknown value 'csrr'",
        ),
        (
            "sparsity: {layers: [a], format: {}}",
            "sparsity.format",
            "required field 'kind' is missing",
        ),
        (
            "sparsity: {layers: [a], format: {kind: bsr, blok: 3}}",
            "sparsity.format.blok",
            "unknown key",
        ),
        (
            "sparsity: {layers: [a], format: {kind: bsr, block: [1, x]}}",
            "sparsity.format.block.1",
            "expected an integer, not the string 'x'",
        ),
        (
            "sparsity: {layers: [], density: 1}",
            "sparsity.layers",
            "expected a length of at least 1",
        ),
        (
            "model: {source: onnx, dims: {b-a: {min: 1, max: 4}}}",
            "model.dims.b-a",
            "'b-a' does not have the form",
        ),
        ("model: {source: onxx}", "model.source", "unknown value 'onxx'"),
        (
            "model: {source: onnx, dims: {batch: {min: 0, max: 4}}}",
            "model.dims.batch.min",
            "0: should be greater than or equal to 1",
        ),
        ("validation: {inputs: 3}", "validation.inputs", "expected a mapping or a string, not 3"),
        (
            "validation: {inputs: {python: 'x.py:f', raeds: []}}",
            "validation.inputs.raeds",
            "unknown key",
        ),
        ("validation: {inputs: {}}", "validation.inputs.python", "required field is missing"),
        ("validation: {gates: {metric: {mim: 1}}}", "validation.gates.metric.mim", "unknown key"),
        (
            "validation: {gates: {metric: {iou: {mim: 1}}}}",
            "validation.gates.metric.iou.mim",
            "unknown key",
        ),
        ("target: {kind: cuda}", "target.kind", "unknown value 'cuda'"),
        ("target: {preset: x86-64-v9}", "target.preset", "unknown preset 'x86-64-v9'"),
        ("target: {mcpu: znver44}", "target.mcpu", "unknown CPU 'znver44' of x86_64"),
        ("target: {mtriple: sparc-linux}", "target.mtriple", "unknown architecture 'sparc'"),
        ("target: {device: {threads: 0}}", "target.device.threads", "0: should be greater than"),
        ("x: ${vars.y}", "x", "unknown variable 'y'"),
        (
            "description: ok\nmodel: {source: onnx, path: '${env:HOME}/x'}",
            "model.path",
            "recipes may not read the variable HOME",
        ),
        (
            "model: {source: onnx, path: 'a/${package:yaml}'}",
            "model.path",
            "'${package:yaml}' must stand at",
        ),
    ],
)
def test_a_wrong_value_is_one_clear_error(
    errors_of: ErrorsOf, body: str, field: str, message: str
) -> None:
    found = errors_of(HEAD + body + "\n")
    assert [error.field for error in found][:1] == [field]
    assert found[0].message.startswith(message)
    assert [error for error in found if error.field == field] == found[:1]
    assert found[0].where.startswith("recipe.yaml:")


def test_required_head_fields_are_reported_together(errors_of: ErrorsOf) -> None:
    assert [error.field for error in errors_of("tags: {}\n")] == ["version", "name"]


def test_a_package_that_is_missing_is_named_with_the_command(load: Load) -> None:
    text = HEAD + "model: {source: onnx, path: '${package:skimagee}/x'}\n"
    with pytest.raises(EnvironmentalError, match="'skimagee' is not installed") as caught:
        load(text)
    assert caught.value.hint == "pip install 'skimagee'"
    assert caught.value.exit_code == 3


def test_a_missing_package_of_a_shipped_recipe_names_the_extra(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentalError) as caught:
        load(HEAD + "model: {source: onnx, path: '${package:magika}/x'}\n")
    assert caught.value.hint == "pip install 'tapml[recipes]'"


def test_a_package_reference_is_its_folder(load: Load) -> None:
    recipe = load(HEAD + "model: {source: onnx, path: '${package:yaml}/loader.py'}\n")
    found = recipe.file("${package:yaml}/loader.py", field="model.path")
    assert Path(found.path) == Path(yaml.__file__).parent / "loader.py"


def test_a_package_is_found_without_importing_it(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "explosive"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    (package / "m.onnx").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    recipe = load(HEAD + "model: {source: onnx, path: '${package:explosive}/m.onnx'}\n")
    path = recipe.file("${package:explosive}/m.onnx", field="model.path").path
    assert path == str((package / "m.onnx").resolve())


def test_a_file_is_digested_by_its_bytes(load: Load, whole: str, tmp_path: Path) -> None:
    recipe = load(whole)
    first = recipe.file("model.onnx", field="model.path").sha256
    (tmp_path / "model.onnx").write_bytes(b"other")
    assert recipe.file("model.onnx", field="model.path").sha256 != first


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("modle.onnx", r"no file 'modle.onnx'\n.*\n.*\n  did you mean 'model.onnx'\?"),
        ("../up.onnx", "leaves the recipe's folder"),
        ("/etc/passwd", "leaves the recipe's folder"),
        ("link", "leaves the recipe's folder"),
        (".", "'.' is a folder"),
        ("fifo", "no regular file"),
        ("no/such/m.onnx", "no file"),
        ("loop", "'loop'"),
        ("x" * 5000, "name too long"),
        ("${package:yaml}/../pydantic/main.py", "leaves the package's folder"),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error_at_its_field(
    load: Load, whole: str, tmp_path: Path, path: str, message: str
) -> None:
    recipe = load(whole)
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.file(path, field="model.path")
    assert caught.value.where.endswith("recipe.yaml:8:9")
    assert caught.value.exit_code == 2


def test_a_folder_is_digested_by_those_of_its_files_that_count(
    load: Load, whole: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("config.json", "a.safetensors", "README.md", "below/config.json"):
        (folder / name).write_text(name)
    recipe, names = load(whole), ("config.json", "*.safetensors")
    found = recipe.folder("folder", names=names, field="model.path")
    assert sorted(found.files) == ["a.safetensors", "config.json"]
    assert found.model_dump() == {"files": {n: one.model_dump() for n, one in found.files.items()}}
    (folder / "README.md").write_text("other")
    assert recipe.folder("folder", names=names, field="model.path") == found
    (folder / "a.safetensors").write_text("other")
    assert recipe.folder("folder", names=names, field="model.path") != found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("foldr", r"no folder 'foldr'\n.*\n.*\n  did you mean 'folder'\?"),
        ("model.onnx", "is a file, not a folder"),
        ("empty", "'empty' holds none of config.json"),
        ("linked", "'linked' leaves the folder by 'config.json'"),
        ("..", "leaves the recipe's folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_an_error_at_its_field(
    load: Load, whole: str, tmp_path: Path, path: str, message: str
) -> None:
    recipe = load(whole)
    for name in ("folder", "empty", "linked"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.folder(path, names=("config.json",), field="model.path")
    assert caught.value.where.endswith("recipe.yaml:8:9")


def test_an_absolute_path_is_allowed_on_the_command_line(load: Load, whole: str) -> None:
    recipe = load(whole, "model.path=/etc/passwd")
    assert recipe.file("/etc/passwd", field="model.path").path == "/etc/passwd"


def test_a_function_is_keyed_by_its_file_and_the_modules_beside_it(
    load: Load, whole: str, tmp_path: Path
) -> None:
    recipe = load(whole)

    def digest() -> str:
        return recipe.python(PythonRef(python="inputs.py:files"), field="validation.inputs").sha256

    first = digest()
    (tmp_path / "helper.py").write_text("x = 1\n")
    second = digest()
    (tmp_path / "inputs.py").write_text("def files(): return 1\n")
    assert len({first, second, digest()}) == 3
    (tmp_path / "notes.txt").write_text("no module")
    third = digest()
    (tmp_path / "notes.txt").write_text("changed")
    assert digest() == third


def test_a_function_is_keyed_by_what_it_reads(load: Load, whole: str, tmp_path: Path) -> None:
    recipe = load(whole)
    ref = PythonRef(python="inputs.py:files", reads=("data/**", "model.onnx"))
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.bin").write_bytes(b"1")
    first = recipe.python(ref, field="validation.inputs").sha256
    (tmp_path / "data" / "deep" / "a.bin").write_bytes(b"22")
    assert recipe.python(ref, field="validation.inputs").sha256 != first


def test_a_functions_field_may_be_named_by_section_or_by_string(load: Load, whole: str) -> None:
    recipe = load(whole)
    for field in ("validation.inputs", "validation.inputs.python"):
        with pytest.raises(RecipeError, match=r"no file 'gone.py'") as caught:
            recipe.python(PythonRef(python="gone.py:f"), field=field)
        assert caught.value.field == "validation.inputs.python"
        assert caught.value.where.endswith(":18:20")


@pytest.mark.parametrize(
    ("python", "reads", "message"),
    [
        ("inputs.py:fils", (), "has no function 'fils'\n.*\n.*\n  did you mean 'files'"),
        ("input.py:files", (), r"no file 'input.py'"),
        ("broken.py:f", (), r"'broken.py', line 1: invalid syntax"),
        ("../inputs.py:files", (), "leaves the recipe's folder"),
        ("inputs.py:files", ("nothing/*",), "no file matches 'nothing/\\*'"),
        ("inputs.py:files", ("../*",), "leaves the recipe's folder"),
        ("inputs.py:files", ("**/../outside.txt",), "leaves the folder"),
        ("inputs.py:files", ("gone.bin",), "no file 'gone.bin'"),
    ],
)
def test_a_function_that_cannot_be_used_is_an_error(
    load: Load, whole: str, tmp_path: Path, python: str, reads: tuple[str, ...], message: str
) -> None:
    recipe = load(whole)
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path.parent / "outside.txt").write_text("not ours")
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.python(PythonRef(python=python, reads=reads), field="validation.inputs")
    assert "recipe.yaml:18" in caught.value.where


def test_a_file_of_python_is_not_run(load: Load, whole: str, tmp_path: Path) -> None:
    recipe = load(whole)
    (tmp_path / "inputs.py").write_text(
        "raise SystemExit\nif True:\n    from x import y as files\n"
    )
    found = recipe.python(PythonRef(python="inputs.py:files"), field="validation.inputs")
    assert found.function == "files"


def test_a_function_of_a_package_is_keyed_by_its_version(load: Load, whole: str) -> None:
    recipe = load(whole)
    ref = PythonRef(python="${package:yaml}/loader.py:Loader")
    found = recipe.python(ref, field="validation.inputs")
    assert Path(found.path) == Path(yaml.__file__).parent / "loader.py"


def test_an_error_of_a_stage_gets_its_place(load: Load, whole: str) -> None:
    found = load(whole).locate(RecipeError(field="model.dims.batch.max", message="too large"))
    assert found.where.endswith("recipe.yaml:9:31")
    assert found.excerpt.endswith("^^")


def test_flat_fields_hold_defaults_and_the_full_target(load: Load, whole: str) -> None:
    fields = load(whole).dotted()
    assert fields["tuning.trials"] == 64
    assert fields["tuning.seed"] == 0
    assert fields["sparsity.format.block"] == "[8, 8]"
    assert fields["target.mcpu"] == "x86-64-v3"
    assert fields["model.dims.batch.max"] == 64
    assert "tuning.max_seconds" not in fields


def test_a_section_that_means_something_by_being_there_is_not_filled_in(load: Load) -> None:
    fields = load(HEAD).dotted()
    assert fields["tuning.trials"] == 0
    assert not [name for name in fields if name.startswith("sparsity")]


def test_the_resolved_recipe_loads_to_itself(load: Load, whole: str) -> None:
    recipe = load(whole)
    again = load(recipe.resolved_yaml())
    assert again.dotted() == recipe.dotted()
    assert again.resolved_yaml() == recipe.resolved_yaml()
    assert again.target == recipe.target


def test_the_json_schema_knows_sections_kinds_and_notes(registry: Registry) -> None:
    schema: dict[str, Any] = json_schema(registry)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["patternProperties"].keys() == {"^x-"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Tuning"]["properties"]["trials"]["description"] == "Measurements."
    section = schema["$defs"]["SparsitySection"]["properties"]["format"]
    assert section["discriminator"]["propertyName"] == "kind"
    assert schema["else"]["properties"]["tuning"]["$ref"] == "#/$defs/Tuning"
    assert schema["then"]["properties"]["tuning"]["$ref"] == "#/$defs/Tuning.partial"
