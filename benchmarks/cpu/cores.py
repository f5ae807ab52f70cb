"""Whether two cores of this machine are two: what each multiplies alone, and both at once.

    python benchmarks/cpu/cores.py [--seconds 60]

A virtual machine's cores may be threads of one core of the host's, now and then or always, and
share it with other machines. For each of these there is a process of its own that runs nothing but
OpenBLAS's products of matrices that fit in the second-level cache; they take turns of 0.2 s: the
first alone, the second alone, both. Where both together do no more than one, two threads of any
library are no faster than one. Writes benchmarks/results/cpu_cores.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from tapml import host

RESULTS = Path(__file__).resolve().parents[1] / "results" / "cpu_cores.json"
SIZE = 192  # of the matrices: three of them are 432 KiB
TURN = 0.2  # seconds


def worker(core: int, orders: Any) -> None:
    """Answers each order with the GFLOP/s of one turn that starts at the time it names."""
    os.sched_setaffinity(0, {core})
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np

    rng = np.random.default_rng(core)
    a, b = rng.standard_normal((2, SIZE, SIZE), dtype="float32")
    c = a @ b
    while (start := orders.recv()) is not None:
        while time.monotonic() < start:
            pass
        count = 0
        while (now := time.monotonic()) < start + TURN:
            np.matmul(a, b, out=c)
            count += 1
        orders.send(2e-9 * SIZE**3 * count / (now - start))


@click.command()
@click.option("--seconds", default=60.0)
def main(seconds: float) -> None:
    """Prints and keeps what two cores do alone and together."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise click.ClickException("this machine lets the process use one core only")
    spawn = multiprocessing.get_context("spawn")
    pipes = [spawn.Pipe() for _ in cores]
    processes = [
        spawn.Process(target=worker, args=(core, theirs), daemon=True)
        for core, (_, theirs) in zip(cores, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    ours = [pipe for pipe, _ in pipes]

    def turn(*running: Any) -> float:
        start = time.monotonic() + 0.01
        for pipe in running:
            pipe.send(start)
        return sum(pipe.recv() for pipe in running)

    turn(*ours)  # imports
    rows: list[tuple[float, float, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows.append((turn(ours[0]), turn(ours[1]), turn(*ours)))
    for pipe in ours:
        pipe.send(None)
    gains = [both / max(one, other) for one, other, both in rows]
    alone = [value for one, other, _ in rows for value in (one, other)]
    together = [both for *_, both in rows]
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.fingerprint(),
        "turns": len(rows),
        "one_gflops": _spread(alone),
        "both_gflops": _spread(together),
        "both_over_one": _spread(gains),
        "below_1.25": sum(gain < 1.25 for gain in gains) / len(gains),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name in ("one_gflops", "both_gflops", "both_over_one"):
        least, median, most = found[name]
        print(f"{name:14} {least:8.2f} … {median:8.2f} … {most:8.2f}")
    print(f"turns in which both did less than 1.25 of one: {found['below_1.25']:.0%}")


def _spread(values: list[float]) -> tuple[float, float, float]:
    """A tenth lies below the first and above the last; the median between."""
    tenths = statistics.quantiles(values, n=10)
    least, median, most = tenths[0], statistics.median(values), tenths[-1]
    return round(least, 2), round(median, 2), round(most, 2)


if __name__ == "__main__":
    main()
