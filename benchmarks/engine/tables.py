"""What was measured as Markdown, put into docs/benchmarks.md between its marks.

python benchmarks/engine/tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "benchmarks" / "results" / "engine.json"
FEATURES = ROOT / "benchmarks" / "results" / "engine_features.json"
DOCS = ROOT / "docs" / "benchmarks.md"
SCENARIOS = ("cold", "warm", "leaf", "root")


def figures(data: dict[str, Any]) -> Iterator[str]:
    """The table of the commands, then that of large plans."""
    cells = {(c["shape"], c["slots"], c["tool"], c["scenario"]): c for c in data["cells"]}
    yield f"{data['date'][:10]}; rounds: {data['rounds']} (cold and root changed: at most 2)."
    yield ""
    yield "| graph | slots | engine | cold | warm | one leaf changed | root changed | MiB |"
    yield "|---|---|---|---|---|---|---|---|"
    rows = dict.fromkeys((shape, slots, tool) for shape, slots, tool, _ in cells if slots)
    for shape, slots, tool in rows:
        found = [cells.get((shape, slots, tool, one)) for one in SCENARIOS]
        rss = max(cell["rss_mib"] for cell in found if cell)
        yield f"| {shape} | {slots} | {tool} | {' | '.join(map(_cell, found))} | {rss:.0f} |"
    if plans := {scenario: c for (_, slots, _, scenario), c in cells.items() if not slots}:
        yield ""
        yield "| plan of 10 000 stages | s | MiB |"
        yield "|---|---|---|"
        for scenario, cell in plans.items():
            yield f"| {scenario} | {_cell(cell)} | {cell['rss_mib']:.0f} |"


def features(found: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """A row for each question, a column for each engine."""
    yield f"| | {' | '.join(found)} |"
    yield "|---" * (len(found) + 1) + "|"
    for question in next(iter(found.values())):
        yield f"| {question} | {' | '.join(one[question]['answer'] for one in found.values())} |"


def place(mark: str, lines: Iterable[str]) -> None:
    """Puts the lines into the docs, between `<!-- mark -->` and `<!-- end -->`."""
    text = DOCS.read_text(encoding="utf-8")
    body = "\n".join((f"<!-- {mark} -->", "", *lines, "", "<!-- end -->"))
    pattern = rf"<!-- {mark} -->.*?<!-- end -->"
    DOCS.write_text(re.sub(pattern, lambda _: body, text, flags=re.DOTALL), encoding="utf-8")


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    low, high = cell["low_high_s"]
    spread = f" ({low:.2f} … {high:.2f})" if len(cell["samples_s"]) > 1 else ""
    return f"{cell['s']:.2f}{spread}"


if __name__ == "__main__":
    place("figures", figures(json.loads(FIGURES.read_text())))
    place("features", features(json.loads(FEATURES.read_text())["features"]))
