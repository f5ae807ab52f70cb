"""Where shipped kernels stand: their time, beside the least that the machine allows for it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from ..records import KernelChoice
from ..roofline import Limits, Work, work
from .choose import Outcome, Shipped


@dataclass(frozen=True)
class Position:
    """A kernel in a clone.

    share:    of the clone's time
    work:     of one call; None where it is not known: a sparse implementation does other work
    least_ms: of all calls, None with `work`; `binds` says which limit it follows from
    gain:     time of the default schedule / time of the tuned one, where that ships
    """

    shipped: Shipped
    share: float
    work: Work | None = None
    least_ms: float | None = None
    binds: Literal["FMA", "read", ""] = ""
    gain: float | None = None

    @property
    def reached(self) -> float | None:
        """Share of the limit; above 1 where the work is less than it seems."""
        return None if self.least_ms is None else self.least_ms / self.shipped.total_ms

    @property
    def to_win_ms(self) -> float:
        """Time × headroom: 0 where the limit is not known."""
        total = self.shipped.total_ms
        return max(total - (total if self.least_ms is None else self.least_ms), 0.0)

    @property
    def to_win(self) -> float:
        """The same as a share of the clone's time."""
        return self.share * self.to_win_ms / self.shipped.total_ms


def positions(outcome: Outcome, limits: Limits) -> tuple[Position, ...]:
    """Of every shipped kernel, in each clone the one that takes most time first."""
    totals: dict[str, float] = defaultdict(float)
    for one in outcome.shipped:
        totals[one.site.clone] += one.total_ms
    choices = {choice.kernel: choice for choice in outcome.choices.kernels}
    clones = list(totals)
    found = []
    for one in outcome.shipped:
        share = one.total_ms / totals[one.site.clone]
        if one.entry.kind == "sparse":
            found.append(Position(one, share))
            continue
        done = work(one.kernel.func, one.site.args)
        found.append(
            Position(
                one,
                share,
                done,
                limits.least_ms(done) * one.site.count,
                limits.binds(done),
                _gain(one, choices[one.kernel.name]),
            )
        )
    return tuple(sorted(found, key=lambda p: (clones.index(p.shipped.site.clone), -p.share)))


def _gain(one: Shipped, choice: KernelChoice) -> float | None:
    if one.entry.kind != "tuned":
        return None
    times = {candidate.id: candidate.ms for candidate in choice.candidates}
    default, tuned = choice.candidates[0].ms, times.get(choice.record)
    return default / tuned if default and tuned else None
