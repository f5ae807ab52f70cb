"""Whose turn it is: which workload gets the next round, and which explorer of its space.

All follows from the trials before, so that a search that was killed goes on as it would have, and a
larger budget only adds rounds at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .explorer import REUSE
from .task import Task

EVERY = 12  # rounds, of which each explorer gets one at least
PRIOR = 0.1  # what the first explorer is expected to gain in its first round; the next half, …


def next_task(tasks: Sequence[Task], cap: int, *, learns: bool = True) -> Task | None:
    """The workload where most is to be won; with `learns` off, that with the fewest rounds."""
    left = [task for task in tasks if not task.is_exhausted and len(task.trials) < cap]
    if not learns:
        return min(left, key=lambda task: task.rounds, default=None)
    left = [task for task in left if not task.is_flat]
    return max(left, key=lambda task: task.expected_ms, default=None)


class Explorers:
    """How much the rounds of each explorer gained lately, over all workloads."""

    def __init__(self, *, learns: bool = True) -> None:
        self._learns = learns
        self._rounds: dict[str, int] = {}
        self._gains: dict[str, float] = {}
        self._total = 0

    def choose(self, task: Task) -> str:
        """The explorer for the next round of a workload: what was taken from a database, then the
        one that gains most, but none is left out for long.
        """
        if REUSE in task.open:
            return REUSE
        rounds = {name: self._rounds.get(name, 0) for name in task.open}
        if not self._learns:
            return min(task.open, key=lambda name: rounds[name])
        starved = [name for name in task.open if (rounds[name] + 1) * EVERY <= self._total]
        if starved:
            return starved[0]
        return max(task.open, key=lambda name: self._gain(name, task))

    def learn(self, name: str, before_ms: float, after_ms: float) -> None:
        """The gain of a round; older ones count less and less."""
        self._total += 1
        self._rounds[name] = self._rounds.get(name, 0) + 1
        gain = math.log(before_ms / after_ms)
        self._gains[name] = 0.7 * self._gains.get(name, gain) + 0.3 * gain

    def _gain(self, name: str, task: Task) -> float:
        place = list(task.explorers).index(name)
        return self._gains.get(name, PRIOR / (place + 1))
