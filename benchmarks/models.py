"""Whole models against onnxruntime: untuned and tuned, same threads, alternating blocks.

    python benchmarks/models.py [--store DIR] [MODEL ...]

Each row is a real `tapml run`; the figures are those that validation measured. Prints a table and
writes benchmarks/results/models.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import tapml
from tapml import host

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODELS = ("magika", "ocr_detect")
TUNINGS = {"untuned": ("tuning.trials=0",), "tuned": ()}


def rows(model: str, store: Path) -> Iterator[dict[str, Any]]:
    """One row per size and tuning of a model."""
    for tuning, overrides in TUNINGS.items():
        again = ("validation",)  # timings are taken now, whatever the store holds
        result = tapml.run(
            ROOT / "recipes" / f"{model}.yaml", set=overrides, store=store, force=again, track="off"
        )
        assert result.facts is not None
        for latency in result.facts.latency:
            assert latency.theirs is not None
            yield {
                "model": model,
                "tuning": tuning,
                "sizes": dict(latency.sizes),
                "threads": latency.threads,
                "ours_ms": latency.ours.p50,
                "ours_low_high_ms": [latency.ours.low, latency.ours.high],
                "peer": latency.peer,
                "peer_ms": latency.theirs.p50,
                "peer_low_high_ms": [latency.theirs.low, latency.theirs.high],
                "ratio": latency.ratio,
                "relative_error": result.facts.error.relative if result.facts.error else None,
            }


def warm_run_s(model: str, store: Path) -> float:
    """Seconds of `tapml run` when everything is cached, process start included."""
    command = [sys.executable, "-m", "tapml", "run", f"recipes/{model}.yaml", "--track=off"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--store", str(store)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start


def commit() -> str:
    """The commit measured, with `+dirty` when files differ from it."""
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty=+dirty"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


@click.command()
@click.argument("models", nargs=-1)
@click.option("--store", type=click.Path(path_type=Path), default=ROOT / "artifacts")
def main(models: tuple[str, ...], store: Path) -> None:
    """Times MODELS (default: all) and writes the table."""
    table = [row for model in models or MODELS for row in rows(model, store)]
    print(
        f"{'model':<12} {'tuning':<8} {'size':<10} {'ours ms':>9} {'peer ms':>9} {'ours/peer':>10}"
    )
    for row in table:
        sizes = ",".join(map(str, row["sizes"].values()))
        print(
            f"{row['model']:<12} {row['tuning']:<8} {sizes:<10} {row['ours_ms']:>9.3f} "
            f"{row['peer_ms']:>9.3f} {row['ratio']:>10.3f}"
        )
    warm = {model: min(warm_run_s(model, store) for _ in range(3)) for model in models or MODELS}
    for model, seconds in warm.items():
        print(f"warm run of {model}: {seconds:.2f} s")
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "host": host.fingerprint(),
        "command": "make bench",
        "rows": table,
        "warm_run_s": warm,
    }
    (RESULTS / "models.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
