"""A file that is something else than its name says is told what it is, and what to do."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import models

from tapml import inspection
from tapml.errors import StageError
from tapml.formats.other import HEAD, seems

Write = Callable[[str, bytes], Path]
OTHERS = {
    "text": (b"name: magika\nversion: 1\n", "a text that begins with 'name: magika'", "right file"),
    "text cut within a character": ("é".encode() * HEAD, "a text", "right file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html>", "a page of the web", "download the file itself"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(9), "HDF5", "ONNX"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(9), "TensorFlow Lite", "ONNX"),
    "gzip": (b"\x1f\x8b\x08" + bytes(9), "gzip", "gunzip"),
    "pickle": (pickle.dumps({"w": 1}), "a pickle", "torch.export.save"),
    "old pickle": (pickle.dumps({"w": 1}, protocol=2), "a pickle", "safetensors"),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.pth"])
def test_a_file_of_another_kind_is_told_as_what_it_is(write: Write, kind: str, name: str) -> None:
    data, what, hint = OTHERS[kind]
    with pytest.raises(StageError, match="but ") as told:
        inspection.inspect(str(write(name, data)))
    assert what in str(told.value.message)
    assert hint in told.value.hint


def test_what_torch_saves_is_told_how_to_be_made_safe(write: Write) -> None:
    path = write("model.pth", b"")
    with zipfile.ZipFile(path, "w") as saved:  # as `torch.save` lays it out
        saved.writestr("model/data.pkl", pickle.dumps({"w": 1}))
    with pytest.raises(StageError, match=r"pickle of torch\.save") as told:
        inspection.inspect(str(path))
    assert "torch.export.save" in told.value.hint
    assert "safetensors.torch.save_file" in told.value.hint


def test_no_sound_model_seems_to_be_something_else() -> None:
    assert seems(models.sound("onnx")["model.onnx"][:HEAD]) == ("", "")
