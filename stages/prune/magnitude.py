"""Masks of weights: True where a weight is kept."""

from __future__ import annotations

import numpy as np

from .stage import Existing, Magnitude


def masks(weight: np.ndarray, how: Magnitude | Existing) -> np.ndarray:
    """The mask of one weight, of its shape. Deterministic; the earlier of equals is kept."""
    match how:
        case Existing():
            return weight != 0
        case Magnitude(density=density, block=(high, wide)):
            return _blocks(weight, density, high, wide)
        case Magnitude(density=density):
            return largest(np.abs(weight), density)


def largest(scores: np.ndarray, density: float) -> np.ndarray:
    """True at the `density` share of entries (rounded, at least one) with the largest scores."""
    count = max(1, round(density * scores.size))
    order = np.argsort(-scores.reshape(-1), kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


def _blocks(weight: np.ndarray, density: float, high: int, wide: int) -> np.ndarray:
    """Whole blocks of the weight seen as a matrix [first dim, the rest], by mean square.

    A block at an edge has fewer entries; the mean treats it as the others.
    """
    rows, columns = weight.shape[0], int(np.prod(weight.shape[1:]))
    padded = (-(-rows // high) * high, -(-columns // wide) * wide)

    def per_block(matrix: np.ndarray) -> np.ndarray:
        full = np.zeros(padded)
        full[:rows, :columns] = matrix
        return full.reshape(padded[0] // high, high, padded[1] // wide, wide).sum(axis=(1, 3))

    matrix = weight.reshape(rows, columns).astype(np.float64)
    kept = largest(per_block(matrix**2) / per_block(np.ones_like(matrix)), density)
    mask = kept.repeat(high, axis=0).repeat(wide, axis=1)[:rows, :columns]
    return mask.reshape(weight.shape)
