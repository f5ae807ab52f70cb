"""From a model to a recipe: the draft loads, plans, and says what is left to fill in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fuzz import models
from fuzz.run import call

from tapml import inspection, recipe
from tapml.cli import scaffold
from tapml.errors import RecipeError
from tapml_stages.importer.stage import Import

KINDS = ("onnx", "pt2", "huggingface", "gguf")


def sound(kind: str, folder: Path) -> Path:
    """A sound model of a kind."""
    folder.mkdir()
    for name, data in models.sound(kind).items():
        (folder / name).write_bytes(data)
    return folder if kind == "huggingface" else folder / f"model.{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_drafted_recipe_loads(tmp_path: Path, kind: str) -> None:
    model = sound(kind, tmp_path / "some model")
    code, out, err = call("new", str(model), str(tmp_path / "mine"))
    assert code == 0, err
    assert f"next: tapml run {tmp_path / 'mine' / 'recipe.yaml'}" in err
    loaded = recipe.load(Path(out.splitlines()[0]))
    assert loaded.data["model"]["path"] == model.name
    for line in out.splitlines()[1:]:
        source = model / Path(line).name if model.is_dir() else model
        assert Path(line).read_bytes() == source.read_bytes()


def test_a_model_beside_the_recipe_or_in_a_package_stays_where_it_is(tmp_path: Path) -> None:
    model = sound("onnx", tmp_path / "m")
    made = scaffold.write_draft(inspection.inspect(str(model)), tmp_path)
    assert made == [tmp_path / "recipe.yaml"]
    assert recipe.load(made[0]).data["model"]["path"] == "m/model.onnx"
    import magika

    shipped = Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx"
    made = scaffold.write_draft(inspection.inspect(str(shipped)), tmp_path / "other")
    text = made[0].read_text()
    assert "path: ${package:magika}/models/standard_v3_3/model.onnx" in text
    assert len(made) == 1


def test_code_and_pickles_of_a_folder_are_not_copied(tmp_path: Path) -> None:
    model = sound("huggingface", tmp_path / "m")
    for name in ("modeling.py", "pytorch_model.bin", "tokenizer.json"):
        (model / name).write_text("")
    made = scaffold.write_draft(inspection.inspect(str(model)), tmp_path / "mine")
    names = {path.name for path in made}
    assert names == {"recipe.yaml", "tokenizer.json", *models.sound("huggingface")}


def test_a_draft_has_bounds_buckets_and_what_to_fill_in(tmp_path: Path) -> None:
    text = inspection.draft(inspection.inspect(str(sound("pt2", tmp_path / "m"))))
    assert yaml.safe_load(text)["model"] == {
        "source": "torch",
        "path": "model.pt2",
        "inputs": {"x": {"shape": ["s77", 3, 16, 16], "dtype": "float32"}},
        "dims": {"s77": {"min": 1, "max": 64}},
        "buckets": [{"s77": 1}],
    }
    assert "#   metric:" in text


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_a_draft_has_beside_its_dims_what_to_write_instead(tmp_path: Path, kind: str) -> None:
    """As import says it, where it refuses a size that differs from call to call."""
    model = sound(kind, tmp_path / "m")
    (made, *_) = scaffold.write_draft(inspection.inspect(str(model)), tmp_path / "m")
    text = made.read_text()
    (line,) = (one for one in text.splitlines() if "without `dims` and `buckets`, " in one)
    tree = yaml.safe_load(text)
    symbolic = Import.from_recipe(recipe.load(made))
    del tree["model"]["dims"], tree["model"]["buckets"]
    tree["model"] |= yaml.safe_load(line.partition("`buckets`, ")[2])
    made.write_text(yaml.safe_dump(tree))
    fixed = Import.from_recipe(recipe.load(made))
    assert fixed.signature.keys() == symbolic.signature.keys()
    assert all(isinstance(d, int) for one in fixed.signature.values() for d in one.shape)
    assert line.strip("# ") == symbolic.fixed_sizes().removeprefix("fix the sizes: in `model`, ")


def test_a_draft_and_its_runs_are_named_after_the_folder(tmp_path: Path) -> None:
    model = inspection.inspect(str(sound("onnx", tmp_path / "m")))
    for folder, name in (("my digits", "my-digits"), ("…", "model")):
        (made, *_) = scaffold.write_draft(model, tmp_path / folder)
        assert recipe.load(made).name == name


def test_a_draft_says_which_whole_numbers_are_tried(tmp_path: Path) -> None:
    import magika

    shipped = Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx"
    draft = inspection.draft(inspection.inspect(str(shipped)))
    assert yaml.safe_load(draft)["validation"] == {"random": {"bytes": [0, 1]}}


@pytest.mark.parametrize("kind", ["huggingface", "gguf"])
def test_a_language_model_gets_a_recipe_that_generates(tmp_path: Path, kind: str) -> None:
    draft = inspection.draft(inspection.inspect(str(sound(kind, tmp_path / "m"))))
    section = yaml.safe_load(draft)["model"]
    assert (section["task"], section["context"]) == ("generate", 128)
    assert "inputs" not in section


def test_weights_alone_are_no_model_to_start_from(tmp_path: Path) -> None:
    model = sound("safetensors", tmp_path / "m")
    with pytest.raises(RecipeError, match="nothing to import"):
        scaffold.write_draft(inspection.inspect(str(model)), tmp_path / "mine")


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    model = sound("onnx", tmp_path / "m")
    with pytest.raises(RecipeError, match="already there"):
        scaffold.write_draft(inspection.inspect(str(model)), tmp_path)


def test_new_still_copies_what_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, folder in (
        ((), "magika"),
        (("mine",), "mine"),
        (("--from", "magika", "b"), "b"),
    ):
        code, out, err = call("new", *arguments)
        assert code == 0, err
        assert out.splitlines()[0] == f"{folder}/magika.yaml"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", "none.onnx"), 2),
        (("inspect", "folder"), 2),
        (("inspect", "broken.gguf"), 1),
        (("inspect", "model.onnx", "--size", "b"), 2),
        (("inspect", "model.onnx", "--size", "q=3"), 2),
        (("inspect", "model.onnx", "--trace"), 2),
        (("new", "none.onnx", "mine"), 2),
        (("new", "broken.gguf", "mine"), 1),
        (("new", "a", "b", "c"), 2),
    ],
)
def test_every_mistake_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    (tmp_path / "model.onnx").write_bytes(models.sound("onnx")["model.onnx"])
    found, _, err = call(*arguments)
    assert found == code, err
    assert err.strip()


def test_a_missing_package_is_told_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    model = sound("onnx", tmp_path / "m")
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = call("inspect", str(model))
    assert code == 3
    assert "pip install 'tapml[onnx]'" in err


def test_needed_files_are_what_the_recipe_names_and_what_that_imports(tmp_path: Path) -> None:
    (tmp_path / "inputs.py").write_text("import numpy\nfrom helper import f\n")
    (tmp_path / "helper.py").write_text("import inputs\nf = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "files.txt").write_text("")
    data = {
        "description": "*",
        "sparsity": {"layers": ["*"]},
        "validation": {"inputs": {"python": "inputs.py:fn", "reads": ["*.txt"]}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    names = {path.name for path in scaffold.needed_files(tmp_path / "r.yaml")}
    assert names == {"inputs.py", "helper.py", "files.txt"}


def test_looking_into_a_model_imports_neither_torch_nor_tvm(tmp_path: Path) -> None:
    import subprocess
    import sys

    paths = [str(sound(kind, tmp_path / kind)) for kind in models.FORMATS]
    code = (
        "import sys\nfrom tapml import inspection\n"
        "for path in sys.argv[1:]: inspection.to_data(inspection.inspect(path))\n"
        "print(sorted({'torch', 'tvm', 'transformers', 'gguf', 'tapml_stages'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
