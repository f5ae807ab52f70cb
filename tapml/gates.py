"""Gates: limits of the recipe, judged on the stored facts at every run, cached or not. They enter
no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import host
from .errors import GateError, RecipeError
from .facts import Facts

if TYPE_CHECKING:
    from .recipe.schema import Gates, Limits


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
        if small > 0 and large / small >= 2:
            return f"{large / small:.3g}x {side}"
        return f"{abs(self.figure - self.limit):.2g} {side}"

    def __str__(self) -> str:
        figure = "no figure" if self.figure is None else f"{self.figure:.4g}"
        parts = [
            f"{self.gate} {figure}, limit {self.relation} {self.limit:.4g}",
            self.distance,
            self.note,
        ]
        return "; ".join(part for part in parts if part)


def check(gates: Gates) -> None:
    """Raises RecipeError for a gate that this version cannot judge; called before anything runs."""
    if gates.latency_vs is not None and gates.latency_vs.run != "peer":
        raise RecipeError(
            field="validation.gates.latency_vs.run",
            message=f"cannot compare with {gates.latency_vs.run!r}",
            hint="`peer` compares with the reference runtime",
        )


def is_foreign(facts: Facts) -> bool:
    """Whether the timings come from a machine with another fingerprint than this one's."""
    here = host.fingerprint()
    return any(facts.host.get(name) != value for name, value in here.items())


def judge(gates: Gates, facts: Facts, *, foreign: bool = False) -> tuple[Verdict, ...]:
    """The verdicts: the built-in one on the numeric error first, then the recipe's.

    In: `foreign`: the timings were taken on another machine, so that they satisfy no gate.
    """
    return (
        *_error(gates, facts),
        *_metric(gates.metric, facts.metric),
        *_latency(gates, facts, foreign=foreign),
        *_size(gates, facts),
    )


def error(verdicts: Sequence[Verdict]) -> GateError | None:
    """The error of the failed verdicts, or None when all passed."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return None
    lines = "\n".join(f"  gate failed: {verdict}" for verdict in failed)
    noun = "gate" if len(verdicts) == 1 else "gates"
    return GateError(message=f"{len(failed)} of {len(verdicts)} {noun} failed\n{lines}")


def _error(gates: Gates, facts: Facts) -> Iterator[Verdict]:
    found = facts.error
    if found is not None and found.tolerance is not None:
        yield Verdict(
            gate="error",
            figure=found.relative,
            relation="≤",
            limit=found.tolerance,
            passed=found.passed,
            note=found.reason,
            builtin=True,
        )
    if gates.max_error is not None:
        yield _at_most("max_error", found.relative if found else None, gates.max_error)


def _metric(
    limits: Limits | Mapping[str, Limits] | None, metric: Mapping[str, float]
) -> Iterator[Verdict]:
    if limits is None:
        return
    if isinstance(limits, Mapping):
        named = {f"metric.{name}": (limit, metric.get(name)) for name, limit in limits.items()}
    else:  # one limit holds for every value of the metric
        named = {f"metric.{name}": (limits, value) for name, value in metric.items()}
        named = named or {"metric": (limits, None)}
    absent = "it needs `validation.metric` and real `validation.inputs`"
    if metric:
        absent = f"the metric gave {', '.join(metric)}"
    for name, (limit, figure) in named.items():
        if limit.min is not None:
            passed = figure is not None and figure >= limit.min
            yield Verdict(name, figure, "≥", limit.min, passed, absent if figure is None else "")
        if limit.max is not None:
            passed = figure is not None and figure <= limit.max
            yield Verdict(name, figure, "≤", limit.max, passed, absent if figure is None else "")


def _latency(gates: Gates, facts: Facts, *, foreign: bool) -> Iterator[Verdict]:
    if gates.latency_vs is None:
        return
    known = [(row.ratio, row) for row in facts.latency if row.ratio is not None]
    if not known:
        yield _at_most("latency_vs", None, gates.latency_vs.max_ratio)
        return
    ratio, worst = max(known, key=lambda pair: pair[0])
    note = f"at {worst.label}, beside {worst.peer}"
    if foreign:
        note = (
            f"timed on another machine ({facts.date}), which satisfies no gate; `--force` its stage"
        )
    passed = ratio <= gates.latency_vs.max_ratio and not foreign
    yield Verdict("latency_vs", ratio, "≤", gates.latency_vs.max_ratio, passed, note)


def _size(gates: Gates, facts: Facts) -> Iterator[Verdict]:
    if gates.bundle_mib is not None:
        yield _at_most("bundle_mib", facts.bundle_mib, gates.bundle_mib)


def _at_most(gate: str, figure: float | None, limit: float) -> Verdict:
    passed = figure is not None and figure <= limit
    return Verdict(gate, figure, "≤", limit, passed, _missing(figure))


def _missing(figure: float | None) -> str:
    return "validation gave no such figure" if figure is None else ""
