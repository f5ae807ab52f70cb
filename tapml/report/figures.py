"""The numbers of a run: those that runs are sorted, filtered, drawn and compared by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from ..facts import Latency, Spread
from ..runs import RunResult, Scalar

UNITS = {"latency": "ms", "ratio": "x", "bundle_mib": "MiB", "seconds": "s"}


def of(run: RunResult) -> dict[str, float]:
    """Those that the run has, by name; none is infinite or no number.

    `latency` (ms) and `ratio` (to the peer's) are those of the first size, `metric` is the first
    one's, `metric.NAME` each; `error` is relative.
    """
    found: dict[str, float | None] = {}
    if (facts := run.facts) is not None:
        if facts.latency:
            found["latency"] = facts.latency[0].ours.p50
            found["ratio"] = facts.latency[0].ratio
        found["metric"] = next(iter(facts.metric.values()), None)
        found |= {f"metric.{name}": value for name, value in facts.metric.items()}
        found["error"] = facts.error.relative if facts.error else None
        found["bundle_mib"] = facts.bundle_mib
    found["seconds"] = run.seconds
    return {n: value for n, value in found.items() if value is not None and isfinite(value)}


def best(values: Sequence[Spread | None]) -> int | None:
    """The index of the lowest, where its spread overlaps no other's; None when noise hides it."""
    known = [(value, index) for index, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    lowest, index = min(known, key=lambda pair: pair[0].p50)
    others = (value for value, other in known if other != index)
    return None if any(lowest.overlaps(value) for value in others) else index


def ratio(row: Latency) -> Spread | None:
    """Ours / the peer's; from our low by the peer's high to our high by the peer's low."""
    if row.theirs is None or row.ratio is None or not row.theirs.low > 0:
        return None
    return Spread(row.ratio, row.ours.low / row.theirs.high, row.ours.high / row.theirs.low)


def fastest(results: Sequence[RunResult]) -> int | None:
    """The index of the fastest run at the first size, beyond the noise, of those that passed.

    None where noise hides it, where they were timed on several machines, or where one alone passed.
    """
    timed = passed(results)
    if not timed or elsewhere(timed):
        return None
    assert timed[0].facts is not None
    workload = timed[0].facts.latency[0].workload
    return best([spread_at(run, workload) if run in timed else None for run in results])


def passed(results: Sequence[RunResult]) -> list[RunResult]:
    """The runs that were timed and failed no gate."""
    return [run for run in results if run.state == "ok" and run.facts and run.facts.latency]


def spread_at(run: RunResult, workload: tuple[object, ...]) -> Spread | None:
    """What the run took for these sizes and threads."""
    rows = run.facts.latency if run.facts else ()
    return next((row.ours for row in rows if row.workload == workload), None)


def elsewhere(results: Sequence[RunResult]) -> bool:
    """Whether the runs were timed on more than one machine, as far as is known."""
    timed = [run for run in results if run.facts and run.facts.latency]
    places = {_fingerprint(run) for run in timed}
    return len(places) > 1 or len({run.machine for run in timed if run.machine}) > 1


def _fingerprint(run: RunResult) -> tuple[str, ...]:
    if run.facts is None:
        return ()
    return tuple(str(run.facts.host.get(name, "")) for name in ("cpu", "cores", "threads"))


def differing(maps: Sequence[Mapping[str, Scalar]]) -> dict[str, tuple[Scalar, ...]]:
    """The names whose values are not the same in all; None where one has none."""
    names = sorted({name for one in maps for name in one})
    rows = {name: tuple(one.get(name) for one in maps) for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}
