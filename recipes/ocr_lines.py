"""Real inputs of the text readers: words of scikit-image's scanned page, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from skimage import data, transform, util

HEIGHT, READ, TURN = 48, 320, 192  # of a line; width that the reader and the turner take
# rows and columns of the page → the text there
WORDS = {(12, 32, 2, 150): "Region-based", (8, 32, 150, 290): "segmentation"}
# more pieces of it
PIECES = [(8, 28, 0, 120), (10, 30, 0, 190), (10, 30, 120, 384), (12, 32, 0, 384)]


def words() -> dict[str, np.ndarray]:
    """The two words of the heading."""
    page = util.img_as_float32(data.page())
    return {"x": np.stack([preprocess(_cut(page, box), READ) for box in WORDS])}


def turned() -> dict[str, np.ndarray]:
    """Pieces of the heading, each upright and then upside down."""
    page = util.img_as_float32(data.page())
    pieces = [_cut(page, box) for box in [*WORDS, *PIECES]]
    rows = [one for piece in pieces for one in (piece, piece[::-1, ::-1])]
    return {"x": np.stack([preprocess(one, TURN) for one in rows])}


def preprocess(image: np.ndarray, width: int) -> np.ndarray:
    """float32[3, 48, width] in -1..1, as rapidocr feeds the networks: wide as it is, then zeros."""
    height, wide = image.shape
    wide = min(width, int(np.ceil(HEIGHT * wide / height)))
    line = np.zeros((3, HEIGHT, width), np.float32)
    line[:, :, :wide] = (transform.resize(image, (HEIGHT, wide), anti_aliasing=False) - 0.5) / 0.5
    return line


def reads(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Share of the words that are read as they are printed."""
    (ours,) = outputs.values()
    return float(
        np.mean([text(one) == word for one, word in zip(ours, WORDS.values(), strict=True)])
    )


def right_way_up(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Share of the pieces that are told as they were turned, upright and upside down in turn."""
    (ours,) = outputs.values()
    return float(np.mean(ours.argmax(axis=1) == np.arange(len(ours)) % 2))


def text(scores: np.ndarray) -> str:
    """What a line's scores[step, character] say: the best of each step, repeats taken once."""
    best = scores.argmax(axis=-1)
    new = np.flatnonzero(np.diff(best, prepend=-1))
    return "".join(characters()[index] for index in best[new] if index)


@cache
def characters() -> list[str]:
    """The reader's alphabet, from its file; number 0 is no character."""
    import onnx

    spec = find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).with_name("models") / "ch_PP-OCRv4_rec_infer.onnx"
    facts = {one.key: one.value for one in onnx.load(path).metadata_props}
    return ["", *facts["character"].splitlines(), " "]


def _cut(page: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, bottom, left, right = box
    return page[top:bottom, left:right]
