"""Families of language models that decode with states: tiny models through the rooms, their logits
against transformers' model run whole.

    python benchmarks/decode.py [--again] [FAMILY ...]

Writes benchmarks/results/decode.json after every family, and its table into docs/models.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import page

from tapml import registry

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "decode.json"
sys.path.insert(0, str(ROOT / "tests"))

from decoding import PROMPTS, TOLERANCE, family  # noqa: E402  # tests/ is no package
from families import FAMILIES, FLOOR  # noqa: E402


def code() -> dict[str, int]:
    """Versions of the stages that make a bundle: a result of other versions is taken again."""
    return {
        name: registry.stage_class(name).version
        for name in ("import", "relax", "tensorir", "codegen")
    }


def result(name: str) -> dict[str, Any]:
    """Errors of a family by prompt lengths, greedy tokens missed, and controls; or why it fails."""
    start = time.monotonic()
    found: dict[str, Any] = {"name": name, "reason": ""}
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = family(name, Path(folder))
            compared = {prompts: made.compare(prompts, steps) for prompts, steps in PROMPTS.items()}
            found["errors"] = {
                ", ".join(map(str, prompts)): one.error for prompts, one in compared.items()
            }
            found["missed"] = sum(one.missed for one in compared.values())
            found["controls"] = made.controls()
    except Exception as error:  # a row of the table, not the end of the run
        traceback.print_exc()
        found["reason"] = f"{type(error).__name__}: {error}"
    return found | {"seconds": round(time.monotonic() - start, 1), "code": code()}


def is_right(one: dict[str, Any]) -> bool:
    return (
        not one["reason"]
        and max(one["errors"].values()) <= TOLERANCE
        and not one["missed"]
        and min(one["controls"].values()) > 100 * TOLERANCE
    )


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    right = [one["name"] for one in rows if is_right(one)]
    lengths = list(PROMPTS)
    lines = [
        f"**{len(right)} of {len(rows)} families right**, {len(set(right) & set(FLOOR))} of the "
        f"{len(FLOOR)} that are the floor. Each: a tiny random model of transformers "
        f"{version('transformers')}, one bundle for 1 to 4 rows; the cache is NaN at first. Errors "
        "are the largest over prompt and following tokens, teacher-forced, relative to the range "
        "of the logits of transformers' model run whole, without a cache "
        f"({PROMPTS[lengths[0]]} tokens after the first prompt); no greedy token differs where the "
        "two best are further apart than the tolerance. Done wrong on purpose: positions off by "
        "one (without a cache: the prompt's last token left out), states wiped after the prompt.",
        "",
        "| family | "
        + " | ".join(f"prompt {', '.join(map(str, one))}" for one in lengths)
        + " | off by one | wiped states | what fails |",
        "|---" * (len(lengths) + 4) + "|",
    ]
    for one in rows:
        numbers = [*one.get("errors", {}).values(), *one.get("controls", {}).values()]
        cells = [f"{value:.1e}" for value in numbers] or ["–"] * (len(lengths) + 2)
        reason = " ".join(one["reason"].split())[:300].replace("|", "\\|")
        lines.append(f"| {one['name']} | {' | '.join(cells)} | {reason} |")
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, metavar="[FAMILY ...]")
@click.option("--again", is_flag=True, help="Run families that have a result, too.")
def main(names: tuple[str, ...], again: bool) -> None:
    """Runs FAMILYs (default: all) and writes the table."""
    if unknown := set(names) - FAMILIES.keys():
        raise click.UsageError(f"no families {sorted(unknown)}; known: {', '.join(FAMILIES)}")
    there = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    results = {one["name"]: one for one in there if one["name"] in FAMILIES}
    for name in names or FAMILIES:
        if again or results.get(name, {}).get("code") != code():
            results[name] = result(name)
        one = results[name]
        errors = " ".join(f"{value:.1e}" for value in one.get("errors", {}).values())
        print(f"{name:<14} {errors} {one['seconds']} s {one['reason'][:140]}", flush=True)
        rows = [results[family] for family in FAMILIES if family in results]
        page.keep(RESULTS, rows)
        page.place("models.md", "decode", markdown(rows))


if __name__ == "__main__":
    main()
