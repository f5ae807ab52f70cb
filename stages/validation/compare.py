"""Outputs of the bundle against the reference: NaN never passes, and the tolerance has a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tapml.errors import StageError

FLOOR = (
    1e-4  # relative to the output's range: float32 sums over thousands of terms in another order
)
_STEPS = 256  # of eight bits
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CaseError:
    """Largest difference of one case; `relative` to the range of the reference's output."""

    id: str
    sizes: Mapping[str, int]
    max_abs: float
    relative: float
    allowed: float = FLOOR

    @property
    def passed(self) -> bool:
        return self.relative <= self.allowed


def case_error(case: str, sizes: Mapping[str, int], ours: Arrays, reference: Arrays) -> CaseError:
    """The worst output of one case.

    Raises: StageError when shapes differ, or when ours is not finite where the reference is.
    """
    worst = CaseError(case, sizes, 0.0, 0.0)
    for name, expected in reference.items():
        got = ours[name]
        if got.shape != expected.shape:
            raise StageError(
                message=f"{name!r}, case {case}: shape {got.shape}, expected {expected.shape}"
            )
        max_abs, relative = relative_error(got, expected, f"output {name!r} of case {case}")
        if relative >= worst.relative:
            worst = CaseError(case, sizes, max_abs, relative)
    return worst


def relative_error(got: np.ndarray, expected: np.ndarray, what: str) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to max |expected|.

    Raises: StageError when `got` is not finite where `expected` is; equal NaN or Inf count as
            equal.
    """
    if expected.size == 0:
        return 0.0, 0.0
    if expected.dtype.kind != "f":
        wrong = int(np.count_nonzero(got != expected))
        return float(wrong), wrong / expected.size
    got64, expected64 = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected64)
    if not np.isfinite(got64[finite]).all():
        count = int(np.count_nonzero(~np.isfinite(got64[finite])))
        raise StageError(
            message=f"{what}: {count} of {got.size} values are NaN or Inf; the reference is finite"
        )
    same = got64[~finite], expected64[~finite]
    if not np.array_equal(*same, equal_nan=True):
        raise StageError(message=f"{what}: finite where the reference is NaN or Inf")
    if not finite.any():
        return 0.0, 0.0
    max_abs = float(np.max(np.abs(got64[finite] - expected64[finite])))
    scale = float(np.max(np.abs(expected64[finite])))
    return max_abs, max_abs / scale if scale > 0 else max_abs


def within_a_step(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two outputs of a kernel that rounds are at most one step of its integers apart, and
    that in few elements.

    Sums in another order differ by up to FLOOR of the range; a number that lies so near to the
    middle between two integers may become either. Of numbers spread evenly over the 256 steps of
    eight bits these are 2 x FLOOR x 256, one in twenty. Floats must have eight bits' values: they
    are such integers times a scale, and their least distance is a step.
    """
    if not (expected.size and np.isfinite(expected).all() and np.isfinite(got).all()):
        return False
    wide, other = expected.astype(np.float64), got.astype(np.float64)
    apart = np.abs(other - wide)
    if expected.dtype.kind == "f":
        noise = FLOOR * float(np.abs(wide).max())
        steps = np.diff(np.union1d(wide, other))
        steps = steps[steps > noise]
        if not 0 < len(steps) < _STEPS:
            return False
        step = float(steps.min())
    else:
        step, noise = 1.0, 0.0
    few = max(1.0, 2 * FLOOR * _STEPS * expected.size)
    return bool(apart.max() <= 1.001 * step and np.count_nonzero(apart > noise) <= few)


def tolerance(own: float, own_worst: float) -> float:
    """The relative error allowed in a case.

    In: relative difference of the reference from itself, computed with and without optimisation: in
        this case, and the worst of all cases. What rounding alone does to these inputs.
    """
    return max(FLOOR, 4 * own, own_worst)


def reason(worst: CaseError) -> str:
    """Why the tolerance of a case is what it is."""
    if worst.allowed > FLOOR:
        return "the reference's own difference: 4 x that on the same input, or its worst of all"
    return "float32 sums in another order, relative to the output's range"
