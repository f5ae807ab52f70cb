"""What a file is that is not what its name says, by its first bytes, and what to do with it."""

from __future__ import annotations

import codecs
from pathlib import Path

from .bounded import opened, refuse, shown

HEAD = 512  # bytes that tell
SAFE = (
    "where you trust it: `model.load_state_dict(torch.load(FILE, weights_only=True))` in a Python "
    "function that `model.python` names, FILE in `model.reads` (source: torch); or save the module "
    "by `torch.export.save(torch.export.export(module, inputs), 'model.pt2')`, weights alone by "
    "`safetensors.torch.save_file`"
)
_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_KNOWN: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what it is, what to do
    (b"version https://git-lfs", "the pointer of Git LFS to it", "fetch the file: git lfs pull"),
    (b"GGUF", "a GGUF model", "source: gguf"),
    (b"PK", "a zip archive, as torch writes them", SAFE),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "convert it to ONNX first (tf2onnx)"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it: gunzip FILE"),
)


def seems(head: bytes) -> tuple[str, str]:
    """What a file that begins so is, and what to do; two empty texts: it may be ONNX, or unknown.

    No ONNX model begins so: its first byte is the tag of a field.
    """
    for begin, what, hint in _KNOWN:
        if head.startswith(begin):
            return what, hint
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return "a pickle, which may run code and is never loaded", SAFE
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model", "convert it to ONNX first (tf2onnx)"
    if head[5:8] == b"\0\0\0" and head[8:9] == b"{":
        return "safetensors, weights alone", "name the folder of the model (source: huggingface)"
    if head.lstrip().lower().startswith(_PAGE):
        return "a page of the web, no download of a file", "download the file itself"
    if (line := _text(head)) is not None:
        return f"a text that begins with {shown(line)}", "is it the right file?"
    return "", ""


def refuse_other(path: Path, wanted: str, begins: bytes | None = None) -> None:
    """Raises StageError when the file is plainly no `wanted`, nor `begins` as one does."""
    with opened(path) as (source, _):
        head = source.read(HEAD)
    what, hint = seems(head)
    if what and (begins is None or not head.startswith(begins)):
        refuse(path, f"it is no {wanted}, but {what}", hint=hint)


def _text(head: bytes) -> str | None:
    """The first line of a text, whose last character may be cut off; None for what is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    words = "".join(text.split())
    return text.strip().partition("\n")[0].strip() if words and words.isprintable() else None
