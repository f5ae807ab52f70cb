"""What the room tells people: where the time goes and what bounds it, what won, what to tune next,
and how the search went.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tapml.stage import Bar, Bars, Curve, Dot, Report, Scatter, Table

from ..roofline import Limits
from .advice import LINES, Advice, advise
from .choose import ALTERNATIVE, Outcome, Shipped
from .position import Position, positions
from .stage import Tuning
from .tune import Searched, Tuned

TOP = 40  # kernels listed
TASKS = 12  # kernels whose own curve is drawn


def draw(
    outcome: Outcome, tuned: Tuned, tuning: Tuning, limits: Limits, sizes: Mapping[str, int]
) -> Report:
    """The report of a run: kernels by time and beside the limits of the machine, rules by share,
    regions, what to tune next, tuning curves.

    In: `sizes`: of the dims, at which symbolic kernels were timed.
    """
    found = positions(outcome, limits)
    clones = _by_clone(found)
    totals = {name: sum(p.shipped.total_ms for p in ones) for name, ones in clones.items()}
    advice = advise(found, tuned, tuning, sizes)
    places = {name: _place(name, ones, sizes) for name, ones in clones.items()}
    tables = [_kernels(found, places), _next(advice), _rules(outcome.shipped, totals)]
    if outcome.choices.regions:
        tables.append(_regions(outcome))
    return Report(
        summary=_summary(outcome, tuned, clones, totals),
        metrics=dict(_metrics(outcome, tuned, limits, clones)),
        notes=(*tuned.notes, *outcome.notes, f"this machine: {limits}", *_left_out(found)),
        tables=tuple(table for table in tables if table.rows),
        curves=tuple(_curves(tuned)),
        bars=tuple(_bars(places[name], ones) for name, ones in clones.items()),
        scatters=tuple(_roofline(places[name], ones, limits) for name, ones in clones.items()),
        advice=tuple(str(one) for one in advice[:LINES]),
    )


def _by_clone(found: Sequence[Position]) -> dict[str, list[Position]]:
    clones: dict[str, list[Position]] = defaultdict(list)
    for one in found:
        clones[one.shipped.site.clone].append(one)
    return dict(clones)


def _place(clone: str, found: Sequence[Position], sizes: Mapping[str, int]) -> str:
    """A clone; and where it takes any size, the one at which it was timed."""
    if not any(one.shipped.kernel.symbolic for one in found):
        return clone
    return f"{clone} at {', '.join(f'{name} {size}' for name, size in sizes.items())}"


def _summary(
    outcome: Outcome,
    tuned: Tuned,
    clones: Mapping[str, Sequence[Position]],
    totals: Mapping[str, float],
) -> str:
    parts = [f"{len({one.kernel.name for one in outcome.shipped})} kernels"]
    for clone, total in totals.items():
        reached = _reached(clones[clone])
        of_limit = "" if reached is None else f" ({reached:.0%} of the limits)"
        parts.append(f"{clone} {total:.3g} ms{of_limit}")
    if tuned.curves:
        parts.append(f"{tuned.trials} trials, {_wins(outcome)} tuned schedules won")
    others = Counter(
        one.entry.kind
        for one in outcome.shipped
        if one.kernel.region and one.entry.kind in ALTERNATIVE
    )
    total = len(outcome.choices.regions)
    parts += [f"{kind} at {count} of {total} regions" for kind, count in others.items()]
    return " · ".join(parts)


def _wins(outcome: Outcome) -> int:
    return sum(one.entry.kind == "tuned" for one in outcome.shipped)


def _reached(found: Sequence[Position]) -> float | None:
    """The least time of a clone's kernels / their time, of those whose limit is known."""
    known = [one for one in found if one.least_ms is not None]
    least = sum(one.least_ms or 0.0 for one in known)
    return least / sum(one.shipped.total_ms for one in known) if known else None


def _metrics(
    outcome: Outcome, tuned: Tuned, limits: Limits, clones: Mapping[str, Sequence[Position]]
) -> Iterator[tuple[str, float]]:
    for clone, found in clones.items():
        total = sum(one.shipped.total_ms for one in found)
        yield f"kernels/{clone}_ms", total
        if (reached := _reached(found)) is not None:
            yield f"kernels/{clone}_of_limit", reached
        if tuned.curves:
            default = sum(one.shipped.total_ms * (one.gain or 1.0) for one in found)
            yield f"tuning/{clone}_gain", default / total
    yield "limits/fma_gflops", limits.operations / 1e9
    for size, rate in limits.reads:
        yield f"limits/read_{size // 2**10}_kib_gbs", rate / 1e9
    if tuned.curves:
        yield "tuning/trials", float(tuned.trials)
        yield "tuning/failed", float(tuned.failed)
        yield "tuning/kernels_won", float(_wins(outcome))
        yield "tuning/seconds", tuned.seconds
        if tuned.measured:
            yield "tuning/trials_per_s", tuned.measured / tuned.seconds


def _kernels(found: Sequence[Position], places: Mapping[str, str]) -> Table:
    ranked = sorted(found, key=lambda position: -position.share)
    rows = tuple(
        (
            one.kernel.name,
            places[one.site.clone] if one.kernel.symbolic else one.site.clone,
            one.entry.kind,
            one.label,
            one.site.count,
            round(one.entry.timing.ms, 5),
            round(one.entry.timing.high_ms - one.entry.timing.low_ms, 5),
            _percent(position.share),
            _gflops(position),
            position.binds or None,
            None if position.reached is None else _percent(position.reached),
            None if position.gain is None else round(position.gain, 2),
        )
        for position in ranked[:TOP]
        for one in (position.shipped,)
    )
    columns = (
        "kernel",
        "clone",
        "kind",
        "rule",
        "calls",
        "ms",
        "spread ms",
        "share %",
        "GFLOP/s",
        "limit",
        "of limit %",
        "gain",
    )
    title = f"Kernels by time (the first {TOP}); gain: default / tuned"
    return Table(title, columns, rows)


def _gflops(position: Position) -> float | None:
    if position.work is None or not position.work.operations:
        return None
    return round(position.work.operations / position.shipped.entry.timing.ms / 1e6, 1)


def _next(advice: Sequence[Advice]) -> Table:
    rows = tuple(
        (
            one.position.shipped.kernel.name,
            one.position.shipped.site.clone,
            _percent(one.position.share),
            _percent(one.position.reached or 0.0),
            round(one.position.to_win_ms, 4),
            _percent(one.position.to_win),
            one.why,
            one.recipe,
        )
        for one in advice
    )
    columns = (
        "kernel",
        "clone",
        "share %",
        "of limit %",
        "to win ms",
        "to win %",
        "so far",
        "in the recipe",
    )
    return Table("What to tune next", columns, rows)


def _bars(place: str, found: Sequence[Position]) -> Bars:
    bars = tuple(
        Bar(
            one.shipped.kernel.name,
            one.shipped.total_ms,
            one.least_ms,
            f"{one.share:.0%} {_standing(one)}",
            one.shipped.entry.kind,
        )
        for one in found
    )
    return Bars(f"Time by kernel, {place}; full colour: what its limit demands", "ms", bars)


def _standing(one: Position) -> str:
    """Rule, share of the limit and gain of a kernel, in a few words."""
    parts = [one.shipped.label]
    if one.reached is not None:
        parts.append(f"{one.reached:.0%} of {one.binds}")
    if one.gain is not None:
        parts.append(f"tuning {one.gain:.2f}x")
    return ", ".join(parts)


def _roofline(place: str, found: Sequence[Position], limits: Limits) -> Scatter:
    dots = tuple(
        Dot(
            one.shipped.kernel.name,
            one.work.intensity,
            one.work.operations / one.shipped.entry.timing.ms / 1e6,
            one.share,
            f"{one.shipped.total_ms:.3g} ms, {one.share:.1%} of the time, {_standing(one)}",
            one.shipped.entry.kind,
        )
        for one in found
        if one.work is not None and one.work.operations
    )
    peak = limits.operations / 1e9
    slopes = {f"reading {size / 2**20:.3g} MiB": rate / 1e9 for size, rate in limits.reads}
    ridges = [peak / slope for slope in slopes.values()]
    low = min([*ridges, *(dot.x for dot in dots)]) / 3
    high = max([*ridges, *(dot.x for dot in dots)]) * 3
    lines = {
        f"{name}, {slope:.3g} GB/s": ((low, slope * low), (peak / slope, peak))
        for name, slope in slopes.items()
    }
    lines[f"FMA peak, {peak:.3g} GFLOP/s"] = ((min(ridges), peak), (high, peak))
    return Scatter(f"Roofline, {place}", "operations a byte", "GFLOP/s", dots, lines)


def _left_out(found: Sequence[Position]) -> Iterator[str]:
    """What of the time the roofline does not show."""
    clones = _by_clone(found)
    for clone, ones in clones.items():
        hidden = [one for one in ones if one.work is None or not one.work.operations]
        if hidden:
            share = sum(one.share for one in hidden)
            yield (
                f"{clone}: {len(hidden)} kernels without arithmetic of their own, or sparse, are "
                f"not in the roofline ({share:.1%} of the time)"
            )


def _curves(tuned: Tuned) -> Iterator[Curve]:
    if not tuned.curves:
        return
    yield Curve("Tuning", "trial", "best ms", tuned.curves)
    ranked = sorted(
        (one for one in tuned.searched if one.trials_ms), key=lambda one: -len(one.trials_ms)
    )
    lines = {one.kernels[0]: _curve(one) for one in ranked[:TASKS]}
    if lines:
        yield Curve("Tuning by kernel", "trial of the kernel", "of the default's time", lines)


def _curve(one: Searched) -> tuple[tuple[float, float], ...]:
    """The best time so far over the default's, which is trial 0."""
    points = [(0.0, 1.0)]
    best = one.default_ms
    for number, ms in enumerate(one.trials_ms, 1):
        best = min(best, ms if ms is not None else best)
        points.append((float(number), best / one.default_ms))
    return tuple(points)


def _rules(shipped: Sequence[Shipped], totals: Mapping[str, float]) -> Table:
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
