"""What the pages that tapml writes have in common; they need nothing from outside."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ..stage import Table
from .markup import Child, Safe, breakable, element, number

_ROWS = 400  # of one table; what is longer is cut, and says so
BADGES = {
    "ok": ("good", "PASSED"),
    "gate": ("bad", "GATE FAILED"),
    "failed": ("bad", "FAILED"),
    "interrupted": ("warn", "INTERRUPTED"),
    "killed": ("warn", "KILLED"),
}


def document(title: str, *sections: Safe | None) -> str:
    """A whole page."""
    start = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _css()),
    )
    body = element("body", element("main", *sections))
    return f"<!doctype html>\n{element('html', start, body, lang='en')}\n"


@cache
def _css() -> Safe:
    return Safe((Path(__file__).parent / "report.css").read_text(encoding="utf-8"))


def card(name: str, figure: str, under: str, tone: str) -> Safe:
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", figure, class_="figure"),
        element("div", under, class_=f"under {tone}"),
        class_="card",
    )


def table(told: Table) -> Safe:
    """A table; a column that holds nothing but numbers is set to the right."""
    numeric = [
        all(
            isinstance(row[i], int | float | None) and not isinstance(row[i], bool)
            for row in told.rows
        )
        for i in range(len(told.columns))
    ]
    rows = [
        element(
            "tr",
            *(
                element("td", _cell(value), class_="n" if right else None)
                for value, right in zip(row, numeric, strict=True)
            ),
        )
        for row in told.rows[:_ROWS]
    ]
    first = head(
        *(f"={name}" if right else name for name, right in zip(told.columns, numeric, strict=True))
    )
    more = len(told.rows) - _ROWS
    rest = element("p", f"{more} more rows are not shown", class_="dim") if more > 0 else None
    return element("div", element("table", first, *rows), rest, class_="long")


def _cell(value: str | int | float | bool | None) -> Child:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case str():
            return breakable(value)


def head(*names: str) -> Safe:
    """A header row; `=name` is set to the right."""
    cells = [
        element("th", name.removeprefix("="), class_="n" if name.startswith("=") else None)
        for name in names
    ]
    return element("tr", *cells)
