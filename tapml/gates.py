"""Gates: limits of the recipe, judged on the stored facts at every run, cached or not. They enter
no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, runs
from .errors import RecipeError
from .facts import Facts
from .verdicts import Verdict as Verdict
from .verdicts import error as error

if TYPE_CHECKING:
    from .recipe.schema import Gates, LatencyLimit, Limits

_RUN = "validation.gates.latency_vs.run"


def other(gates: Gates, store: Path, recipe: str) -> Facts | None:
    """The facts of the run that `latency_vs` compares with; called before anything runs.

    Out:    None for `peer`, and for `baseline` while no run of `recipe` is marked as such. The
            host's `run` names the run, its `machine` the machine that timed it.
    Raises: RecipeError when there is no such run in `store`, or when it timed nothing.
    """
    if gates.latency_vs is None or gates.latency_vs.run == "peer":
        return None
    if gates.latency_vs.run == "baseline":
        found = runs.baseline(recipe, store)
        if found is None:
            return None
    else:
        try:
            found = runs.find(gates.latency_vs.run, store)
        except RecipeError as error:
            hint = f"{error.hint}; or `peer`, or `baseline`"
            raise replace(error, field=_RUN, hint=hint) from error
    if found.facts is None or not found.facts.latency:
        raise RecipeError(
            field=_RUN,
            message=f"run {found.run_id} has no latency: it ended {found.state}",
            hint="name a run that got through validation: `tapml runs --state ok`",
        )
    place = {**found.facts.host, "machine": found.machine, "run": found.run_id}
    return replace(found.facts, host=place)


def is_foreign(facts: Facts) -> bool:
    """Whether the timings come from a machine with another fingerprint than this one's."""
    here = host.fingerprint()
    return any(facts.host.get(name) != value for name, value in here.items())


def judge(
    gates: Gates, facts: Facts, *, foreign: bool = False, other: Facts | None = None
) -> tuple[Verdict, ...]:
    """The verdicts: the built-in one on the numeric error first, then the recipe's.

    In: `foreign`: the timings were taken on another machine, so that they satisfy no gate;
        `other`: what the function `other` found, which `latency_vs` compares with.
    """
    return (
        *_error(gates, facts),
        *_metric(gates.metric, facts.metric),
        *_latency(gates.latency_vs, facts, other, foreign=foreign),
        *_kernels_and_size(gates, facts),
    )


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


def _latency(
    limit: LatencyLimit | None, facts: Facts, other: Facts | None, *, foreign: bool
) -> Iterator[Verdict]:
    """The worst ratio; without a figure, what to do about it. No foreign timing passes."""
    if limit is None:
        return
    figure, note = _beside_peer(facts) if limit.run == "peer" else _beside(facts, other)
    if foreign:
        note = (
            f"timed on another machine ({facts.date}), which satisfies no gate; `--force` its stage"
        )
        figure = figure if limit.run == "peer" else None  # the peer was timed there too
    passed = figure is not None and figure <= limit.max_ratio and not foreign
    yield Verdict("latency_vs", figure, "≤", limit.max_ratio, passed, note)


def _beside_peer(facts: Facts) -> tuple[float | None, str]:
    known = [(row.ratio, row) for row in facts.latency if row.ratio is not None]
    if not known:
        return None, "validation gave no such figure"
    ratio, worst = max(known, key=lambda pair: pair[0])
    return ratio, f"at {worst.label}, beside {worst.peer}"


def _beside(facts: Facts, other: Facts | None) -> tuple[float | None, str]:
    """The worst ratio of equal sizes and threads to another run's on this machine, and of what."""
    if other is None:
        return None, "this recipe has no baseline; `tapml runs --baseline RUN` marks one"
    name = f"run {other.host.get('run', '')}".rstrip()
    if is_foreign(other) or other.host.get("machine") not in (None, "", host.machine()):
        where = other.host.get("cpu", "?")
        return None, f"{name} was timed on another machine ({where}); run it on this one too"
    earlier = {row.workload: row for row in other.latency}
    pairs = [(row, earlier[row.workload]) for row in facts.latency if row.workload in earlier]
    if not pairs:
        timed = "; ".join(f"{row.label}, {row.threads} threads" for row in other.latency)
        return None, f"{name} timed only {timed}; give both recipes equal sizes and threads"
    row, before = max(pairs, key=lambda pair: pair[0].ours.p50 / pair[1].ours.p50)
    note = f"at {row.label}, beside {name}"
    if len(pairs) < len(facts.latency):
        note += f", which timed {len(pairs)} of {len(facts.latency)} sizes"
    if row.ours.overlaps(before.ours):
        note += "; the difference lies inside the spreads"
    return row.ours.p50 / before.ours.p50, note


def _kernels_and_size(gates: Gates, facts: Facts) -> Iterator[Verdict]:
    if gates.failed_kernels is not None:
        yield _at_most("failed_kernels", facts.failed_kernels, gates.failed_kernels)
    if gates.bundle_mib is not None:
        yield _at_most("bundle_mib", facts.bundle_mib, gates.bundle_mib)


def _at_most(gate: str, figure: float | None, limit: float) -> Verdict:
    passed = figure is not None and figure <= limit
    return Verdict(gate, figure, "≤", limit, passed, _missing(figure))


def _missing(figure: float | None) -> str:
    return "validation gave no such figure" if figure is None else ""
