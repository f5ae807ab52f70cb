"""What it brings that threads take turns of a parallel loop from each other.

    python benchmarks/cpu/stealing.py [--seconds 60]

Kernels by their default schedules, on two threads: built with parallel loops cut into equal parts
beforehand, as TVM does, and with `stages/work_stealing.py`. Bursts of 20 ms in turn, each call
timed by itself, since what a neighbour takes from one core shows in the slower calls. Writes
benchmarks/results/cpu_stealing.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from tapml import host
from tapml.target import TargetSection, resolve

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kernels

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu_stealing.json"
BURST = 0.02  # seconds
CASES = (
    "dense 128x768x3072",
    "conv 3x3 64->64 @56",
    "conv 3x3 128->128 @28",
    "conv 1x1 96->32 @56",
    "conv 1x1 672->112 @14",
    "depthwise 96 k3 @56",
    "softmax 1536x128",
)


@click.command()
@click.option("--seconds", default=60.0)
def main(seconds: float) -> None:
    """Prints and keeps the times of calls by either way of sharing a loop out."""
    os.environ["TVM_NUM_THREADS"] = "2"
    cases = [case for case in kernels.CASES if case.name in CASES]
    rows = [timed(case, seconds / len(cases)) for case in cases]
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.fingerprint(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def timed(case: kernels.Case, seconds: float) -> dict[str, Any]:
    """Milliseconds of calls: the tenth, the middle and the ninetieth of a hundred, and the mean."""
    target = resolve(TargetSection(cores=2))
    ways = {way: kernels.ours(case, target, way)[0] for way in ("equal parts", "stealing")}
    calls: dict[str, list[float]] = {way: [] for way in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for way, call in ways.items():
            call()  # wakes the threads
            until = time.perf_counter() + BURST
            while (started := time.perf_counter()) < until:
                call()
                calls[way].append(1e3 * (time.perf_counter() - started))
    row: dict[str, Any] = {"kernel": case.name}
    for way, times in calls.items():
        row[way] = [round(float(x), 4) for x in np.percentile(times, [10, 50, 90])]
        row[f"{way}, mean"] = round(float(np.mean(times)), 4)
        told = " ".join(f"{ms:8.4f}" for ms in [*row[way], row[f"{way}, mean"]])
        print(f"{case.name:24} {way:12} {told}", flush=True)
    return row


if __name__ == "__main__":
    main()
