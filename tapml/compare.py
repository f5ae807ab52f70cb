"""What differs between runs: recipe, files and versions on one side, speed, quality and size on
the other. A difference within the noise, or between machines, makes no winner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from . import explain, runs
from .errors import RecipeError
from .explain import Change
from .facts import NOISE, Spread
from .report import figures
from .results import StepResult
from .runs import RunResult, Scalar
from .store import Record, Store

Better = Literal["lower", "higher", ""]
APART = "other machine"


@dataclass(frozen=True)
class Row:
    """One figure of every run.

    values: with their spread; low = high where there is none, None where a run lacks the figure
    words:  of each run but the first, how it differs from the first
    best:   the index of the run that beats all others outside the noise
    """

    name: str
    unit: str
    values: tuple[Spread | None, ...]
    words: tuple[str, ...]
    tones: tuple[str, ...]
    best: int | None


@dataclass(frozen=True)
class Stage:
    """A stage whose key differs, or that not all runs have.

    keys:    of each run; empty where it has none
    equal:   its outputs are the same bytes all the same
    changes: what differs between the first and the last run's, where the store still knows:
             files, Python, versions; fields are the recipe's
    """

    name: str
    keys: tuple[str, ...]
    seconds: tuple[float, ...]
    equal: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    """The runs, the first of which the others are held against, and all that differs."""

    runs: tuple[RunResult, ...]
    fields: Mapping[str, tuple[Scalar, ...]]
    environment: Mapping[str, tuple[Scalar, ...]]
    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    apart: bool  # timed on several machines


def find(names: Sequence[str], store: Path) -> Comparison:
    """The comparison of the runs of these names, as `runs.find` takes them; `baseline` is that of
    the first other one's recipe. Raises: RecipeError for fewer than two.
    """
    if len(names) < 2:
        raise RecipeError(
            message="compare: name two runs or more", hint="such as `tapml compare last~1 last`"
        )
    known = {name: runs.find(name, store) for name in names if name != runs.BASELINE}
    recipe = next((run.recipe for run in known.values()), "")
    if runs.BASELINE in names:
        known[runs.BASELINE] = runs.find(runs.BASELINE, store, recipe=recipe)
    return of([known[name] for name in names], Store(store))


def of(results: Sequence[RunResult], store: Store) -> Comparison:
    """All that differs between runs; `store` still knows which files their stages read."""
    apart = figures.elsewhere(results)
    return Comparison(
        runs=tuple(results),
        fields=figures.differing([run.fields for run in results]),
        environment=figures.differing([run.environment for run in results]),
        stages=tuple(_stages(results, store)),
        rows=tuple(_rows(results, apart=apart)),
        apart=apart,
    )


def _rows(results: Sequence[RunResult], *, apart: bool) -> Iterator[Row]:
    measured = [run.facts for run in results]
    workloads = {
        row.workload: f"{row.label}, {row.threads} threads"
        for facts in measured
        for row in (facts.latency if facts else ())
    }
    for workload, label in workloads.items():
        times = [figures.spread_at(run, workload) for run in results]
        yield _row(f"latency {label}", "ms", times, _speed, "lower", apart=apart)
    for workload, label in workloads.items():
        ratios = [
            next(
                (figures.ratio(r) for r in (f.latency if f else ()) if r.workload == workload), None
            )
            for f in measured
        ]
        if any(ratios):
            yield _row(f"vs peer {label}", "x", ratios, _speed, "lower", apart=apart)
    for name in dict.fromkeys(name for facts in measured if facts for name in facts.metric):
        values = [_exact(facts.metric.get(name)) if facts else None for facts in measured]
        yield _row(f"metric {name}", "", values, _difference, _direction(results, name))
    errors = [_exact(f.error.relative) if f and f.error else None for f in measured]
    yield _row("error", "", errors, _size, "")
    yield _row(
        "bundle", "MiB", [_exact(f.bundle_mib) if f else None for f in measured], _size, "lower"
    )


def _row(
    name: str,
    unit: str,
    values: Sequence[Spread | None],
    tell: Callable[[Spread, Spread], str],
    better: Better,
    *,
    apart: bool = False,
) -> Row:
    """The row of a figure; `tell` says how the second differs from the first, outside the noise."""
    first = values[0]
    words: list[str] = []
    tones: list[str] = []
    for value in values[1:]:
        tone = ""
        if first is None or value is None:
            text = ""
        elif value == first:
            text = "equal"
        elif apart:
            text = APART
        elif value.overlaps(first):
            text = NOISE
        else:
            text = tell(first, value)
            if better:
                tone = "good" if (value.p50 < first.p50) == (better == "lower") else "bad"
        words.append(text)
        tones.append(tone)
    best = None
    if better and not apart:
        sign = 1.0 if better == "lower" else -1.0
        best = figures.best([_times(value, sign) for value in values])
    return Row(name, unit, tuple(values), tuple(words), tuple(tones), best)


def _times(value: Spread | None, sign: float) -> Spread | None:
    if value is None or sign > 0:
        return value
    return Spread(-value.p50, -value.high, -value.low, value.n)


def _exact(value: float | None) -> Spread | None:
    return None if value is None else Spread(value, value, value)


def _direction(results: Sequence[RunResult], metric: str) -> Better:
    """Which way the metric is better, as far as a gate on it says so."""
    gates = {v.relation for run in results for v in run.verdicts if v.gate == f"metric.{metric}"}
    return "higher" if gates == {"≥"} else "lower" if gates == {"≤"} else ""


def _speed(first: Spread, value: Spread) -> str:
    faster = value.p50 < first.p50
    small, large = sorted((first.p50, value.p50))
    if not small > 0:
        return "faster" if faster else "slower"
    return f"{large / small:.2f}x {'faster' if faster else 'slower'}"


def _difference(first: Spread, value: Spread) -> str:
    return f"{value.p50 - first.p50:+.3g}"


def _size(first: Spread, value: Spread) -> str:
    word = "smaller" if value.p50 < first.p50 else "larger"
    small, large = sorted((abs(first.p50), abs(value.p50)))
    if not small > 0:
        return word
    if large / small >= 2:
        return f"{large / small:.3g}x {word}"
    return f"{abs(value.p50 / first.p50 - 1):.1%} {word}"


def _stages(results: Sequence[RunResult], store: Store) -> Iterator[Stage]:
    steps = [{step.name: step for step in run.steps} for run in results]
    for name in dict.fromkeys(name for one in steps for name in one):
        found = [one.get(name) for one in steps]
        keys = tuple(step.key if step else "" for step in found)
        if len(set(keys)) == 1:
            continue
        given = [dict(step.outputs) if step else None for step in found]
        yield Stage(
            name=name,
            keys=keys,
            seconds=tuple(step.seconds if step else 0.0 for step in found),
            equal=bool(given[0]) and all(outputs == given[0] for outputs in given),
            changes=tuple(_changes(results, found, store)),
        )


def _changes(
    results: Sequence[RunResult], found: Sequence[StepResult | None], store: Store
) -> Iterator[Change]:
    """Of the last run against the first: what no field of the recipe tells."""
    old, new = (
        _record(run, step, store) for run, step in ((results[i], found[i]) for i in (0, -1))
    )
    if old is not None and new is not None:
        for change in explain.differences(old.preimage, new.preimage, old.sources, new.sources):
            if change.kind not in ("param", "input"):
                yield change


def _record(run: RunResult, step: StepResult | None, store: Store) -> Record | None:
    if step is None or not step.key:
        return None
    try:
        rows: list[dict[str, Any]] = json.loads((run.folder / "plan.json").read_bytes())
        stage = {row["name"]: str(row["stage"]) for row in rows}.get(step.name, step.name)
    except (OSError, ValueError, KeyError, TypeError):
        stage = step.name  # as most are called
    return store.lookup(stage, step.key)


def to_data(found: Comparison) -> dict[str, Any]:
    """JSON-able data; lists have one entry per run, in the order of `runs`."""
    return {
        "runs": [
            {
                "run": run.run_id,
                "recipe": run.recipe,
                "label": run.label,
                "sweep": run.sweep,
                "state": run.state,
                "started": run.started,
                "machine": run.machine,
                "host": dict(run.facts.host) if run.facts else {},
            }
            for run in found.runs
        ],
        "one_machine": not found.apart,
        "fields": {name: list(row) for name, row in found.fields.items()},
        "environment": {name: list(row) for name, row in found.environment.items()},
        "figures": [
            {
                "name": row.name,
                "unit": row.unit,
                "values": [value and vars(value) for value in row.values],
                "words": list(row.words),
                "best": None if row.best is None else found.runs[row.best].run_id,
            }
            for row in found.rows
        ],
        "stages": [
            {
                "name": stage.name,
                "keys": list(stage.keys),
                "seconds": list(stage.seconds),
                "equal_outputs": stage.equal,
                "changes": [vars(change) for change in stage.changes],
            }
            for stage in found.stages
        ],
    }
