"""Measures how long runs take to come into MLflow: one of 300 stages, and a sweep of 50 runs.

python benchmarks/engine/tracking.py [--store DIR]

The runs are written as `tapml run` leaves them, with figures made up by a formula; replaying is the
real thing, into the embedded database. `--store` keeps them there: `tapml ui bench --store DIR`
shows the sweep.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tapml import events, host, journal, recipe, runs, settings, tracking
from tapml.events import StageFinished
from tapml.runs import RunResult
from tapml.stage import Curve, Report
from tapml.store import Store

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "operator_sparse.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "tracking.json"
FORMATS = {"csr": 1.6, "ell": 1.9, "bsr": 0.55, "dbsr": 0.6, "hyb": 1.4}  # ms at full density
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
TRIALS = (0, 64)
STAGES = ("import", "prune", "reference", "relax", "sparsetir", "tensorir", "metaschedule")
STAGES += ("codegen", "validation")


def save(store: Path, name: str, steps: list[StageFinished], **changes: Any) -> Path:
    """A run folder as `tapml run` leaves it: journal, recipe, plan, logs, facts, report, record."""
    run_id, folder = journal.new_run(Store(store), name)
    loaded = recipe.load(RECIPE)
    start = time.time()
    fields = {**loaded.dotted(), **changes.pop("fields", {})}
    names = tuple(step.stage for step in steps)
    with journal.Journal(folder) as log:
        log.write(events.RunStarted(start, run_id, name, str(RECIPE), 1, names, fields))
        for step in steps:
            log.write(events.StageStarted(start, step.stage, "not in the store"))
            log.write(events.StageProgress(start, step.stage, 1, 2))
            log.write(step)
            (folder / "logs" / f"{step.stage}.log").write_text(f"{step.stage} is done\n" * 20)
        log.write(events.RunFinished(start + 1, run_id, 0, 1.0))
    (folder / runs.RECIPE).write_text(loaded.resolved_yaml())
    (folder / "plan.json").write_text(json.dumps([{"name": name} for name in names]))
    (folder / runs.REPORT).write_text("<!doctype html><p>report</p>" + " " * 200_000)
    if measured := changes.pop("facts", None):
        (folder / runs.FACTS).write_text(json.dumps(measured))
    runs.save(
        RunResult(
            run_id=run_id,
            recipe=name,
            recipe_path=str(RECIPE),
            workflow="deploy",
            started=start,
            seconds=1.0,
            folder=folder,
            exit_code=0,
            steps=tuple(runs.step_of(step) for step in steps),
            fields=fields,
            environment={"cpu": host.fingerprint()["cpu"], "tapml": "0.1.0"},
            **changes,
        )
    )
    return folder


def finished(name: str, index: int, **metrics: float) -> StageFinished:
    """A stage of four metrics, a search curve of 16 points, and two outputs."""
    digest = hashlib.sha256(f"{name}{index}".encode()).hexdigest()
    curve = Curve("search", "trial", "ms", {"best_ms": tuple((n, 9 / n) for n in range(1, 17))})
    report = Report("done", metrics, curves=(curve,) if index % 10 == 6 else ())
    return StageFinished(
        time=time.time(),
        stage=name,
        state="ran",
        seconds=0.5 + index % 7,
        rss_mib=100.0 + index,
        key=digest,
        outputs={"program": digest, "weights": digest[::-1]},
        report=report,
    )


def long_run(store: Path, stages: int) -> Path:
    """One run of many stages."""
    steps = [
        finished(f"stage{n}", n, **{f"stage{n}/bytes": n, f"stage{n}/operators": 2.0 * n})
        for n in range(stages)
    ]
    return save(store, "bench-stages", steps)


def sweep(store: Path, name: str = "bench") -> list[Path]:
    """A sweep of 50 runs: sparse format, density and trials differ, and so do the figures."""
    points = itertools.product(FORMATS.items(), DENSITIES, TRIALS)
    return [_member(store, name, *point) for point in points]


def _member(store: Path, name: str, form: tuple[str, float], density: float, trials: int) -> Path:
    kind, slow = form
    ms = round(0.4 + slow * density * (0.7 if trials else 1.0), 4)
    steps = [
        finished(stage, index, **({"tune/finished_trials": trials} if index == 6 else {}))
        for index, stage in enumerate(STAGES)
    ]
    rows = [_latency(128, ms, 1.1), _latency(1, ms / 40, 0.03)]
    facts = {
        "metric": {"top1": round(0.99 - 0.3 * (1 - density) ** 6, 4)},
        "error": {"max_abs": 3e-6 / density, "relative": 1e-6 / density, "passed": True},
        "latency": rows,
        "bundle_mib": round(0.3 + 9 * density * (1.3 if kind == "ell" else 1.0), 3),
        "host": host.fingerprint(),
    }
    fields = {
        "sparsity.format.kind": kind,
        "sparsity.prune.density": density,
        "tuning.trials": trials,
    }
    label = f"kind={kind},density={density},trials={trials}"
    return save(store, "bench-sweep", steps, sweep=name, label=label, facts=facts, fields=fields)


def _latency(size: int, ours: float, theirs: float) -> Mapping[str, Any]:
    return {
        "sizes": {"m": size},
        "threads": 2,
        "ours_ms": {"p50": ours, "low": ours * 0.98, "high": ours * 1.05, "n": 30},
        "peer": "numpy 2.4.6",
        "peer_ms": {"p50": theirs, "low": theirs * 0.98, "high": theirs * 1.05, "n": 30},
        "ratio": ours / theirs,
    }


@contextmanager
def timed(rows: dict[str, float], what: str) -> Iterator[None]:
    """Adds the seconds that its body takes to `rows`, and prints them."""
    start = time.perf_counter()
    yield
    rows[what] = round(time.perf_counter() - start, 3)
    print(f"{rows[what]:8.2f} s  {what}", flush=True)


def measure(store: Path, uri: str) -> dict[str, float]:
    """Seconds of each step, in this process, as the detached one does them."""
    from tapml.tracking import syncer

    rows: dict[str, float] = {}
    long, members = long_run(store, 300), sweep(store)
    with timed(rows, "import MLflow"):
        importlib.import_module("mlflow")
    with timed(rows, "make or check the database"):
        client = syncer.Syncer(uri, store)
    with timed(rows, "open it"):
        client.client.search_experiments()
    for again in ("", ", again"):
        with timed(rows, f"replay 300 stages{again}"):
            client.replay(long)
        with timed(rows, f"replay a sweep of 50 runs{again}"):
            assert not client.bring(members)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep the runs there")
    parser.add_argument("--uri", help="an MLflow server instead of the embedded database")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = (chosen.store or Path(temporary)).resolve()
        where = settings.Tracking(uri=chosen.uri)
        os.environ.update(tracking.environment(store, where))
        rows = measure(store, tracking.uri(store, where))
    if chosen.uri is None:
        facts = {"host": host.fingerprint(), "mlflow": version("mlflow"), "seconds": rows}
        RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
