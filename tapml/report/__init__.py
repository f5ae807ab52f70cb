"""`report.html` of a run: one file with everything in it, readable anywhere, also in a sandboxed
frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .. import runs
from ..facts import Facts, Kernel, Latency
from ..mask import mask
from ..progress import duration
from ..runs import RunResult
from ..stage import Report, Table
from . import charts, page, plots
from .markup import Child, Safe, breakable, element, join, number, shortened_words

_WORD = 60  # characters of a word in a text
_CHIPS = {"hit": ("plain", "cached"), "ran": ("good", "ran"), "cancelled": ("plain", "not run")}


def write(run: RunResult) -> Path:
    """Writes the report of a run into its folder; returns its path."""
    recipe = run.folder / runs.RECIPE
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    run.report.write_text(render(run, text), encoding="utf-8")
    return run.report


def render(run: RunResult, recipe_text: str = "") -> str:
    """The report as HTML. `recipe_text` is the resolved recipe."""
    sections = (
        _failure(run),
        *_measured(run),
        _advice(run),
        _stages(run),
        _kernels(run.facts),
        _reports(run),
        _carved(run.facts),
        _recipe(run, recipe_text),
        _environment(run),
    )
    return page.document(f"{run.recipe} · tapml run {run.run_id}", _header(run), *sections)


def sentence(run: RunResult) -> str:
    """The run in one sentence: speed beside the peer, error, gates; or what stopped it."""
    if run.state in ("failed", "interrupted", "killed"):
        stopped = next(
            (step.name for step in run.steps if step.state in ("failed", "interrupted")), ""
        )
        return f"Stopped at {stopped}." if stopped else "Stopped before its end."
    facts = run.facts
    if facts is None:
        return f"{len(run.ran)} of {len(run.steps)} stages ran; nothing was validated."
    parts: list[str] = []
    if facts.latency:
        first = facts.latency[0]
        words = first.words or f"{number(first.ours.p50)} ms"
        parts.append(f"{words} at {first.label}")
    if facts.error:
        parts.append(
            f"numerically {'equal within' if facts.error.passed else 'OUTSIDE'} its tolerance"
        )
    if run.verdicts:
        passed = sum(verdict.passed for verdict in run.verdicts)
        parts.append(f"{passed} of {len(run.verdicts)} gates passed")
    text = "; ".join(parts) or "validated"
    return f"{text[0].upper()}{text[1:]}."


def _header(run: RunResult) -> Safe:
    tone, word = page.BADGES[run.state]
    target = " ".join(
        str(run.fields[name]) for name in ("target.kind", "target.mcpu") if name in run.fields
    )
    sweep = f"{run.label} of sweep {run.sweep}" if run.sweep else ""
    took = f"took {duration(run.seconds)}"
    details = (runs.when(run.started), f"run {run.run_id}", took, target, sweep)
    return element(
        "header",
        element(
            "div",
            element("h1", run.recipe),
            element("span", word, class_=f"badge {tone}"),
            _foreign(run),
            class_="row",
        ),
        element("p", sentence(run), class_="lead"),
        element("p", " · ".join(part for part in details if part), class_="dim"),
        _cards(run),
    )


def _foreign(run: RunResult) -> Safe | None:
    return element("span", "timed on another machine", class_="badge warn") if run.foreign else None


def _cards(run: RunResult) -> Safe | None:
    facts = run.facts
    cards: list[Safe] = []
    if facts is not None:
        for row in facts.latency[:2]:
            figure = f"{row.ours.p50:.3g} ms"
            cards.append(
                page.card(
                    f"latency, {row.label}",
                    figure,
                    row.words or f"{row.threads} threads",
                    row.tone or "dim",
                )
            )
        for name, value in list(facts.metric.items())[:2]:
            judged = next((v for v in run.verdicts if v.gate == f"metric.{name}"), None)
            under = f"gate {judged.relation} {number(judged.limit)}" if judged else "no gate"
            tone = "dim" if judged is None else "good" if judged.passed else "bad"
            cards.append(page.card(name.replace("_", " "), number(value), under, tone))
        if facts.error:
            tone = "good" if facts.error.passed else "bad"
            under = f"tolerance {number(facts.error.tolerance)}"
            cards.append(page.card("relative error", number(facts.error.relative), under, tone))
        if facts.bundle_mib is not None:
            cards.append(
                page.card("bundle", f"{facts.bundle_mib:.3g} MiB", "library and weights", "dim")
            )
    cached = len(run.cached)
    under = f"{cached} cached" if cached else "none cached"
    if cached == len(run.steps):
        under = "nothing to do: all cached"
    cards.append(page.card("stages run", f"{len(run.ran)} of {len(run.steps)}", under, "dim"))
    return element("div", *cards, class_="cards", style="margin-top:18px")


def _failure(run: RunResult) -> Safe | None:
    failed = [step for step in run.steps if step.error is not None and step.state == "failed"]
    if not failed:
        return None
    parts: list[Safe] = []
    for step in failed:
        log = (
            element("p", "log: ", element("code", str(step.log)), class_="dim")
            if step.log
            else None
        )
        parts.append(
            join(element("h2", f"{step.name} failed"), element("pre", mask(str(step.error))), log)
        )
    return element("section", *parts, class_="failed")


def _measured(run: RunResult) -> Iterator[Safe]:
    facts = run.facts
    if facts is None:
        return
    if facts.latency:
        groups = [_group(row) for row in facts.latency]
        row = facts.latency[0]
        note = (
            f"Median of {row.ours.n} calls, whiskers from low to high; {row.threads} threads each"
        )
        note += f", in turns with {row.peer}" if row.peer else ""
        note += f". {facts.host.get('cpu', '')}, {runs.local(facts.date)}."
        yield element(
            "section",
            element("h2", "Latency"),
            charts.bars(groups, "ms"),
            element("p", note, class_="dim"),
            _elsewhere(run),
        )
    if run.verdicts:
        rows = [
            element(
                "tr",
                element("td", _mark(passed=verdict.passed)),
                element("td", verdict.gate, class_="name"),
                element("td", number(verdict.figure), class_="n"),
                element("td", f"{verdict.relation} {number(verdict.limit)}", class_="n"),
                element("td", verdict.distance),
                element(
                    "td", verdict.note or ("built in" if verdict.builtin else ""), class_="dim"
                ),
            )
            for verdict in run.verdicts
        ]
        head = page.head("", "gate", "=figure", "=limit", "distance", "")
        yield element("section", element("h2", "Gates"), element("table", head, *rows))


def _group(row: Latency) -> charts.Group:
    bars = [charts.Bar("this library", row.ours, is_ours=True)]
    if row.theirs is not None:
        bars.append(charts.Bar(row.peer.split()[0] or "reference", row.theirs, is_ours=False))
    return charts.Group(row.label, row.words, row.tone or "dim", tuple(bars))


def _elsewhere(run: RunResult) -> Safe | None:
    if not run.foreign:
        return None
    text = "Timed on another machine, which satisfies no gate; `--force` the stage to measure here."
    return element("p", text, class_="warn")


def _mark(*, passed: bool) -> Safe:
    return element("span", "✓" if passed else "✗", class_="good strong" if passed else "bad strong")


def _stages(run: RunResult) -> Safe:
    longest = max((step.seconds for step in run.steps), default=0.0) or 1.0
    rows: list[Safe] = []
    for step in run.steps:
        tone, word = _CHIPS.get(step.state, ("bad", step.state))
        style = f"left:0;width:{max(step.seconds / longest, 0.004):.2%}"
        state = step.state if step.state in ("hit", "failed") else ""
        bar = element("div", element("i", style=style, class_=state or None), class_="time")
        why = (
            f"made {runs.local(step.made_at)}"
            if step.state == "hit"
            else run.reasons.get(step.name, "")
        )
        rows.append(
            element(
                "tr",
                element("td", step.name, class_="name"),
                element("td", element("span", word, class_=f"badge {tone}")),
                element("td", bar, class_="track"),
                element("td", duration(step.seconds) if step.seconds else "–", class_="n"),
                element("td", number(step.rss_mib or None, "MiB"), class_="n"),
                element(
                    "td", why, *(join(element("br"), note) for note in step.notes), class_="dim"
                ),
            )
        )
    title = f"Stages: {len(run.ran)} ran, {len(run.cached)} cached"
    note = "Dashed: taken from the store; the time is that of when it was made."
    head = page.head("stage", "", "", "=time", "=peak memory", "why")
    return element(
        "section",
        element("h2", title),
        element("table", head, *rows),
        element("p", note, class_="dim"),
    )


def _advice(run: RunResult) -> Safe | None:
    advice = [line for step in run.steps for line in step.report.advice]
    lines = [shortened_words(line, _WORD) for line in advice]
    if not lines:
        return None
    return element(
        "section",
        element("h2", "What to tune next"),
        element("ol", *(element("li", breakable(line)) for line in lines)),
    )


def _kernels(facts: Facts | None) -> Safe | None:
    if facts is None or not facts.kernels:
        return None
    told = Table(
        "",
        ("kernel", "kind", "rule", "ms", "share"),
        tuple(
            (k.kernel, k.kind, k.rule, k.ms, f"{k.share:.1%}" if k.share is not None else None)
            for k in by_share(facts)
        ),
    )
    return element(
        "section",
        element("h2", "Kernels, by the rule that scheduled them"),
        charts.shares(share_by_rule(facts)),
        page.table(told),
    )


def by_share(facts: Facts) -> list[Kernel]:
    """Kernels, the one that takes most of the time first."""
    return sorted(facts.kernels, key=lambda kernel: -(kernel.share or 0.0))


def share_by_rule(facts: Facts) -> dict[str, float]:
    """Rule → share of the kernels' time, largest first."""
    total: dict[str, float] = {}
    for kernel in facts.kernels:
        name = kernel.rule or kernel.kind or "?"
        total[name] = total.get(name, 0.0) + (kernel.share or 0.0)
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _reports(run: RunResult) -> Safe | None:
    told = [step for step in run.steps if step.report != Report()]
    if not told:
        return None
    blocks = [
        element(
            "details",
            element(
                "summary",
                element("b", step.name),
                element("span", step.report.summary, class_="dim"),
            ),
            _stage_report(step.report),
            open="open" if step.report.curves or step.report.bars else None,
        )
        for step in told
    ]
    return element("section", element("h2", "What the stages report"), *blocks)


def _stage_report(report: Report) -> Safe:
    parts: list[Safe] = []
    for bars in report.bars:
        parts += [element("h3", bars.title), plots.bars(bars)]
    for scatter in report.scatters:
        parts += [element("h3", scatter.title), plots.scatter(scatter)]
    parts += [element("p", note) for note in report.notes]
    for curve in report.curves:
        parts += [element("h3", curve.title), charts.lines(curve)]
    for table in report.tables:
        parts += [element("h3", table.title), page.table(table)]
    if report.metrics:
        rows = tuple((name, value) for name, value in report.metrics.items())
        parts += [element("h3", "Figures"), page.table(Table("", ("name", "value"), rows))]
    return join(*parts)


def _carved(facts: Facts | None) -> Safe | None:
    if facts is None or not facts.carve:
        return None
    worst = [cast("Mapping[str, Any]", row) for row in facts.carve.get("worst") or ()]
    count = facts.failed_kernels
    columns = tuple(dict.fromkeys(name for row in worst for name in row))
    rows = tuple(tuple(_plain(row.get(name)) for name in columns) for row in worst)
    checked = facts.carve.get("checked", 0)
    rounded = len(facts.carve.get("rounded") or ())
    text = f"{checked} call sites run on recorded inputs and compared, {count or 0} differ"
    text += f"; {rounded} round, and are a step apart." if rounded else "."
    return element(
        "section",
        element("h2", "Carved kernels beside their unscheduled form"),
        element("p", text, class_="bad strong" if count else None),
        page.table(Table("", columns, rows)) if rows else None,
    )


def _plain(value: Any) -> str | int | float | bool | None:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(str, cast("list[Any]", value)))
    return str(value)


def _recipe(run: RunResult, text: str) -> Safe | None:
    if not text:
        return None
    summary = element(
        "summary", element("b", "Resolved recipe"), element("span", run.recipe_path, class_="dim")
    )
    return element("section", element("details", summary, element("pre", mask(text))))


def _environment(run: RunResult) -> Safe:
    pairs: dict[str, Child] = {
        "bundle": str(run.bundle) if run.bundle else "none",
        "run folder": str(run.folder),
        "workflow": run.workflow,
        **{name: mask(str(value)) for name, value in run.environment.items()},
    }
    rows = [join(element("dt", name), element("dd", value)) for name, value in pairs.items()]
    return element("section", element("h2", "Where and with what"), element("dl", *rows))
