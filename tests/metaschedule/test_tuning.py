"""The search: its budget, its database, and what is left of it after a kill."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import quantised
import small_integers
from metaschedule_programs import save, two_clones, unscheduled
from onnx import TensorProto, helper

from tapml.stage import Context, Inputs, Outputs, Target
from tapml_stages import records
from tapml_stages.metaschedule.stage import MetaSchedule, Tuning


def lines(database: Path) -> list[dict[str, Any]]:
    """Every trial on disk, torn lines left out."""
    found = []
    for file in sorted(database.glob("**/*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "trace" in row:
                found.append({**row, "file": file.name})
    return found


def run(folder: Path, target: Target, inputs: dict[str, Path], **tuning: Any) -> Outputs:
    """One run of the stage on the database in `folder`."""
    work = folder / f"work{len(list(folder.glob('work*')))}"
    work.mkdir()
    ctx = Context(work, logging.getLogger("test"), folder / "database")
    return MetaSchedule(target=target, tuning=Tuning(**tuning)).run(Inputs(inputs), ctx)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, target: Target) -> tuple[Path, Outputs]:
    """A search of 16 trials on a program whose defaults are unscheduled."""
    folder = tmp_path_factory.mktemp("tuned")
    program = two_clones()
    inputs = save(folder, program, unscheduled(program))
    return folder, run(folder, target, inputs, trials=16)


def inputs_in(folder: Path) -> dict[str, Path]:
    return {"program": folder / "program", "records": folder / "records.jsonl"}


@pytest.mark.slow
def test_the_budget_is_spent_and_a_tuned_schedule_beats_none(tuned: tuple[Path, Outputs]) -> None:
    folder, outputs = tuned
    assert len(lines(folder / "database")) == 16
    choices = records.load_choices(outputs.artifacts["choices"])
    known = {record.id: record for record in records.load(outputs.artifacts["records"])}
    chosen = {choice.kernel: known[choice.record] for choice in choices.kernels}
    assert chosen["dense_main_b32"].kind == "tuned"
    assert json.loads(chosen["dense_main_b32"].trace)
    assert any("dense_main_b32: tuning brought" in note for note in outputs.report.notes)
    assert chosen["dense_main_dyn"].kind == "tuned"  # symbolic, and tuned all the same
    assert {c.id for choice in choices.kernels for c in choice.candidates} == set(known)


@pytest.mark.slow
def test_a_tuned_record_keeps_the_attributes_of_its_kernel(tuned: tuple[Path, Outputs]) -> None:
    _, outputs = tuned
    [record] = [r for r in records.load(outputs.artifacts["records"]) if r.kind == "tuned"][:1]
    assert record.module()["dense_main_b32"].attrs["tapml.region"] == "region_0"


@pytest.mark.slow
def test_the_curve_falls_over_the_trials(tuned: tuple[Path, Outputs]) -> None:
    curve = tuned[1].report.curves[0]
    assert set(curve.lines) == {"main_b32", "main_dyn"}
    for points in curve.lines.values():
        assert [x for x, _ in points] == [float(i) for i in range(17)]
        assert all(later <= sooner for (_, sooner), (_, later) in pairwise(points))


@pytest.mark.slow
def test_a_second_run_measures_no_trial_again_and_a_raised_budget_only_the_rise(
    tuned: tuple[Path, Outputs], target: Target
) -> None:
    folder, _ = tuned
    again = run(folder, target, inputs_in(folder), trials=16)
    assert "0 measured now, 16 taken from the tuning database" in again.report.notes[0]
    more = run(folder, target, inputs_in(folder), trials=20)
    assert "4 measured now, 16 taken from the tuning database" in more.report.notes[0]
    keys = [(row["file"], row["key"]) for row in lines(folder / "database")]
    assert len(keys) == len(set(keys)) == 20


@pytest.mark.slow
def test_an_exhausted_space_is_said_so(tmp_path: Path, target: Target) -> None:
    program = two_clones()
    inputs = save(tmp_path, program, unscheduled(program))
    outputs = run(tmp_path, target, inputs, trials=40, max_trials_per_kernel=2)
    spent, _, stopped = outputs.report.notes[:3]
    # two of each, the default among them, but one way to run the elementwise one of any size
    assert spent.startswith("7 of 40 trials over 4 workloads")
    assert stopped.startswith("the search stopped before its budget: every space is exhausted")


@pytest.mark.slow
@pytest.mark.parametrize("limit_s", [1e-9, 0.01], ids=["before the first trial", "soon"])
def test_the_search_stops_when_its_time_is_up(
    tmp_path: Path, target: Target, limit_s: float
) -> None:
    program = two_clones()
    inputs = save(tmp_path, program, unscheduled(program))
    outputs = run(tmp_path, target, inputs, trials=1000, max_seconds=limit_s)
    assert f"the search stopped after {limit_s:g} s" in outputs.report.notes
    finished = len(lines(tmp_path / "database"))
    assert outputs.report.notes[0].startswith(f"{finished} of 1000 trials over 4 workloads")
    assert finished < 1000


@pytest.mark.faults
@pytest.mark.slow
def test_a_search_killed_at_three_random_moments_measures_its_budget_once(
    tmp_path: Path, target: Target
) -> None:
    program = two_clones(128, 128)
    inputs = save(tmp_path, program, unscheduled(program))
    script = f"""
import logging, sys
from pathlib import Path
from tapml.stage import Context, Inputs, Target
from tapml_stages.metaschedule.stage import MetaSchedule, Tuning
folder = Path(sys.argv[1])
stage = MetaSchedule(
    target=Target.model_validate_json({target.model_dump_json()!r}), tuning=Tuning(trials=48)
)
inputs = Inputs({{"program": folder / "program", "records": folder / "records.jsonl"}})
stage.run(inputs, Context(folder, logging.getLogger("killed"), folder / "database"))
"""
    for low, high in ((1, 15), (16, 30), (31, 47)):
        finished = random.randint(low, high)
        process = subprocess.Popen([sys.executable, "-P", "-c", script, str(tmp_path)])
        deadline = time.monotonic() + 120
        while len(lines(tmp_path / "database")) < finished:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, left = psutil.wait_procs(family, timeout=120)  # as in tests/measure
        assert not left
        assert finished <= len(lines(tmp_path / "database")) < 48
    before = len(lines(tmp_path / "database"))
    outputs = run(tmp_path, target, inputs, trials=48)
    keys = [(row["file"], row["key"]) for row in lines(tmp_path / "database")]
    assert len(keys) == len(set(keys)) == 48
    note = f"{48 - before} measured now, {before} taken from the tuning database"
    assert note in outputs.report.notes[0]


@pytest.mark.slow
def test_the_tile_of_an_instruction_is_tuned(tmp_path: Path) -> None:
    """Every trial that is another tile gives what the default gives, to the last bit."""
    where = small_integers.target("x86-64-v3")
    weights = {
        "xz": np.array(7, "uint8"),
        "w": small_integers.integers(np.random.default_rng(0), (48, 96), "int8"),
        "wz": np.array(0, "int8"),
    }
    node = helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])
    made = quantised.model([node], {"x": ((32, 48), "uint8")}, weights, TensorProto.INT32)
    model = quantised.lowered(quantised.save(made, tmp_path / "model.onnx"), where, {})
    [default] = [record for record in model.defaults if record.flops]
    assert default.rule == "tensorize"
    inputs = {
        "program": model.program.save(tmp_path / "program"),
        "records": records.save(tmp_path / "records.jsonl", model.defaults),
    }
    run(tmp_path, where, inputs, trials=8, space=("tiles",))
    first, *others = lines(tmp_path / "database")
    traces = [json.loads(row["trace"]) for row in (first, *others)]
    assert [trace["module"] for trace in traces] == ["default"] + ["tiles"] * 7
    assert all(row["ms"] for row in others)
    tiles = [trace["decisions"] for trace in traces[1:]]
    assert len({(tile["rows"], tile["cols"]) for tile in tiles}) > 3
