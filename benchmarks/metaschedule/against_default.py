"""Search against the default rule on the papers' operators: `against_default.py [NAME...]`.

The kernel of each operator that does the arithmetic is searched by our modules and by MetaSchedule's rules alone,
with equal budgets; then default, best of ours and best of theirs meet in a contest, candidates
alternating. Above 1: the search won. What is not faster would not ship.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from claim import Row, main
from operators import OPERATORS, context, operator

from tapml.stage import Target
from tapml_stages.measure import Bench, ratio
from tapml_stages.metaschedule.contest import baseline, contest_job, hold
from tapml_stages.metaschedule.kernels import find_kernels
from tapml_stages.metaschedule.stage import SPACE, Tuning
from tapml_stages.metaschedule.task import BATCH, Task
from tapml_stages.metaschedule.tune import record_of, tasks_of
from tapml_stages.metaschedule.turns import Explorers
from tapml_stages.tensorir.schedule import default_records

SPACES = {"ours": ("tiles", "rules"), "metaschedule": tuple(SPACE[2:])}


def search(task: Task, bench: Bench, trials: int) -> int:
    """Spends trials on one workload; how many there were."""
    explorers = Explorers()
    task.start()
    while len(task.trials) < trials and task.open:
        name, before = explorers.choose(task), task.best_ms
        for _ in task.round(name, bench, min(BATCH, trials - len(task.trials))):
            pass
        explorers.learn(name, before, task.best_ms)
    return len(task.trials)


def measure(name: str, target: Target, trials: int, folder: Path) -> Row:
    """One row: times of default, ours and theirs, beside each other."""
    program = operator(name, target)
    ctx = context(folder)
    kernels = find_kernels(program, default_records(program.mod, target))
    with Bench(target) as bench:
        defaults = baseline(bench, kernels, ctx)
        kernel = max(kernels, key=lambda k: k.default.flops)
        contenders, made, spent = [contest_job(kernel, kernel.sites[0])], {}, {}
        for label, space in SPACES.items():
            tuning = Tuning(trials=trials, space=space)
            [task] = tasks_of([kernel], defaults, tuning, target, ctx)
            spent[label] = search(task, bench, trials)
            own = [t for t in task.trials if t.ms is not None and t.key != task.default.key]
            if own:
                best = min(own, key=lambda t: t.ms or 0.0)
                record = record_of(kernel, best, task.func(best))
                made[label] = record.id
                contenders.append(contest_job(kernel, kernel.sites[0], record))
        held = hold(bench, [(kernel, kernel.sites[0], contenders)], ctx, "contest")
    entries = {entry.id: entry for entry in held[kernel.name, kernel.sites[0]]}
    first = entries[kernel.default.id].timing
    row: Row = {"rule": kernel.default.rule, "default_ms": first.ms}
    for label in SPACES:
        timing = entries[made[label]].timing if label in made else None
        gain = None if timing is None or timing.error else 1 / ratio(timing, first)
        row |= {f"{label}_gain": gain, f"{label}_trials": spent[label]}
    return row


def table(rows: Sequence[Row]) -> str:
    """Markdown: gains over the default rule's schedule, of the best that each search found."""
    lines = [
        "| operator | rule | default ms | ours finds | trials | MetaSchedule finds | trials |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, stock = (_gain(row[f"{label}_gain"]) for label in SPACES)
        lines.append(
            f"| {row['name']} | {row['rule']} | {row['default_ms']:.4f} | {ours} "
            f"| {row['ours_trials']} | {stock} | {row['metaschedule_trials']} |"
        )
    return "\n".join(lines)


def _gain(gain: float | None) -> str:
    return "nothing that works" if gain is None else f"{gain:.2f}x"


if __name__ == "__main__":
    sys.exit(main(__doc__, "operators", tuple(OPERATORS), measure, table, trials=48, quick=8))
