"""What a folder must hold, and what in it is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fuzz import models

from tapml.errors import StageError
from tapml.recipe import resolve
from tapml_stages.importer.huggingface.files import READ
from tapml_stages.importer.huggingface.folder import check, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in models.sound("huggingface").items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def configure(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def rename(folder: Path, shard: str) -> None:
    index = {"metadata": {}, "weight_map": dict.fromkeys("ab", shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_of_config_and_safetensors_passes(folder: Path) -> None:
    check(folder, None)


def test_a_bound_on_layers_is_no_number_of_them(folder: Path) -> None:
    configure(folder, max_window_layers=1000)
    check(folder, None)
    configure(folder, num_hidden_layers=1000)
    with pytest.raises(StageError, match="num_hidden_layers 1000; the weights are"):
        check(folder, None)


def test_python_of_the_model_is_refused_unless_a_class_is_named(folder: Path) -> None:
    configure(folder, auto_map={"AutoModel": "modeling_evil.Evil"})
    with pytest.raises(StageError, match=r"Python of the model's own \(modeling_evil") as caught:
        check(folder, None)
    assert "model.architecture" in caught.value.hint
    check(folder, "LlamaForCausalLM")


@pytest.mark.parametrize("how", [{"quant_method": "gptq"}, ["gptq"]])
def test_a_quantised_model_is_refused_by_its_method(folder: Path, how: object) -> None:
    configure(folder, quantization_config=how)
    with pytest.raises(StageError, match="gptq"):
        check(folder, None)


def test_what_the_reader_of_folders_refuses_is_refused_before_transformers_sees_it(
    folder: Path,
) -> None:
    (folder / "model-1.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StageError, match="shards are missing"):
        check(folder, None)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(StageError, match=r"only 'pytorch_model\.bin': pickles") as caught:
        check(folder, None)
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["model_1.safetensors", "model.safetensors-1.safetensors", "model-00001.safetensors"]
)
def test_a_shard_that_an_index_may_name_is_among_the_files_of_the_key(
    folder: Path, name: str
) -> None:
    (folder / "model-1.safetensors").rename(folder / name)
    rename(folder, name)
    check(folder, None)
    assert name in resolve.folder(resolve.Located(folder, folder), "m", READ).files


@pytest.mark.parametrize("name", ["weights-1.safetensors", "model-1/model-1.safetensors"])
def test_a_shard_that_the_key_would_not_cover_is_refused(folder: Path, name: str) -> None:
    rename(folder, name)
    with pytest.raises(StageError, match=rf"'{name}' is no model\[") as caught:
        check(folder, None)
    assert "in the index too" in caught.value.hint


def test_files_of_a_tokenizer_are_found_and_no_others(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "spiece.model", "README.md"):
        (folder / name).write_text("")
    assert sorted(tokenizer(folder)) == ["spiece.model", "tokenizer.json", "vocab.txt"]


def test_more_layers_than_there_are_tensors_are_refused_before_they_are_built(folder: Path) -> None:
    configure(folder, num_hidden_layers=2)  # as many as there are tensors
    check(folder, None)
    configure(folder, num_hidden_layers=100_000)
    with pytest.raises(StageError, match="num_hidden_layers 100000; the weights are 2 tensors"):
        check(folder, None)
