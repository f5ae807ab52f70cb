"""A store of 100 000 results: what looking one up, listing and taking away costs.

    python benchmarks/engine/big_store.py [--records N] [--folder DIR]

The results are published as a run publishes them, and have been used at random times of a year;
200 runs name some of them. Each figure is taken in a process of its own, on files that the
kernel still has in memory. Prints a table and writes benchmarks/results/big_store.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from tapml import host, journal, keys
from tapml.events import RunFinished, RunStarted, StageFinished
from tapml.store import Record, Store, garbage, index, inventory, now
from tapml.store.garbage import Policy

RESULTS = Path(__file__).resolve().parents[1] / "results"
STAGES = ("import", "prune", "relax", "tensorir", "metaschedule", "codegen", "validation")
YEAR_S = 365 * 86400
RUNS, KEYS_OF_A_RUN = 200, 10


def preimage(number: int) -> dict[str, Any]:
    """About what a stage's key depends on."""
    params = {f"group.field_{i}": number if i == 0 else i for i in range(20)}
    tools = {"apache-tvm": "0.27.0.post1", "numpy": "2.4.6"}
    inputs = {"program": hashlib.sha256(b"%d" % number).hexdigest()}
    stage = STAGES[number % len(STAGES)]
    return {
        "schema": 1,
        "stage": stage,
        "version": 1,
        "params": params,
        "inputs": inputs,
        "tools": tools,
    }


def fill(root: Path, first: int, last: int) -> list[float]:
    """Publishes results, each of one file of its own and one that many share; seconds of each."""
    store, took = Store(root), list[float]()
    for number in range(first, last):
        facts = preimage(number)
        begun = time.perf_counter()
        outputs = {
            "out": store.put_bytes(b"output %d\n" % number * 20),
            "shared": store.put_bytes(b"shared %d\n" % (number % 500) * 500),
        }
        store.publish(
            Record(facts["stage"], keys.digest(facts), facts, outputs, seconds=1.0, made_at=now())
        )
        took.append(time.perf_counter() - begun)
        used = time.time() - random.Random(number).random() * YEAR_S
        os.utime(store.record_path(facts["stage"], keys.digest(facts), 0), (used, used))
    return took


def add_runs(root: Path, records: int) -> None:
    store, chance = Store(root), random.Random(0)
    for number in range(RUNS):
        run_id, folder = journal.new_run(store, f"recipe{number % 7}")
        with journal.Journal(folder) as log:
            began = time.time() - chance.random() * YEAR_S
            log.write(RunStarted(began, run_id, f"recipe{number % 7}", "recipe.yaml", 1, STAGES))
            for _ in range(KEYS_OF_A_RUN):
                facts = preimage(chance.randrange(records))
                log.write(
                    StageFinished(began, facts["stage"], "ran", key=keys.digest(facts), outputs={})
                )
            log.write(RunFinished(began, run_id, 0, 1.0))
        os.utime(folder / "events.jsonl", (began, began))


def lookups(root: Path, records: int) -> dict[str, float]:
    store, took, chance = Store(root), list[float](), random.Random(1)
    for _ in range(2000):
        facts = preimage(chance.randrange(records))
        key = keys.digest(facts)
        begun = time.perf_counter()
        assert store.lookup(facts["stage"], key) is not None
        took.append(time.perf_counter() - begun)
    took.sort()
    return {"p50_ms": statistics.median(took) * 1e3, "p95_ms": took[1900] * 1e3}


def newest(root: Path, records: int) -> dict[str, float]:
    assert len(Store(root).newest("relax", 32)) == 32
    return {}


def listing(root: Path, records: int) -> dict[str, float]:
    found = list(inventory.results(Store(root)))
    inventory.by_stage(found)
    inventory.by_recipe(found, inventory.uses(Store(root)))
    return {"results": len(found), "mib": inventory.total(found) / 2**20}


def whole_scan(root: Path, records: int) -> dict[str, float]:
    """For comparison: reading every record, as without an index."""
    store = Store(root)
    for stage in store.stages():
        for path in store.record_paths(stage):
            store.record(path)
    return {}


def dry_gc(root: Path, records: int) -> dict[str, float]:
    return _gone(garbage.collect(Store(root), Policy(older_than_s=YEAR_S / 2), dry_run=True))


def gc(root: Path, records: int) -> dict[str, float]:
    return _gone(garbage.collect(Store(root), Policy(older_than_s=YEAR_S / 2, grace_s=0.0)))


def gc_of_nothing(root: Path, records: int) -> dict[str, float]:
    return _gone(garbage.collect(Store(root), Policy(older_than_s=YEAR_S, grace_s=0.0)))


def rebuild(root: Path, records: int) -> dict[str, float]:
    """The index of one stage, made anew from its records."""
    Store(root).index("relax").unlink()
    Store(root).newest("relax", 32)
    return {"lines": float(sum(1 for _ in index.read(Store(root).index("relax"))))}


def file_system(folder: Path | None) -> str:
    """Type of the file system of a folder: what taking files away costs is its matter."""
    told = subprocess.run(
        ["stat", "-f", "-c", "%T", str(folder or tempfile.gettempdir())],
        capture_output=True,
        text=True,
        check=True,
    )
    return told.stdout.strip()


def _gone(outcome: garbage.Outcome) -> dict[str, float]:
    return {"results": len(outcome.results), "blobs": len(outcome.blobs)}


def measured(
    what: Callable[[Path, int], dict[str, float]], root: Path, records: int
) -> dict[str, Any]:
    """Seconds, seconds of the CPU, and peak memory beyond that of the imports."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, used = time.perf_counter(), time.process_time()
    facts = what(root, records)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "what": what.__name__,
        "s": seconds,
        "cpu_s": cpu,
        "mib": (peak - before) / 1024,
        **facts,
    }


@click.command()
@click.option("--records", default=100_000, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the store is made.")
def main(records: int, folder: Path | None) -> None:
    """Makes the store, measures, prints the table and removes the store."""
    home = Path(tempfile.mkdtemp(dir=folder, prefix="big-store-"))
    root = home / "store"
    try:
        Store(root).prepare()
        begun = time.perf_counter()
        cuts = [records * part // 8 for part in range(9)]
        with ProcessPoolExecutor(host.threads()) as pool:
            parts = pool.map(fill, [root] * 8, cuts[:-1], cuts[1:])
            took = sorted(second for part in parts for second in part)
        add_runs(root, records)
        made = time.perf_counter() - begun
        print(f"{records} results in {made:.0f} s; each {took[len(took) // 2] * 1e3:.2f} ms (p50)")
        rows: list[dict[str, Any]] = []
        for what in (
            lookups, newest, listing, whole_scan, dry_gc, gc_of_nothing, gc, rebuild,
        ):  # fmt: skip
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                row = pool.submit(measured, what, root, records).result()
            rows.append(row)
            rest = "  ".join(f"{name} {value:g}" for name, value in islice(row.items(), 4, None))
            cost = f"{row['s']:>8.3f} s {row['cpu_s']:>8.3f} s of CPU {row['mib']:>7.0f} MiB"
            print(f"{row['what']:<14} {cost}  {rest}")
    finally:
        shutil.rmtree(home)
    RESULTS.mkdir(exist_ok=True)
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.fingerprint(),
        "records": records,
        "file_system": file_system(folder),
        "publish_p50_ms": took[len(took) // 2] * 1e3,
        "rows": rows,
    }
    (RESULTS / "big_store.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
