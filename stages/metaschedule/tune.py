"""The search over schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..records import Record


@dataclass(frozen=True)
class Tuned:
    """What a search found: the best records by kernel (fastest first), and how it went."""

    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    trials: int = 0
    failed: int = 0
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
