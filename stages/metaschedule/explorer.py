"""What finds schedules of a PrimFunc to try: one for each search module that makes whole schedules,
one for all schedule rules of MetaSchedule together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .database import Trial

DEFAULT = "default"  # what made the first trial of a search
REUSE = "reuse"  # what was taken from a database; its trials are those of the module that made them
RULES = "schedule-rules"  # what makes the trials of MetaSchedule's own search


@dataclass(frozen=True)
class Proposal:
    """A schedule to be measured: its PrimFunc, its structural hash and its trace as JSON."""

    key: str
    func: Any
    trace: str


class Explorer(Protocol):
    """Finds schedules of one PrimFunc. A round follows from the trials before it alone."""

    def propose(self, number: int, known: Sequence[Trial], count: int) -> list[Proposal]:
        """Up to `count` schedules that are not among `known`, all trials of the rounds before
        `number`; none when the space is exhausted.
        """
        ...

    def observe(self, trial: Trial, relative: float | None) -> None:
        """Learns the time of one of its own trials, relative to the default's; None: it failed."""
        ...

    def scheduled(self, trial: Trial) -> Any | None:
        """The PrimFunc of one of its own trials; None when its trace leads elsewhere today."""
        ...


def trace_of(module: str, decisions: Any) -> str:
    """The trace of a schedule that decisions of a search module lead to."""
    return json.dumps({"module": module, "decisions": dict(decisions)}, sort_keys=True)


def made_by(trial: Trial) -> str:
    """Name of the explorer that proposed a trial."""
    trace = json.loads(trial.trace)
    return trace["module"] if isinstance(trace, dict) else RULES


def decisions_of(trial: Trial) -> dict[str, Any]:
    return json.loads(trial.trace)["decisions"]
