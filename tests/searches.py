"""Searches of a tuning database, made up for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tapml.stage import Device, Target
from tapml.tuning.search import Header, Identity, Search, Trial

TARGET = Target(kind="llvm", mcpu="x86-64", cores=2, device=Device(threads=1))
TRACE = json.dumps(
    [
        [
            ["GetSBlock", [], ["c", "main"], ["b0"]],
            ["GetLoops", ["b0"], [], ["l1", "l2"]],
            ["SamplePerfectTile", ["l1"], [2, 64], ["v3", "v4"]],
        ],
        [[2, [4, 8]]],
    ]
)


def trial(number: int, ms: float | None = 1.0, *, round_: int = 0) -> Trial:
    return Trial(round_, f"key{number}", TRACE, ms, "" if ms else "crashed")


def header(workload: str = "abc", kernel: str = "dense", **identity: Any) -> Header:
    facts = {"target": TARGET.model_dump_json(), "toolchain": "click 8", "space": "s", "seed": 0}
    return Header(
        identity=Identity(workload=workload, **{**facts, **identity}),
        kernel=kernel,
        func="{}",
        tir=f"def main({workload})",
        default_ms=2.0,
        host={"cpu": "a CPU", "cores": 2},
        time=1_790_000_000,
    )


def search(*trials: Trial, **facts: Any) -> Search:
    times = tuple(1_790_000_000 + number for number in range(len(trials)))
    return Search(header(**facts), trials, times)


def file_of(folder: Path, one: Search) -> Path:
    return folder / f"{one.header.identity.digest}.jsonl"
