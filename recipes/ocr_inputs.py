"""Real inputs of the text detector: scikit-image's scanned page, and how its maps are compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from skimage import data, filters, transform, util

HEIGHT, WIDTH = 192, 384
THRESHOLD = 0.3  # rapidocr's: a pixel above it is text


def pages() -> dict[str, np.ndarray]:
    """The page as it is, its four quarters enlarged, turned both ways, blurred, and with noise."""
    page = util.img_as_float32(data.page())
    middle, centre = page.shape[0] // 2, page.shape[1] // 2
    quarters = [
        part
        for half in (page[:middle], page[middle:])
        for part in (half[:, :centre], half[:, centre:])
    ]
    turned = [transform.rotate(page, angle, mode="edge") for angle in (-3, 3)]
    noisy = util.random_noise(page, rng=0, var=0.002)
    images = [page, *quarters, *turned, filters.gaussian(page, 0.7), noisy]
    return {"x": np.stack([preprocess(image) for image in images])}


def preprocess(image: np.ndarray) -> np.ndarray:
    """float32[3, 192, 384] in -1..1, as rapidocr feeds the network."""
    resized = transform.resize(image, (HEIGHT, WIDTH), anti_aliasing=True)
    return np.repeat((resized[None] - 0.5) / 0.5, 3, axis=0).astype(np.float32)


def overlap(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Intersection over union of the text pixels; 1 where neither finds any."""
    (ours,), (theirs,) = outputs.values(), reference.values()
    ours, theirs = ours > THRESHOLD, theirs > THRESHOLD
    union = np.logical_or(ours, theirs).sum()
    return float(np.logical_and(ours, theirs).sum() / union) if union else 1.0
