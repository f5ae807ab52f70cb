"""The page of a sweep, `runs/<sweep>.html`: all its runs in a table and in charts, nothing from
outside but the links to their own reports, which lie beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from urllib.parse import quote

from .. import runs
from ..errors import RecipeError
from ..facts import Spread
from ..progress import duration
from ..runs import RunResult, Scalar
from . import charts, figures, page
from .charts import Axis, Mark
from .markup import Safe, element, number

_AXES = 8  # in the chart of parallel axes, at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,120}")


@dataclass(frozen=True)
class _Sweep:
    """The runs in their order, and what differs between them."""

    runs: tuple[RunResult, ...]
    names: tuple[str, ...]
    varied: Mapping[str, tuple[Scalar, ...]]
    figures: tuple[Mapping[str, float], ...]
    best: int | None

    @property
    def spreads(self) -> list[Spread | None]:
        """Of the latency at each run's first size."""
        first = [
            r.facts.latency[0].ours if r.facts and r.facts.latency else None for r in self.runs
        ]
        return [s if s and all(map(isfinite, (s.p50, s.low, s.high))) else None for s in first]

    @property
    def marks(self) -> list[Mark]:
        tones = [
            "best" if index == self.best else "" if run.state == "ok" else "bad"
            for index, run in enumerate(self.runs)
        ]
        return [Mark(*pair) for pair in zip(self.names, tones, strict=True)]


def members(sweep: str, store: Path) -> list[RunResult]:
    """The runs of a sweep in the order in which they began."""
    names = [*runs.ids(store), *runs.unfinished(store)]
    found = [run for run in runs.each(store, names) if run.sweep == sweep]
    return sorted(found, key=lambda run: (run.started, run.run_id))


def write(sweep: str, results: Sequence[RunResult], store: Path) -> Path:
    """Writes the page of a sweep and returns its path."""
    if not _NAME.fullmatch(sweep):
        raise RecipeError(message=f"{sweep!r} is no name of a sweep")
    path = runs.folder_of(store) / f"{sweep}.html"
    path.write_text(render(sweep, results), encoding="utf-8")
    return path


def render(sweep: str, results: Sequence[RunResult]) -> str:
    """The page as HTML."""
    told = _Sweep(
        runs=tuple(results),
        names=tuple(run.label or run.run_id for run in results),
        varied=figures.differing([run.fields for run in results]),
        figures=tuple(figures.of(run) for run in results),
        best=figures.fastest(results),
    )
    sections = (
        _latency(told),
        _tradeoff(told),
        *_against_fields(told),
        _parallel(told),
        _table(told),
    )
    return page.document(f"sweep {sweep} · tapml", _header(sweep, told), *sections)


def _header(sweep: str, told: _Sweep) -> Safe:
    passed = sum(run.state == "ok" for run in told.runs)
    tone = "good" if passed == len(told.runs) else "bad" if not passed else "warn"
    recipes = ", ".join(dict.fromkeys(run.recipe for run in told.runs))
    cpus = [str(run.facts.host.get("cpu", "")) for run in told.runs if run.facts]
    begun = min(run.started for run in told.runs)
    ended = max(run.started + run.seconds for run in told.runs)
    details = [
        runs.when(begun),
        f"sweep {sweep}",
        f"took {duration(ended - begun)}",
        ", ".join(dict.fromkeys(cpus)),
    ]
    title = element("h1", recipes)
    badge = element("span", f"{passed} OF {len(told.runs)} PASSED", class_=f"badge {tone}")
    return element(
        "header",
        element("div", title, badge, class_="row"),
        element("p", _sentence(told), class_="lead"),
        *(element("p", line) for line in _least(told)),
        element("p", " · ".join(part for part in details if part), class_="dim"),
    )


def _sentence(told: _Sweep) -> str:
    """Which run is fastest, or why none is."""
    timed = figures.passed(told.runs)
    if not timed:
        return "No run that was timed has passed."
    assert timed[0].facts is not None
    size = timed[0].facts.latency[0].label
    if told.best is not None:
        figure = number(told.figures[told.best]["latency"], "ms")
        return (
            f"Fastest at {size} that passed: {told.names[told.best]}, {figure}, beyond the noise."
        )
    if figures.elsewhere(timed):
        return "Timed on several machines, so none is called the fastest."
    if len(timed) == 1:
        return "One run that was timed has passed."
    return f"No run is the fastest at {size} beyond the noise: their spreads overlap."


def _scales(told: _Sweep) -> list[Axis]:
    """The varied fields that are numbers in every run, with three values or more: a density."""
    found = [Axis(name, tuple(map(_place, row))) for name, row in told.varied.items()]
    return [
        axis
        for axis in found
        if all(isinstance(value, float) for value in axis.values) and len({*axis.values}) > 2
    ]


def _least(told: _Sweep) -> Iterator[str]:
    """Of each such field the least value whose run passed: how far one may go."""
    for axis in _scales(told):
        kept = [
            (value, name)
            for value, name, run in zip(axis.values, told.names, told.runs, strict=True)
            if run.state == "ok" and isinstance(value, float)
        ]
        if kept and len(kept) < len(told.runs):
            value, name = min(kept)
            yield f"Least {axis.name} that passed: {number(value)}, in {name}."


def _against_fields(told: _Sweep) -> Iterator[Safe]:
    """Quality and speed against each field that is a scale, whatever was chosen in the runs."""
    drawn = [axis for axis in _figure_axes(told) if axis.name in ("metric", "error", "latency")]
    for field in _scales(told)[:2]:
        for figure in drawn:
            chart = charts.scatter(told.marks, field, figure, [None] * len(told.runs))
            yield _section(f"{figure.name} against {field.name}", chart, "A point per run.")


def _latency(told: _Sweep) -> Safe | None:
    rows = [(s, m) for s, m in zip(told.spreads, told.marks, strict=True) if s is not None]
    rows.sort(key=lambda pair: pair[0].p50)
    if not rows:
        return None
    drawn = charts.ranges([mark for _, mark in rows], [spread for spread, _ in rows], "ms")
    note = (
        "Median and spread of the calls at the first size, the fastest first. "
        "Green: the fastest that passed; red: did not pass."
    )
    return _section("Latency", drawn, note)


def _tradeoff(told: _Sweep) -> Safe | None:
    """Latency against the first of metric, error and size that differs."""
    axes = _figure_axes(told)
    x = next((axis for axis in axes if axis.name == "latency"), None)
    others = ("metric", "error", "bundle_mib")
    y = next((axis for name in others for axis in axes if axis.name == name), None)
    if x is None or y is None:
        return None
    drawn = charts.scatter(told.marks, x, y, told.spreads)
    return _section(f"Latency against {y.name}", drawn, "A point per run; whiskers are the spread.")


def _parallel(told: _Sweep) -> Safe | None:
    fields = [Axis(name, tuple(map(_place, row))) for name, row in told.varied.items()]
    measured = [axis for axis in _figure_axes(told) if axis.name not in ("latency", "seconds")]
    last = [axis for axis in _figure_axes(told) if axis.name == "latency"]
    room = _AXES - len(last) - min(len(measured), 3)
    axes = [*fields[:room], *measured[:3], *last]
    if len(axes) < 2 or len(told.runs) < 2:
        return None
    left_out = len(fields) - len(fields[:room])
    note = f"What differs between the runs, a line for each; coloured by {axes[-1].name}."
    note += f" {left_out} more fields differ." if left_out else ""
    return _section("Fields and figures", charts.parallel(told.marks, axes), note)


def _figure_axes(told: _Sweep) -> list[Axis]:
    """The figures that differ between runs; the first metric once."""
    names = dict.fromkeys(name for one in told.figures for name in one)
    axes = [
        Axis(
            name,
            tuple(one.get(name) for one in told.figures),
            figures.UNITS.get(name, ""),
            measured=True,
        )
        for name in names
        if not name.startswith("metric.")
    ]
    return [axis for axis in axes if len({v for v in axis.values if v is not None}) > 1]


def _place(value: Scalar) -> float | str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None if value is None else str(value)


def _table(told: _Sweep) -> Safe:
    metrics = list(dict.fromkeys(n for one in told.figures for n in one if n.startswith("metric.")))
    columns = ["latency", "ratio", *metrics, "error", "bundle_mib", "seconds"]
    labelled = all(run.label for run in told.runs)  # and so the labels say what differs
    names = [] if labelled else list(told.varied)
    titles = [Axis(name, (), figures.UNITS.get(name, "")).title for name in columns]
    rows: list[Safe] = []
    for index, (name, run) in enumerate(zip(told.names, told.runs, strict=True)):
        tone, word = page.BADGES[run.state]
        link = element("a", name, href=f"{quote(run.folder.name, safe='')}/{runs.REPORT}")
        rows.append(
            element(
                "tr",
                element("td", link, class_="name"),
                element("td", element("span", word.lower(), class_=f"badge {tone}")),
                *(element("td", _text(told.varied[field][index])) for field in names),
                *(
                    element("td", number(told.figures[index].get(name)), class_="n")
                    for name in columns
                ),
                class_="best" if index == told.best else None,
            )
        )
    head = page.head("run", "", *names, *(f"={title}" for title in titles))
    return element("section", element("h2", "Runs"), element("table", head, *rows))


def _text(value: Scalar) -> str:
    return "–" if value is None else str(value)


def _section(title: str, drawn: Safe, note: str) -> Safe:
    return element("section", element("h2", title), drawn, element("p", note, class_="dim"))
