"""Judged limits: what a run keeps of its gates, and the error that failed ones make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import GateError


@dataclass(frozen=True)
class Verdict:
    """One judged limit. `figure` is None where validation gave none, which never passes. `note`
    says what is special.
    """

    gate: str
    figure: float | None
    relation: Literal["≥", "≤"]
    limit: float
    passed: bool
    note: str = ""
    builtin: bool = False

    @property
    def distance(self) -> str:
        """How far the figure is from the limit: `0.0035 above`, `3.1x below`."""
        if self.figure is None:
            return ""
        side = "above" if self.figure > self.limit else "below"
        if self.figure == self.limit:
            return "exactly at the limit"
        small, large = sorted((abs(self.figure), abs(self.limit)))
        if small > 0 and (ratio := large / small) >= 2:
            return f"{ratio:,.0f}x {side}" if ratio >= 1000 else f"{ratio:.3g}x {side}"
        return f"{abs(self.figure - self.limit):.2g} {side}"

    def __str__(self) -> str:
        figure = "no figure" if self.figure is None else f"{self.figure:.4g}"
        parts = [
            f"{self.gate} {figure}, limit {self.relation} {self.limit:.4g}",
            self.distance,
            self.note,
        ]
        return "; ".join(part for part in parts if part)


def error(verdicts: Sequence[Verdict]) -> GateError | None:
    """The error of the failed verdicts, or None when all passed."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return None
    lines = "\n".join(f"  gate failed: {verdict}" for verdict in failed)
    noun = "gate" if len(verdicts) == 1 else "gates"
    return GateError(message=f"{len(failed)} of {len(verdicts)} {noun} failed\n{lines}")
