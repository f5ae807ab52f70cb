"""huggingface_hub's own loader against a server that speaks the hub's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from tapml.errors import EnvironmentalError
from tapml_stages.importer.huggingface.hub import snapshot

from .conftest import COMMIT, Hub

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"tokens",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
}


@pytest.fixture
def model(hub: Hub) -> Hub:
    hub.models["acme/tiny"] = dict(FILES)
    return hub


def test_the_files_that_are_read_are_fetched_and_no_others(model: Hub) -> None:
    folder = snapshot("acme/tiny", COMMIT)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_what_is_in_the_cache_asks_nothing_of_the_network(model: Hub) -> None:
    folder = snapshot("acme/tiny", COMMIT)
    model.asked.clear()
    assert snapshot("acme/tiny", COMMIT) == folder
    assert model.asked == []


def test_a_model_that_is_not_there_is_told_with_its_page(hub: Hub) -> None:
    with pytest.raises(
        EnvironmentalError, match=r"acme/tiny at 0123456789ab: .*no such model"
    ) as e:
        snapshot("acme/tiny", COMMIT)
    assert "hf auth login" in e.value.hint


def test_a_commit_that_is_not_there_is_told(model: Hub) -> None:
    with pytest.raises(EnvironmentalError, match="no such commit") as caught:
        snapshot("acme/tiny", "f" * 40)
    assert "acme/tiny/commits/main for model.revision" in caught.value.hint


@pytest.mark.parametrize(("status", "code"), [(403, "GatedRepo"), (401, "GatedRepo")])
def test_a_gated_model_is_told_with_the_command_that_logs_in(
    model: Hub, status: int, code: str
) -> None:
    model.refuse = (status, code)
    with pytest.raises(EnvironmentalError, match="only to those who were granted access") as caught:
        snapshot("acme/tiny", COMMIT)
    assert caught.value.hint.endswith("hf auth login")


def test_a_refusal_without_a_code_is_told(model: Hub) -> None:
    model.refuse = (403, "")
    with pytest.raises(EnvironmentalError, match=r"refused it \(403\)"):
        snapshot("acme/tiny", COMMIT)


@pytest.mark.slow  # the loader tries again and again
def test_without_a_network_the_command_that_fetches_it_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    with pytest.raises(EnvironmentalError, match="not in the cache, and could not be fetched") as e:
        snapshot("acme/tiny", COMMIT)
    assert f"hf download acme/tiny --revision {COMMIT}" in e.value.hint


def test_offline_by_the_environment_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentalError, match="not in the cache") as caught:
        snapshot("acme/tiny", COMMIT)
    assert caught.value.hint.startswith("HF_HUB_OFFLINE is set; without it: hf download")
    assert hub.asked == []


def test_a_download_that_was_cut_off_goes_on(model: Hub) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    model.models["acme/tiny"] = {
        **files,
        **dict.fromkeys(index["weight_map"].values(), b"shard"),
    }
    model.broken_files = frozenset({"model-00001-of-00002.safetensors"})
    with pytest.raises(EnvironmentalError, match="could not be fetched"):
        snapshot("acme/tiny", COMMIT)
    with pytest.raises(EnvironmentalError, match="only a part of it is in the cache") as caught:
        snapshot("acme/tiny", COMMIT)
    assert "goes on where it stopped" in caught.value.hint
    model.broken_files = frozenset()
    folder = snapshot("acme/tiny", COMMIT)
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == b"shard"


def test_a_cache_that_holds_a_part_and_does_not_know_it_is_completed(model: Hub) -> None:
    folder = snapshot("acme/tiny", COMMIT)
    (folder / "model.safetensors").unlink()
    for listing in Path(constants.HF_HUB_CACHE).rglob("trees"):
        for file in listing.iterdir():
            file.unlink()
    assert (snapshot("acme/tiny", COMMIT) / "model.safetensors").read_bytes() == b"weights"
