"""The rows of `run.py` as the table of docs/benchmarks.md: `python benchmarks/cpu/table.py`."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import page

RESULTS = page.DOCS.parent / "benchmarks" / "results" / "cpu.json"
LIMITS = {  # column, exact → floor and goal of the geometric mean on two threads
    ("untuned", True): (1.0, 0.75),
    ("tuned", True): (0.9, 0.65),
    ("tuned again", True): (0.9, 0.65),
    ("untuned", False): (1.5, 0.9),
}
BESIDE = ("smollm2, its 4-bit blocks",)  # rows that are in no mean: the peer has no such weights


def means(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each column, threads and kind of size: geometric mean, worst, floor and goal."""
    groups: dict[tuple[str, int, bool], list[dict[str, Any]]] = {}
    for row in rows:
        if row["model"] not in BESIDE:
            groups.setdefault((row["column"], row["threads"], row["exact"]), []).append(row)
    lines = [
        "| column | threads | sizes | models × sizes | geometric mean | worst | floor | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (column, threads, exact), own in groups.items():
        mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in own))
        worst = max(own, key=lambda row: row["ratio"])
        limits = LIMITS.get((column, exact)) if threads == 2 else None
        floor, goal = limits or ("–", "–")
        which = "of the buckets" if exact else "outside of the buckets"
        lines.append(
            f"| {column} | {threads} | {which} | {len(own)} | **{mean:.2f}** "
            f"| {worst['ratio']:.2f} ({worst['model']}) | {floor} | {goal} |"
        )
    return lines


def details(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each model and size, a ratio for each column and number of threads."""
    columns = list(dict.fromkeys((row["column"], row["threads"]) for row in rows))
    heads = [f"{column}, {threads} T" for column, threads in columns]
    lines = [
        "| model | size | " + " | ".join(heads) + " | ours, onnxruntime, ms | error |",
        "|---|---|" + "---|" * (len(heads) + 2),
    ]
    sizes = list(dict.fromkeys((row["model"], row["size"]) for row in rows))
    for model, size in sizes:
        own = {
            (row["column"], row["threads"]): row
            for row in rows
            if (row["model"], row["size"]) == (model, size)
        }
        first = own.get(columns[0]) or next(iter(own.values()))
        ratios = [f"{own[at]['ratio']:.2f}" if at in own else "–" for at in columns]
        ours, theirs = first["ours_ms"], first["onnxruntime_ms"]
        lines.append(
            f"| {model} | {size}{'' if first['exact'] else ' (symbolic)'} | "
            + " | ".join(ratios)
            + f" | {_spread(ours)}, {_spread(theirs)} | {first['error']:.0e} |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    middle, low, high = values
    return f"{middle:.4g} ({low:.4g} … {high:.4g})"


def place(rows: Sequence[dict[str, Any]]) -> None:
    """Puts both tables into the page."""
    said = sorted({row["commit"] for row in rows})
    dates = sorted({row["date"][:10] for row in rows})
    note = f"Commits {', '.join(said)}; {', '.join(dates)}."
    text = "\n".join(["", *means(rows), "", *details(rows), "", note])
    page.place("benchmarks.md", "whole models", text)


if __name__ == "__main__":
    place(json.loads(RESULTS.read_text(encoding="utf-8"))["rows"])
