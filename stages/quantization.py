"""Weights as small integers with a scale per group, in NumPy: rounding, checking and reports.

The library computes the same from Relax (relax/quantize.py, tensorir/quantized.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

Bits = Literal[4, 8]
LARGEST = {8: 127, 4: 7}  # the integers are symmetric: -LARGEST … LARGEST


@dataclass(frozen=True)
class Scheme:
    """How a 2-D weight is stored: integers of `bits`, a float scale per `group` neighbours along
    `axis`, the one that its product sums over.

    minima: the integers count from 0, and a group has its least value beside its scale
    given: scales and minima are the source's (parameters of the program), so that the weight's
        values are what integers stand for, not to be rounded
    """

    bits: Bits
    group: int
    axis: int
    minima: bool = False
    given: bool = False

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest integer that can be stored."""
        if self.minima:
            return 0, (1 << self.bits) - 1
        return -(1 << self.bits - 1), (1 << self.bits - 1) - 1

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def scheme(text: str) -> Scheme:
    """The inverse of `Scheme.to_json`."""
    return Scheme(**json.loads(text))


def quantize(weight: np.ndarray, how: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Integers (int8, shaped as the weight) and scales (float32, one per group along the axis).

    A group's largest magnitude becomes the largest integer, so that rounding twice changes nothing
    but the last bit of a scale. A group whose scale would be zero has scale 1.
    """
    scales = _largest(weight, how) / np.float32(LARGEST[how.bits])
    scales = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
    integers = np.rint(weight / _spread(scales, how, weight.shape))
    return integers.astype(np.int8), scales


def integers_of(
    weight: np.ndarray, scales: np.ndarray, minima: np.ndarray | None, how: Scheme
) -> np.ndarray:
    """The integers (int8) of a weight whose scales are given: exactly those that it was made of, or
    others that stand for the same float32 values.

    A value differs from scale * integer + least by a rounding, so what is nearest is the integer;
    where a scale is lost in the rounding of its group's least value, several integers are one
    value.
    """
    spread = _spread(scales.astype(np.float32), how, weight.shape)
    found = weight if minima is None else weight - _spread(minima, how, weight.shape)
    steps = np.divide(found, spread, out=np.zeros_like(weight), where=spread != 0)
    return np.rint(steps).clip(*how.range).astype(np.int8)


def dequantize(
    integers: np.ndarray, scales: np.ndarray, how: Scheme, minima: np.ndarray | None = None
) -> np.ndarray:
    """The float32 weight that the integers stand for."""
    spread = _spread(scales.astype(np.float32), how, integers.shape)
    found = integers.astype(np.float32) * spread
    if minima is None:
        return found
    return found + _spread(minima.astype(np.float32), how, integers.shape)


def stored_bytes(shape: tuple[int, int], how: Scheme) -> int:
    """Bytes of integers and scales, packing's padding left out."""
    groups = -(-shape[how.axis] // how.group) * shape[1 - how.axis]
    return -(-shape[0] * shape[1] * how.bits // 8) + 4 * groups


def _largest(weight: np.ndarray, how: Scheme) -> np.ndarray:
    """The largest magnitude of each group."""
    size = weight.shape[how.axis]
    pad = [(0, 0), (0, 0)]
    pad[how.axis] = (0, -size % how.group)
    padded = np.pad(np.abs(weight), pad)
    groups = padded.shape[how.axis] // how.group
    cut = [*padded.shape]
    cut[how.axis : how.axis + 1] = [groups, how.group]
    return padded.reshape(cut).max(axis=how.axis + 1)


def _spread(scales: np.ndarray, how: Scheme, shape: tuple[int, ...]) -> np.ndarray:
    """Every element's scale."""
    return np.repeat(scales, how.group, axis=how.axis).take(range(shape[how.axis]), axis=how.axis)
