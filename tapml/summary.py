"""What a finished run and a plan say on the terminal. Pure text; colours are click's, which drops
them off a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from .facts import Facts, Spread
from .markup import number
from .plan import Plan
from .progress import duration
from .report import by_share, failed_count, share_by_rule
from .runs import VIEWS, RunResult, local, when
from .terminal import printable

_KERNELS, _NAME = 5, 48
_STATES = {"hit": ("cached", "cyan"), "run": ("run", "yellow"), "pending": ("pending", "yellow")}


def of_run(run: RunResult) -> str:
    """The end of `tapml run`: what ran, speed, error, metric, gates, kernels, and where everything
    lies.
    """
    parts = [_stages(run)]
    if run.facts is not None:
        parts += [_measured(run, run.facts), _gates(run), _kernels(run.facts)]
    links = [("report", f"file://{run.report}"), ("MLflow", f"tapml ui {run.run_id}")]
    if run.bundle is not None:
        links.insert(0, ("bundle", str(run.bundle)))
    parts.append("\n".join(f"{name:<8} {text}" for name, text in links))
    return "\n".join(part for part in parts if part)


def of_views(run: RunResult) -> str:
    """Where `--dump-ir` left IR, and which cached stages left none."""
    root = run.folder / VIEWS
    there = [step.name for step in run.steps if any((root / step.name).glob("*"))]
    lines = [f"IR       {root}: {', '.join(there)}"] if there else []
    if silent := [step.name for step in run.cached if not (root / step.name).is_dir()]:
        lines.append(
            f"no IR    of what was cached without it: {', '.join(silent)}"
            f"; `--dump-ir --from {silent[0]}` runs it again"
        )
    return "\n".join(lines)


def of_plan(plan: Plan) -> str:
    """A line per stage: what would happen and why."""
    width = max((len(step.name) for step in plan), default=0)
    lines: list[str] = []
    for step in plan:
        word, colour = _STATES[step.state]
        cell = click.style(f"{word:<8}", fg=colour)
        reason = (
            step.reason
            if step.state != "hit"
            else f"made {local(step.record.made_at)}"
            if step.record
            else ""
        )
        lines.append(
            f"{step.name:<{width}}  {cell}  {(step.key or '')[:12]:<12}  {reason}".rstrip()
        )
        lines += [f"{'':<{width}}  {note}" for note in step.notes if note != step.reason]
    todo = [step for step in plan if step.state != "hit"]
    count = len(plan.steps)
    last = f"nothing to do: {count} of {count} stages cached"
    if todo:
        known = sum(step.expected_s or 0.0 for step in todo)
        expected = f"; they took {duration(known)} last time" if known >= 1 else ""
        last = f"{len(todo)} of {count} stages to run, {count - len(todo)} cached{expected}"
    return "\n".join([*lines, last])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    ]
    return "\n".join([click.style(lines[0], bold=True), *lines[1:]])


def to_data(run: RunResult) -> dict[str, Any]:
    """One run as JSON-able data for `--json`; the facts are validation's own file."""
    return {
        "run": run.run_id,
        "recipe": run.recipe,
        "state": run.state,
        "exit_code": run.exit_code,
        "seconds": round(run.seconds, 3),
        "stages": {
            step.name: {
                "state": step.state,
                "seconds": step.seconds,
                "rss_mib": step.rss_mib,
                "key": step.key,
                "outputs": dict(step.outputs),
                "summary": step.report.summary,
                "error": str(step.error) if step.error else None,
            }
            for step in run.steps
        },
        "latency": [
            {
                "sizes": dict(row.sizes),
                "ours_ms": vars(row.ours),
                "peer": row.peer,
                "ratio": row.ratio,
            }
            for row in (run.facts.latency if run.facts else ())
        ],
        "error": None if not run.facts or not run.facts.error else run.facts.error.relative,
        "metric": dict(run.facts.metric) if run.facts else {},
        "gates": [{**vars(verdict), "distance": verdict.distance} for verdict in run.verdicts],
        "foreign_timings": run.foreign,
        "bundle": str(run.bundle) if run.bundle else None,
        "report": str(run.report),
        "folder": str(run.folder),
    }


def _stages(run: RunResult) -> str:
    total = len(run.steps)
    if len(run.cached) == total:
        return f"nothing to do: {total} of {total} stages cached"
    parts = [f"ran {', '.join(step.name for step in run.ran)}" if run.ran else "ran nothing"]
    if run.cached:
        parts.append(f"cached {', '.join(step.name for step in run.cached)}")
    rest = [step.name for step in run.steps if step.state not in ("ran", "hit")]
    if rest:
        parts.append(click.style(f"not done {', '.join(rest)}", fg="red"))
    return f"{'; '.join(parts)} ({duration(run.seconds)})"


def _measured(run: RunResult, facts: Facts) -> str:
    lines: list[str] = []
    width = max((len(row.label) for row in facts.latency), default=0)
    for row in facts.latency:
        text, peer = _timing(row.ours), ""
        if row.theirs is not None:
            colour = "green" if (row.ratio or 0) <= 1.02 else "red"
            theirs = _timing(row.theirs)
            peer = f"   {row.peer} {theirs}   {click.style(row.words, fg=colour)}"
        lines.append(f"latency  {row.label:<{width}}  {text}{peer}")
    if run.foreign:
        cpu = facts.host.get("cpu", "?")
        place = f"{cpu}, {local(facts.date)}"
        words = f"         timed on another machine ({place}); `--force` its stage to measure here"
        lines.append(click.style(words, fg="yellow"))
    if facts.error is not None:
        state = "" if facts.error.passed else click.style("  OUTSIDE", fg="red")
        limit = f"tolerance {number(facts.error.tolerance)}"
        lines.append(f"error    {number(facts.error.relative)} relative, {limit}{state}")
    lines += [f"metric   {printable(name)} {value:.6g}" for name, value in facts.metric.items()]
    if count := failed_count(facts):
        lines.append(
            click.style(f"carved   {count} kernels differ from their unscheduled form", fg="red")
        )
    return "\n".join(lines)


def _timing(spread: Spread) -> str:
    return f"{number(spread.p50)} ms ({number(spread.low)} … {number(spread.high)})"


def _gates(run: RunResult) -> str:
    marks = {True: click.style("passed", fg="green"), False: click.style("FAILED", fg="red")}
    return "\n".join(f"gate     {marks[verdict.passed]}  {verdict}" for verdict in run.verdicts)


def _kernels(facts: Facts) -> str:
    if not facts.kernels:
        return ""
    rules = ", ".join(
        f"{rule} {share:.0%}" for rule, share in list(share_by_rule(facts).items())[:4]
    )
    lines = [f"kernels  {len(facts.kernels)}; time by rule: {rules}"]
    top = by_share(facts)[:_KERNELS]
    names = [_shortened(kernel.kernel) for kernel in top]
    width = max(map(len, names))
    for kernel, name in zip(top, names, strict=True):
        share = f"{kernel.share:>4.0%}" if kernel.share is not None else "   –"
        lines.append(
            f"         {share}  {name:<{width}}  {number(kernel.ms):>7} ms"
            f"  {kernel.kind} {kernel.rule}"
        )
    return "\n".join(lines)


def _shortened(name: str) -> str:
    """The name of a kernel, its middle left out when it is long."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 + 1 :]}"


def of_row(run: RunResult) -> tuple[str, ...]:
    """The cells of `tapml runs`."""
    first = run.facts.latency[0] if run.facts and run.facts.latency else None
    error = run.facts.error.relative if run.facts and run.facts.error else None
    metric = next(iter(run.facts.metric.values()), None) if run.facts else None
    return (
        run.run_id,
        run.recipe,
        when(run.started),
        run.state,
        f"{len(run.ran)}/{len(run.steps)}",
        number(first.ours.p50, "ms") if first else "–",
        f"{first.ratio:.2f}x" if first and first.ratio else "–",
        number(error),
        number(metric),
    )
