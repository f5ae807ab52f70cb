"""What a folder must hold, and what in it is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tapml.errors import StageError
from tapml.recipe import resolve
from tapml_stages.importer.huggingface.files import READ
from tapml_stages.importer.huggingface.folder import check, missing_weights, tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    return tmp_path


def configure(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_a_folder_of_config_and_safetensors_passes(folder: Path) -> None:
    check(folder, None)


def test_python_of_the_model_is_refused_unless_a_class_is_named(folder: Path) -> None:
    configure(folder, auto_map={"AutoModel": "modeling_evil.Evil"})
    with pytest.raises(StageError, match=r"Python of the model's own \(AutoModel\)") as caught:
        check(folder, None)
    assert "model.architecture" in caught.value.hint
    check(folder, "LlamaForCausalLM")


def test_pickles_are_refused_with_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StageError, match=r"weights as pickles \(pytorch_model.bin\)") as caught:
        check(folder, None)
    assert "save_pretrained" in caught.value.hint


def test_a_quantised_model_is_refused_by_its_method(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(StageError, match="quantised by 'gptq'"):
        check(folder, None)


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-2.safetensors").write_bytes(b"")
    assert missing_weights(folder) == ["model-00001-of-00002.safetensors"]
    with pytest.raises(StageError, match=r"lacks model-00001-of-00002\.safetensors"):
        check(folder, None)


def test_an_index_may_not_point_out_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StageError, match="points out of its folder"):
        check(folder, None)


def test_every_shard_that_an_index_may_name_is_among_the_files_of_the_key(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("model-1.safetensors", "model_1.safetensors", "model.safetensors-1.safetensors"):
        (folder / name).write_bytes(b"")
        index = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert missing_weights(folder) == []
        assert name in resolve.folder(resolve.Located(folder, folder), "m", READ).files


def test_a_shard_that_the_key_would_not_cover_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights-1.safetensors")
    index = {"weight_map": {"a": "weights-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StageError, match=r"no model\[-_\.\]\*\.safetensors: 'weights-1") as caught:
        check(folder, None)
    assert "rename" in caught.value.hint


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(StageError, match=r"config\.json (is no JSON|holds a list)"):
        check(folder, None)


def test_files_of_a_tokenizer_are_found_and_no_others(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "spiece.model", "README.md"):
        (folder / name).write_text("")
    assert sorted(tokenizer(folder)) == ["spiece.model", "tokenizer.json", "vocab.txt"]
