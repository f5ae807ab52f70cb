"""What to tune next: the kernels with most time to win, and the line of the recipe that wins it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .choose import ALTERNATIVE
from .position import Position
from .stage import Tuning
from .tune import Tuned

ROWS, LINES = 12, 3  # of the table; told in words
LEAST = 0.01  # of a clone's time: less to win is not worth a line
TRIALS = 64  # to begin with


@dataclass(frozen=True)
class Advice:
    """A kernel that may become faster, and how. `recipe`: what to write there."""

    position: Position
    why: str
    recipe: str

    def __str__(self) -> str:
        at = self.position
        one, reached = at.shipped, at.reached or 0.0
        return (
            f"{one.kernel.name} ({one.site.clone}, {at.share:.0%} of its time, {reached:.0%} of "
            f"its {at.binds} limit, {at.to_win_ms:.3g} ms to win): {self.why}; {self.recipe}"
        )


def advise(
    found: Sequence[Position], tuned: Tuned, tuning: Tuning, sizes: Mapping[str, int]
) -> tuple[Advice, ...]:
    """Kernels by time × headroom, as shares of their clone's time; those worth a line.

    In: `sizes`: of the dims, at which symbolic kernels were timed.
    """
    ranked = sorted(found, key=lambda position: -position.to_win)
    worth = [one for one in ranked if one.to_win >= LEAST]
    return tuple(_advices(worth, tuned, tuning, sizes))[:ROWS]


def _advices(
    worth: Sequence[Position], tuned: Tuned, tuning: Tuning, sizes: Mapping[str, int]
) -> Iterator[Advice]:
    for one in worth:
        if one.shipped.entry.kind in ALTERNATIVE:
            continue
        searched = tuned.of(one.shipped.kernel.name)
        trials = len(searched.trials_ms) if searched is not None else 0
        ended = searched.ended if searched is not None else ""
        cap = tuning.max_trials_per_kernel  # the default's included
        if ended and not trials and one.shipped.kernel.symbolic:
            bucket = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            yield Advice(
                one,
                "no module searches kernels of open size like it, but those of a bucket",
                f"add {{{bucket}}} to model.buckets",
            )
        elif ended:
            yield Advice(
                one,
                f"{ended} after {trials} trials",
                "a rule or a module of the space has to offer more",
            )
        elif cap is not None and trials and trials + 1 >= cap:
            yield Advice(
                one,
                f"it has had its {cap} trials",
                f"tuning: {{max_trials_per_kernel: {2 * cap}, trials: {2 * tuning.trials}}}",
            )
        elif tuning.trials:
            yield Advice(one, _had(trials), f"tuning: {{trials: {2 * tuning.trials}}}")
        else:
            yield Advice(one, "not tuned", f"tuning: {{trials: {TRIALS}}}")


def _had(trials: int) -> str:
    return f"{trials} trials so far" if trials else "no trial yet"
