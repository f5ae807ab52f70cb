"""What the room tells people: where the time goes, what won, and how the search went."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from tapml.stage import Curve, Report, Table

from .choose import ALTERNATIVE, Outcome, Shipped
from .tune import Tuned

TOP = 40  # kernels listed


def draw(outcome: Outcome, tuned: Tuned) -> Report:
    """The report of a run: kernels by time, rules by share, regions, the tuning curve."""
    totals: dict[str, float] = defaultdict(float)
    for one in outcome.shipped:
        totals[one.site.clone] += one.total_ms
    tables = [_kernels(outcome.shipped, totals), _rules(outcome.shipped, totals)]
    if outcome.choices.regions:
        tables.append(_regions(outcome))
    metrics = {f"kernels/{clone}_ms": total for clone, total in totals.items()}
    wins = sum(one.entry.kind == "tuned" for one in outcome.shipped)
    others = Counter(
        one.entry.kind
        for one in outcome.shipped
        if one.kernel.region and one.entry.kind in ALTERNATIVE
    )
    if tuned.curves:
        metrics |= {"tuning/trials": float(tuned.trials), "tuning/failed": float(tuned.failed)}
        metrics["tuning/kernels_won"] = float(wins)
    parts = [f"{len({one.kernel.name for one in outcome.shipped})} kernels"]
    parts += [f"{clone} {total:.3g} ms" for clone, total in totals.items()]
    parts += [f"{tuned.trials} trials, {wins} tuned schedules won"] if tuned.curves else []
    total = len(outcome.choices.regions)
    parts += [f"{kind} at {count} of {total} regions" for kind, count in others.items()]
    return Report(
        summary=" · ".join(parts),
        metrics=metrics,
        notes=(*tuned.notes, *outcome.notes),
        tables=tuple(tables),
        curves=(Curve("Tuning", "trial", "best ms", tuned.curves),) if tuned.curves else (),
    )


def _kernels(shipped: Sequence[Shipped], totals: dict[str, float]) -> Table:
    ranked = sorted(shipped, key=lambda one: one.total_ms / totals[one.site.clone], reverse=True)
    rows = tuple(
        (
            one.kernel.name,
            one.site.clone,
            one.entry.kind,
            one.label,
            one.site.count,
            round(one.entry.timing.ms, 5),
            round(one.entry.timing.high_ms - one.entry.timing.low_ms, 5),
            _percent(one.total_ms / totals[one.site.clone]),
            _rate(one),
        )
        for one in ranked[:TOP]
    )
    columns = ("kernel", "clone", "kind", "rule", "calls", "ms", "spread ms", "share %", "GFLOP/s")
    return Table(f"Kernels by time (the first {TOP})", columns, rows)


def _rate(one: Shipped) -> float | None:
    flops = one.kernel.default.flops
    known = flops and not one.kernel.symbolic and one.entry.kind not in ALTERNATIVE
    return round(flops / one.entry.timing.ms / 1e6, 1) if known else None


def _rules(shipped: Sequence[Shipped], totals: dict[str, float]) -> Table:
    grouped: dict[tuple[str, str], list[Shipped]] = defaultdict(list)
    for one in shipped:
        grouped[one.site.clone, one.label].append(one)
    shares = {key: sum(o.total_ms for o in ones) / totals[key[0]] for key, ones in grouped.items()}
    rows = tuple(
        (clone, label, len(grouped[clone, label]), _percent(shares[clone, label]))
        for clone, label in sorted(shares, key=lambda key: (key[0], -shares[key]))
    )
    return Table("Rules by share of time", ("clone", "rule", "kernels", "share %"), rows)


def _regions(outcome: Outcome) -> Table:
    rows = []
    for region in outcome.choices.regions:
        timed = [c for c in region.candidates if c.ms is not None]
        dense = [c.ms for c in timed if c.kind not in ALTERNATIVE and c.ms is not None]
        others = [c for c in timed if c.kind in ALTERNATIVE]
        best = min(others, key=lambda c: c.ms or 0.0, default=None)
        speedup = round(min(dense) / best.ms, 2) if best is not None and best.ms else None
        rows.append(
            (
                region.region,
                region.clone,
                region.chosen,
                round(min(dense), 5),
                best.id if best else None,
                round(best.ms, 5) if best and best.ms else None,
                speedup,
            )
        )
    columns = (
        "region",
        "clone",
        "chosen",
        "dense ms",
        "best alternative",
        "its ms",
        "dense / alternative",
    )
    return Table("Regions: dense and alternatives", columns, tuple(rows))


def _percent(share: float) -> float:
    return round(100 * share, 2)
