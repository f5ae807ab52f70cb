"""What a finished run and a plan say on the terminal. Pure text; colours are click's, which drops
them off a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import click

from .compare import APART, Comparison, Row
from .estimate import Estimate
from .facts import NOISE, Facts, Spread
from .plan import Plan, Step
from .prepare import Prepared
from .progress import duration
from .report import by_share, figures, share_by_rule
from .report.markup import number, shortened, shortened_words
from .runs import VIEWS, RunResult, Scalar, local, marks, when
from .terminal import columns, printable

_KERNELS, _NAME = 5, 48
_STEPS, _NAMES = 40, 6  # of a plan that are all shown
_TEXT = 56  # columns that a value may take
_COLOURS = {"good": "green", "bad": "red", "": ""}
_STATES = {"hit": ("cached", "cyan"), "run": ("run", "yellow"), "pending": ("pending", "yellow")}


def of_run(run: RunResult) -> str:
    """The end of `tapml run`: what ran, speed, error, metric, gates, kernels, and where everything
    lies.
    """
    parts = [_stages(run)]
    if run.facts is not None:
        parts += [_measured(run, run.facts), _gates(run), _kernels(run.facts)]
    parts.append(_advice(run))
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


def of_plan(prepared: Prepared) -> str:
    """A line per stage: what would happen and why; of a long plan, those that are not cached.

    The last lines tell how much of it there is, and what it takes.
    """
    plan = prepared.plan
    todo = [step for step in plan if step.state != "hit"]
    shown = plan.steps if len(plan.steps) <= _STEPS else tuple(todo)
    width = max((columns(printable(step.name)) for step in shown), default=0)
    names = [one.label or one.recipe.name for one in prepared.members]
    several = f"{len(names)} recipes: " if len(names) > 1 else ""
    head = printable(several + ", ".join(names[:_NAMES]) + ", …" * (len(names) > _NAMES))
    lines = [f"{click.style(head, bold=True)}  in {prepared.store.root}"]
    for step in shown:
        word, colour = _STATES[step.state]
        word = "remote" if step.where == "remote" else word
        reason = step.reason
        if step.state == "hit":
            reason = f"made {local(step.record.made_at)}" if step.record else ""
        if "@" in step.name:  # what stands beside it needs no label
            reason = reason.replace(step.name[step.name.index("@") :], "")
        cell, key = click.style(f"{word:<8}", fg=colour), (step.key or "")[:12]
        lines.append(printable(f"{step.name:<{width}}") + f"  {cell}  {key:<12}  {reason}".rstrip())
        lines += [f"{'':<{width}}  {note}" for note in step.notes if note != step.reason]
        if step.state != "hit":
            here = f"{Path.cwd()}/"
            named = [printable(one.removeprefix(here)) for one in step.python]
            lines += [f"{'':<{width}}  Python that it runs: {one}" for one in named]
    count = len(plan.steps)
    if not todo:
        lines.append(f"nothing to do: {count} of {count} stages cached")
    else:
        lines.append(f"{len(todo)} of {count} stages to run, {count - len(todo)} cached")
        found = prepared.estimate()
        lines += [*map(printable, found.counted), _expected(found, len(todo))]
    return "\n".join(lines)


def of_graph(plan: Plan, form: Literal["text", "mermaid"]) -> str:
    """The plan's graph as lines of a terminal or in Mermaid's language, without edges that follow
    from others.
    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.transitive_reduction(plan.digraph())  # pyright: ignore[reportUnknownMemberType]  # stubs
    words = {step.name: printable(f"{step.name} ({_STATES[step.state][0]})") for step in plan}
    if form == "text":
        named = nx.relabel_nodes(graph, words)
        return "\n".join(nx.generate_network_text(named))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  # stubs
    numbers = {name: f"s{index}" for index, name in enumerate(words)}
    nodes = [
        f'  {numbers[name]}["{text.replace(chr(34), "#quot;")}"]' for name, text in words.items()
    ]
    edges = [f"  {numbers[above]} --> {numbers[below]}" for above, below in graph.edges]
    return "\n".join(["flowchart TD", *nodes, *edges])


def _expected(found: Estimate, count: int) -> str:
    """What a plan takes, from earlier runs on this machine."""
    if len(found.unknown) == count and not found.counted:
        return "this machine has run none of them yet: no estimate"
    without = ""
    if found.unknown:
        names = ", ".join(map(printable, found.unknown[:4]))
        more = f" and {len(found.unknown) - 4} more" * (len(found.unknown) > 4)
        without = f", without {names}{more}, which it has not run yet"
    return (
        f"about {duration(found.seconds)}, {found.disk_mib:.0f} MiB of disk and "
        f"{found.memory_mib:.0f} MiB of memory on this machine{without}"
    )


def of_step(step: Step) -> str:
    """Why a stage runs, or that it is cached: each field, file, tool or input, old → new."""
    name = printable(step.name)
    if step.state == "hit" and step.record is not None:
        return f"{name} is cached: made {local(step.record.made_at)}, key {step.key}"
    lines = [f"{name} {'would run' if step.state == 'run' else 'may run'}: {step.reason}"]
    if step.state == "pending" and not step.changes:
        lines[0] += "; nothing of its own has changed"
    if step.beside and step.changes:
        lines.append(f"  beside the result of {step.beside}:")
    for change in step.changes:
        field = change.field
        if change.kind == "input":
            node, output = step.inputs.get(change.field, ("", ""))
            field += f" ({output} of {node})" if node else ""
        lines.append(f"  {change.kind:<8} {field}: {change.old} → {change.new}")
    return printable("\n".join(lines), keep="\n")


def of_batch(results: Sequence[RunResult], seconds: float) -> str:
    """The end of a run of several recipes: what ran, a line for each, and where all of it lies."""
    steps = {step.key or (run.run_id, step.name): step for run in results for step in run.steps}
    count = {state: sum(one.state == state for one in steps.values()) for state in ("ran", "hit")}
    short = sum(run.state not in ("ok", "gate") for run in results)
    head = f"ran {count['ran']} stages, {count['hit']} cached"
    head += f"; {short} did not come to their end" * (short > 0)
    store = results[0].folder.parent
    lines = [f"{len(results)} runs: {head} ({duration(seconds)})", of_sweep(results)]
    lines.append(f"report   file://{store / results[0].sweep}.html")
    lines.append(f"MLflow   tapml ui {results[0].sweep}")
    lines.append(f"bundles  {store}/RUN/bundle; `tapml export RUN DIR` copies one")
    return "\n".join(lines)


Cell = str | tuple[str, str]  # text, or text and colour


def table(titles: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Aligned columns, two spaces apart; no cell can draw on the terminal."""
    cells = [
        [(printable(c), "") if isinstance(c, str) else (printable(c[0]), c[1]) for c in row]
        for row in (titles, *rows)
    ]
    widths = [max(columns(row[i][0]) for row in cells) for i in range(len(titles))]
    head, *lines = (
        "  ".join(
            (click.style(c, fg=colour) if colour else c) + " " * (w - columns(c))
            for (c, colour), w in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join([click.style(head, bold=True), *lines])


def to_data(run: RunResult) -> dict[str, Any]:
    """One run as JSON-able data for `--json`; the facts are validation's own file."""
    return {
        "run": run.run_id,
        "recipe": run.recipe,
        "label": run.label,
        "sweep": run.sweep,
        "tags": dict(run.tags),
        "marks": list(marks(run)),
        "started": run.started,
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
            theirs, colour = _timing(row.theirs), _COLOURS[row.tone] or None
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
    if count := facts.failed_kernels:
        judged = any(verdict.gate == "failed_kernels" for verdict in run.verdicts)
        more = "" if judged else "; no gate judges it (validation.gates.failed_kernels)"
        words = f"carved   {count} kernels differ from their unscheduled form{more}"
        lines.append(click.style(words, fg="red"))
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
    names = [shortened(kernel.kernel, _NAME) for kernel in top]
    width = max(map(len, names))
    for kernel, name in zip(top, names, strict=True):
        share = f"{kernel.share:>4.0%}" if kernel.share is not None else "   –"
        lines.append(
            f"         {share}  {name:<{width}}  {number(kernel.ms):>7} ms"
            f"  {kernel.kind} {kernel.rule}"
        )
    return "\n".join(lines)


def _advice(run: RunResult) -> str:
    lines = [shortened_words(line, _NAME) for step in run.steps for line in step.report.advice]
    return "\n".join(
        printable(f"{'next' if not index else '':<8} {line}") for index, line in enumerate(lines)
    )


COLUMNS = ("run", "recipe", "when", "state", "ran", "latency", "vs peer", "error", "metric", "")


def of_row(run: RunResult) -> tuple[str, ...]:
    """The cells of `tapml runs`, under `COLUMNS`."""
    found = figures.of(run)
    return (
        run.run_id,
        run.recipe,
        when(run.started),
        run.state,
        f"{len(run.ran)}/{len(run.steps)}",
        *_figures(found),
        " ".join((*([run.label] if run.label else []), *marks(run))),
    )


def _figures(found: Mapping[str, float]) -> tuple[str, str, str, str]:
    """Latency, ratio to the peer's, error and metric as cells."""
    return (
        number(found.get("latency"), "ms"),
        f"{found['ratio']:.2f}x" if "ratio" in found else "–",
        number(found.get("error")),
        number(found.get("metric")),
    )


def of_sweep(results: Sequence[RunResult]) -> str:
    """A line per run of a sweep; the fastest is marked where no other one's spread reaches it."""
    best = figures.fastest(results)
    rows: list[tuple[str, ...]] = []
    for index, run in enumerate(results):
        found = figures.of(run)
        first = run.facts.latency[0].ours if run.facts and run.facts.latency else None
        latency, *others = _figures(found)
        spread = f" ({number(first.low)} … {number(first.high)})" if first else ""
        rows.append(
            (
                run.label or run.recipe,
                run.state,
                latency + spread,
                *others,
                number(found.get("bundle_mib"), "MiB"),
                "fastest" if index == best else "",
            )
        )
    titles = ("run", "state", "latency", "vs peer", "error", "metric", "bundle", "")
    lines = [table(titles, rows)]
    timed = figures.passed(results)
    if figures.elsewhere(timed):
        lines.append("timed on several machines, so none is called the fastest")
    elif len(timed) > 1 and best is None:
        lines.append("no run is the fastest beyond the noise: their spreads overlap")
    if sweep := next((run.sweep for run in results if run.sweep), ""):
        lines.append(f"sweep    `tapml report {sweep}` draws it; `tapml runs --sweep {sweep}`")
    return "\n".join(lines)


def of_comparison(found: Comparison) -> str:
    """The comparison for a terminal: a column per run."""
    letters = [_letter(i) for i in range(len(found.runs))]
    parts = [_heads(found, letters)]
    if found.apart:
        warning = "timed on several machines: no winner on time"
        parts.append(click.style(warning, fg="yellow"))
    parts.append(_differences("recipe", found.fields, letters))
    if found.environment:
        parts.append(_differences("environment", found.environment, letters))
    parts += [_compared(found, letters), _differing_stages(found, letters)]
    return "\n\n".join(part for part in parts if part)


def _letter(index: int) -> str:
    return ascii_uppercase[index] if index < len(ascii_uppercase) else str(index + 1)


def _heads(found: Comparison, letters: Sequence[str]) -> str:
    rows: list[Sequence[Cell]] = []
    for letter, run in zip(letters, found.runs, strict=True):
        cpu = str(run.facts.host.get("cpu", "")) if run.facts else ""
        machine = f"{cpu} {run.machine}".strip() if found.apart else ""
        passed = sum(verdict.passed for verdict in run.verdicts)
        gates = f"{passed} of {len(run.verdicts)} gates" if run.verdicts else ""
        state = (run.state, "" if run.state == "ok" else "red")
        rows.append(
            (
                letter,
                run.run_id,
                run.recipe,
                run.label,
                when(run.started),
                state,
                gates,
                machine,
            )
        )
    return table(("", "run", "recipe", "", "when", "state", "", ""), rows)


def _differences(title: str, rows: Mapping[str, tuple[Scalar, ...]], letters: Sequence[str]) -> str:
    if not rows:
        return f"{click.style(title, bold=True)}: the same"
    cells = {
        name: _cut(["–" if value is None else str(value) for value in row])
        for name, row in rows.items()
    }
    if len(letters) == 2:
        return table((title, "A → B"), [(name, " → ".join(row)) for name, row in cells.items()])
    return table((title, *letters), [(name, *row) for name, row in cells.items()])


def _cut(values: Sequence[str]) -> list[str]:
    """Texts at a readable length; where they are long, from shortly before they differ."""
    if max(map(len, values)) <= _TEXT:
        return list(values)
    by_column = enumerate(zip(*values, strict=False))
    common = next((i for i, chars in by_column if len(set(chars)) > 1), min(map(len, values)))
    start = max(common - _TEXT // 4, 0)
    tails = [
        value if len(value) <= _TEXT else f"…{value[start:]}"[start == 0 :] for value in values
    ]
    return [tail if len(tail) <= _TEXT else f"{tail[: _TEXT - 1]}…" for tail in tails]


def _compared(found: Comparison, letters: Sequence[str]) -> str:
    rows: list[Sequence[Cell]] = []
    for row in found.rows:
        if not any(row.values):
            continue
        cells: list[Cell] = [
            (_value(value, row.unit), "green" if index == row.best else "")
            for index, value in enumerate(row.values)
        ]
        rows.append((row.name, *cells, _verdict(row, letters)))
    return table(("figure", *letters, ""), rows) if rows else ""


def _value(value: Spread | None, unit: str) -> str:
    if value is None:
        return "–"
    spread = f" ({number(value.low)} … {number(value.high)})" if value.low != value.high else ""
    return f"{number(value.p50)} {unit}".rstrip() + spread


def _verdict(row: Row, letters: Sequence[str]) -> Cell:
    """Of two, how the second differs; of more, which is best."""
    if len(row.words) == 1:
        return row.words[0], _COLOURS[row.tones[0]]
    if row.best is not None:
        return f"{letters[row.best]} is best", "green"
    known = [value for value in row.values if value is not None]
    if len(known) < 2:
        return ""
    if APART in row.words:
        return APART
    if all(value == known[0] for value in known):
        return "equal"
    return NOISE if any(value.low != value.high for value in known) else ""


def _differing_stages(found: Comparison, letters: Sequence[str]) -> str:
    rows: list[Sequence[Cell]] = []
    for stage in found.stages:
        times = [
            duration(s) if key else "–" for s, key in zip(stage.seconds, stage.keys, strict=True)
        ]
        why = [str(change) for change in stage.changes]
        if stage.equal:
            why.append("equal bytes all the same")
        rows.append((stage.name, *times, "; ".join(why)))
    return table(("stages that differ", *letters, ""), rows) if rows else ""
