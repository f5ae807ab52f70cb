from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import models

from tapml.errors import StageError
from tapml.formats import huggingface


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model in one shard."""
    path = tmp_path / "model"
    path.mkdir()
    for name, data in models.sound("huggingface").items():
        (path / name).write_bytes(data)
    return path


def config(folder: Path, **changes: object) -> None:
    held = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**held, **changes}))


def index(folder: Path, places: object) -> None:
    text = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_folder_gives_configuration_and_the_tensors_of_its_shards(folder: Path) -> None:
    found = huggingface.read(folder)
    assert found.config["model_type"] == "llama"
    assert {k: v.file for k, v in found.tensors.items()} == dict.fromkeys(
        "ab", "model-1.safetensors"
    )
    assert found.remote_code == ()


def test_weights_in_one_file_need_no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-1.safetensors").rename(folder / "model.safetensors")
    assert set(huggingface.read(folder).tensors) == {"a", "b"}


def test_one_file_goes_before_an_index_as_in_transformers(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(StageError, match=r"model\.safetensors is refused"):
        huggingface.read(folder)


def test_files_of_weights_that_are_not_there_are_named(folder: Path) -> None:
    assert huggingface.missing(folder) == []
    (folder / "model-1.safetensors").unlink()
    assert huggingface.missing(folder) == ["model-1.safetensors"]
    (folder / "model.safetensors.index.json").unlink()
    assert huggingface.missing(folder) == ["model.safetensors"]


def test_the_hubs_cache_has_links_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert set(huggingface.read(snapshot).tensors) == {"a", "b"}


def pickles(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def link(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")


def ring(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")


def second_shard(folder: Path) -> None:
    (folder / "model-2.safetensors").write_bytes((folder / "model-1.safetensors").read_bytes())
    index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors"})


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "No such file"),
    "a configuration that is a list": (lambda f: (f / "config.json").write_text("[]"), "object"),
    "a kind that is a number": (lambda f: config(f, model_type=3), "text is wanted"),
    "no kind": (lambda f: config(f, model_type=""), "it is empty"),
    "a huge configuration": (
        lambda f: (f / "config.json").write_bytes(b'{"a":"' + b" " * (65 << 20) + b'"}'),
        "more than any model",
    ),
    "structure without end": (
        lambda f: (f / "config.json").write_bytes(b"[" + b"{}," * 3_000_000 + b"{}]"),
        "more than any model",
    ),
    "only pickles": (pickles, "pytorch_model.bin.*may run code"),
    "a link that leads out": (link, "leads out"),
    "a link to itself": (ring, "cannot be followed|Too many levels"),
    "a shard elsewhere": (lambda f: index(f, {"a": "../x.safetensors"}), "no file of it"),
    "a shard at a root": (lambda f: index(f, {"a": "/etc/x.safetensors"}), "no file of it"),
    "a shard that is a pickle": (lambda f: index(f, {"a": "model.bin"}), "no safetensors"),
    "a shard that is missing": (lambda f: index(f, {"a": "model-2.safetensors"}), "1 of 1 shards"),
    "an index that is empty": (lambda f: index(f, {}), "it is empty"),
    "an index of numbers": (lambda f: index(f, {"a": 1}), "text is wanted"),
    "an index that is a list": (lambda f: index(f, []), "object is wanted"),
    "a tensor that is not in its shard": (
        lambda f: index(f, {"c": "model-1.safetensors"}),
        "not there",
    ),
    "a tensor in two shards": (second_shard, "two shards"),
}


@pytest.mark.parametrize(("spoil", "match"), SPOILT.values(), ids=SPOILT)
def test_a_folder_that_lies_is_refused(
    folder: Path, spoil: Callable[[Path], object], match: str
) -> None:
    spoil(folder)
    with pytest.raises(StageError, match=match):
        huggingface.read(folder)


def test_code_of_the_repository_is_named_and_not_imported(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling_x.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\n")
    config(folder, auto_map={"AutoModel": "modeling_x.Model"})
    assert huggingface.read(folder).remote_code == ("modeling_x.Model",)
    assert not (tmp_path / "pwned").exists()
