"""The zoo: tiny models of many architectures through the whole line, against transformers.

    python benchmarks/architectures.py [--store DIR] [--again] [ROW ...]

A row that benchmarks/results/zoo.json has from the code of today is not run again. Prints a table,
writes the JSON after every row, and from it benchmarks/zoo.md and the table of docs/models.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import page

from tapml import registry
from tapml.errors import TapmlError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"
TABLE = ROOT / "benchmarks" / "zoo.md"
sys.path.insert(0, str(ROOT / "tests"))

from zoo import line, rows  # noqa: E402  # tests/ is no package

FLOOR, GOAL = 2e-5, 5e-6


def code() -> dict[str, int]:
    """Versions of the stages that make a bundle: a result of other versions is taken again."""
    wanted = ("import", "relax", "tensorir", "metaschedule", "codegen")
    return {name: registry.stage_class(name).version for name in wanted}


def facts_of(row: rows.Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "model": row.model,
        "paper": row.paper,
        "dynamic": sorted(row.dims),
    }


def result(row: rows.Row, store: Path) -> dict[str, Any]:
    """What became of a row: its errors by size, or the reason why it failed."""
    start = time.monotonic()
    found = facts_of(row)
    folder = tempfile.mkdtemp()
    try:
        errors = line.errors(row, line.run(row, Path(folder), store))
        found |= {"errors": errors, "error": max(errors.values()), "reason": ""}
    except TapmlError as error:
        found |= {"error": None, "reason": error.message}
    except Exception as error:  # a bug of ours is a row as well, not the end of the run
        traceback.print_exc()
        found |= {"error": None, "reason": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["reason"] = found["reason"].replace(f"{folder}/", "")
    return found | {"seconds": round(time.monotonic() - start, 1), "code": code()}


def markdown(results: Iterable[dict[str, Any]]) -> str:
    """benchmarks/zoo.md."""
    table = sorted(results, key=lambda one: one["error"] is None)
    lines = [
        "# The zoo",
        "",
        "Written by `python benchmarks/architectures.py`. Each row: a tiny random model of "
        f"transformers {version('transformers')}, saved as a Hugging Face folder, through",
        "`tapml run` (untuned), its library called at every size; one bundle for all sizes. "
        "The error is the largest difference from the source's own output (transformers' eager),",
        f"relative to the output's range, over {len(rows.LENGTHS)} lengths × "
        f"{len(rows.BATCHES)} batches (lengths {', '.join(map(str, rows.LENGTHS))}; "
        f"batches {', '.join(map(str, rows.BATCHES))}). `unet` is a torch module, `gcn` an ONNX",
        "graph beside onnxruntime.",
        "",
        summary(table),
        "",
        "| architecture | class | dynamic | error | TapML paper | what fails |",
        "|---|---|---|---|---|---|",
    ]
    for one in table:
        error = "–" if one["error"] is None else f"{one['error']:.1e}"
        lines.append(
            f"| {one['name']} | {one['model']} | {', '.join(one['dynamic'])} | {error} "
            f"| {one['paper']} | {reason(one)} |"
        )
    return "\n".join(lines) + "\n"


def summary(table: Sequence[dict[str, Any]]) -> str:
    right = [one for one in table if one["error"] is not None and one["error"] <= FLOOR]
    lengths = [one for one in right if {"n", "m"} & set(one["dynamic"])]
    best = [one for one in right if one["error"] <= GOAL]
    return (
        f"**{len(right)} of {len(table)} architectures right** (error ≤ {FLOOR:.0e}), "
        f"{len(lengths)} of them with dynamic sequence length; {len(best)} within {GOAL:.0e}, "
        f"the worst {max((one['error'] for one in right), default=0.0):.1e}."
    )


def reason(one: dict[str, Any]) -> str:
    return " ".join(one["reason"].split())[:300].replace("|", "\\|")


def digest(table: Sequence[dict[str, Any]]) -> str:
    """Its part of docs/models.md: who is right, by what may differ from call to call."""
    groups: dict[str, list[str]] = {}
    for one in table:
        if one["error"] is not None and one["error"] <= FLOOR:
            groups.setdefault(", ".join(one["dynamic"]) or "nothing", []).append(one["name"])
    lines = [summary(table), "", "| sizes that differ from call to call | right |", "|---|---|"]
    lines += [f"| {dims} | {', '.join(names)} |" for dims, names in sorted(groups.items())]
    wrong = [one for one in table if one["error"] is None or one["error"] > FLOOR]
    lines += [f"| {one['name']}: not right | {reason(one)} |" for one in wrong]
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, metavar="[ROW ...]")
@click.option("--store", type=click.Path(path_type=Path), default=ROOT / "artifacts")
@click.option("--again", is_flag=True, help="Run rows that have a result, too.")
@click.option("--jobs", default=2, show_default=True, help="Rows at a time.")
@click.option("--one", is_flag=True, hidden=True, help="Print the result of one row.")
def main(names: tuple[str, ...], store: Path, again: bool, jobs: int, one: bool) -> None:
    """Runs ROWs (default: all) and writes the table."""
    known = {row.name: row for row in rows.ROWS}
    if unknown := set(names) - known.keys():
        raise click.UsageError(f"no rows {sorted(unknown)}; known: {', '.join(known)}")
    if one:
        print(json.dumps(result(known[names[0]], store)))
        return
    there = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    results = {row["name"]: row for row in there if row["name"] in known}
    todo = [name for name in names or known if again or results.get(name, {}).get("code") != code()]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(apart, name, store) for name in todo]
        for future in as_completed(futures):
            row = future.result()
            results[row["name"]] = row
            error = "failed" if row["error"] is None else f"{row['error']:.1e}"
            line = f"{row['name']:<14} {error:>8} {row['seconds']:>7.1f} s  {row['reason'][:140]}"
            print(line, flush=True)
            save([results[name] for name in known if name in results])


def apart(name: str, store: Path) -> dict[str, Any]:
    """The result of a row, in a process of its own: one that dies takes no other with it."""
    command = [sys.executable, __file__, "--one", "--store", str(store), name]
    env = {**os.environ, "TAPML_LOCKS": str(store)}  # nothing is timed: no row waits for others
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if answer.returncode == 0:
        return json.loads(answer.stdout.splitlines()[-1])
    row = next(row for row in rows.ROWS if row.name == name)
    reason = f"the process ended with {answer.returncode}: {answer.stderr[-200:]}"
    return {**facts_of(row), "error": None, "reason": reason, "seconds": 0.0, "code": code()}


def save(ordered: list[dict[str, Any]]) -> None:
    page.keep(RESULTS, ordered)
    TABLE.write_text(markdown(ordered), encoding="utf-8")
    page.place("models.md", "zoo", digest(ordered))


if __name__ == "__main__":
    main()
