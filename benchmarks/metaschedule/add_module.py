"""What one more module in `tuning.space` brings: `add_module.py`.

Each kernel is tuned twice with an equal budget, without and with a module: that of docs/examples,
one of MetaSchedule's, our `tiles`. The best schedules of both then meet in a contest.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from against_default import search
from claim import Row, main
from operators import context, operator, pooling

from tapml.stage import Target
from tapml_stages.measure import Bench, ratio
from tapml_stages.metaschedule.contest import baseline, contest_job, hold
from tapml_stages.metaschedule.kernels import find_kernels
from tapml_stages.metaschedule.stage import Tuning
from tapml_stages.metaschedule.tune import record_of, tasks_of
from tapml_stages.program import Program
from tapml_stages.tensorir.schedule import default_records

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "separable_pooling"
STOCK = ("auto-inline", "parallel-vectorize-unroll", "random-compute-location")
Case = tuple[Callable[[Target], Program], tuple[str, ...], str]  # program, space, module added
CASES: dict[str, Case] = {
    "max pool 13x13 @20": (lambda t: pooling(20, 13, t), ("tiles", "rules"), "separable-pooling"),
    "max pool 5x5 @40": (lambda t: pooling(40, 5, t), ("tiles", "rules"), "separable-pooling"),
    "GRP": (lambda t: operator("GRP", t), ("tiles", "rules", *STOCK), "multi-level-tiling"),
    "C3D": (lambda t: operator("C3D", t), ("tiles", "rules", *STOCK), "multi-level-tiling"),
    "1x1": (lambda t: operator("1x1", t), ("rules",), "tiles"),
    "DEN": (lambda t: operator("DEN", t), ("rules",), "tiles"),
}


def install(folder: Path) -> None:
    """Puts the example on the path as pip would, entry point and all."""
    info = folder / "separable_pooling-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: separable-pooling\nVersion: 1.0\n")
    points = "[tapml.search_modules]\nseparable-pooling = separable_pooling:MODULE\n"
    (info / "entry_points.txt").write_text(points)
    sys.path += [str(folder), str(EXAMPLE)]
    importlib.invalidate_caches()


def measure(name: str, target: Target, trials: int, folder: Path) -> Row:
    """One row: the gain over the default, without the module and with it."""
    build, without, module = CASES[name]
    program, ctx = build(target), context(folder)
    kernels = find_kernels(program, default_records(program.mod, target))
    spaces = {"without": without, "with": (*without, module)}
    with Bench(target) as bench:
        defaults = baseline(bench, kernels, ctx)
        kernel = max(kernels, key=lambda k: k.default.flops)
        contenders, made = [contest_job(kernel, kernel.sites[0])], {}
        for label, space in spaces.items():
            tuning = Tuning(trials=trials, space=space)
            [task] = tasks_of([kernel], defaults, tuning, target, ctx)
            search(task, bench, trials)
            made[label] = kernel.default.id
            if task.best.key != task.default.key:
                record = record_of(kernel, task.best, task.func(task.best))
                made[label] = record.id
                if all(job.id != record.id for _, job in contenders):
                    contenders.append(contest_job(kernel, kernel.sites[0], record))
        held = hold(bench, [(kernel, kernel.sites[0], contenders)], ctx, "contest")
    timings = {entry.id: entry.timing for entry in held[kernel.name, kernel.sites[0]]}
    first = timings[kernel.default.id]
    gains = {
        f"{label}_gain": max(1.0, 1 / ratio(timings[one], first)) for label, one in made.items()
    }
    return {"space": without, "module": module, "default_ms": first.ms, **gains}


def table(rows: Sequence[Row]) -> str:
    """Markdown: gains over the default schedule that would ship."""
    lines = [
        "| kernel | space | default ms | gain | module added | gain with it |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {', '.join(row['space'])} | {row['default_ms']:.4f} "
        f"| {row['without_gain']:.2f}x | {row['module']} | {row['with_gain']:.2f}x |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as site:
        install(Path(site))
        sys.exit(main(__doc__, "modules", tuple(CASES), measure, table, trials=48, quick=16))
