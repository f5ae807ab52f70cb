"""An operator tuned once is not searched again within a plan: `once.py`.

Stacks of equal layers are tuned with a budget that a single one spends as well: workloads, trials
and seconds stay what they are for one layer, and each layer gets the schedule. Then a stack of
unequal ones, for comparison.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from claim import Row, main
from operators import chain, context

from tapml.stage import Inputs, Target
from tapml_stages import records
from tapml_stages.metaschedule.stage import MetaSchedule, Tuning
from tapml_stages.tensorir.schedule import default_records

STACKS = {
    "1 layer 512x512": [(512, 512)],
    "4 equal layers": [(512, 512)] * 4,
    "12 equal layers": [(512, 512)] * 12,
    "4 unequal layers": [(512, 512), (512, 768), (768, 1024), (1024, 256)],
}


def measure(name: str, target: Target, trials: int, folder: Path) -> Row:
    """One row: what a run of the room measured for a stack of layers."""
    program = chain(STACKS[name], target)
    defaults = default_records(program.mod, target)
    ctx = context(folder)
    program.save(folder / "program")
    records.save(folder / "records.jsonl", defaults)
    paths = {"program": folder / "program", "records": folder / "records.jsonl"}
    tuning = Tuning(trials=1000, max_trials_per_kernel=trials, space=("tiles", "rules"))
    began = time.monotonic()
    outputs = MetaSchedule(target=target, tuning=tuning).run(Inputs(paths), ctx)
    workloads = len({record.workload for record in defaults})
    return {
        "kernels": len(defaults),
        "workloads": workloads,
        "trials": int(outputs.report.metrics["tuning/trials"]),
        "seconds": time.monotonic() - began,
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown: one row for each stack."""
    lines = ["| program | kernels | workloads | trials | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['kernels']} | {row['workloads']} | {row['trials']} "
        f"| {row['seconds']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(__doc__, "once", tuple(STACKS), measure, table, trials=24, quick=4))
