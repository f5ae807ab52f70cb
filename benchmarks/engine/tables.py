"""The tables of benchmarks/results/engine.json, as Markdown for docs/benchmarks.md.

python benchmarks/engine/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parents[1] / "results" / "engine.json"
SCENARIOS = ("cold", "warm", "leaf", "root")


def text(data: dict[str, Any]) -> str:
    return "\n".join(_lines(data))


def _lines(data: dict[str, Any]) -> Iterator[str]:
    cells = {(c["shape"], int(c["slots"]), c["tool"], c["scenario"]): c for c in data["cells"]}
    yield "| graph | slots | engine | cold | warm | one leaf changed | root changed | MiB |"
    yield "|---|---|---|---|---|---|---|---|"
    rows = dict.fromkeys((shape, slots, tool) for shape, slots, tool, _ in cells if slots)
    for shape, slots, tool in rows:
        found = [cells.get((shape, slots, tool, one)) for one in SCENARIOS]
        rss = max(cell["rss_mib"] for cell in found if cell)
        yield f"| {shape} | {slots} | {tool} | {' | '.join(map(_cell, found))} | {rss:.0f} |"
    yield ""
    yield "| plan of 10 000 stages | s | MiB |"
    yield "|---|---|---|"
    for (_, slots, _, scenario), cell in cells.items():
        if not slots:
            yield f"| {scenario} | {_cell(cell)} | {cell['rss_mib']:.0f} |"


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    low, high = cell["low_high_s"]
    spread = f" ({low:.2f} … {high:.2f})" if len(cell["samples_s"]) > 1 else ""
    return f"{cell['s']:.2f}{spread}"


if __name__ == "__main__":
    print(text(json.loads(RESULT.read_text())))
