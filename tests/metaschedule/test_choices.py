"""The room without a search: baseline, contests, choices, records, report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from metaschedule_programs import gathered, save, save_alternatives, two_clones, unscheduled

from tapml.errors import StageError
from tapml.stage import Context, Inputs, Outputs, Target
from tapml_stages import records
from tapml_stages.measure import Arg, Job, Timing
from tapml_stages.metaschedule.choose import dense_winner, region_winner
from tapml_stages.metaschedule.contest import Entry, Rivals, baseline, contest
from tapml_stages.metaschedule.kernels import find_kernels
from tapml_stages.metaschedule.stage import MetaSchedule


def entry(kind: Any, name: str, *bursts_ms: float, error: str = "") -> Entry:
    return Entry(kind, name, Timing(name, bursts_ms, error))


def test_calls_are_counted_and_symbolic_sizes_are_put_in_the_middle() -> None:
    program = two_clones()
    kernels = {kernel.name: kernel for kernel in find_kernels(program, unscheduled(program))}
    [static] = kernels["act_main_b32"].sites
    [dynamic] = kernels["dense_main_dyn"].sites
    assert (static.count, static.clone, static.args[0]) == (2, "main_b32", Arg((32, 64), "float32"))
    assert dynamic.args[0] == Arg((8, 64), "float32")  # between 1 and 64, by ratio
    assert kernels["dense_main_dyn"].symbolic
    assert not kernels["dense_main_b32"].symbolic
    assert kernels["dense_main_b32"].region == "region_0"


def test_a_kernel_without_a_default_record_is_named() -> None:
    program = two_clones()
    with pytest.raises(StageError, match="kernel dense_main_b32 has no default schedule"):
        find_kernels(program, unscheduled(program)[:1])


def test_noise_never_replaces_the_default() -> None:
    default, tuned = entry("default", "d", 1.0, 1.0, 1.0), entry("tuned", "t", 0.99, 0.99, 0.5)
    assert dense_winner([default, tuned]) is default


def test_a_clearly_faster_tuned_record_wins_and_a_broken_one_never() -> None:
    default, fast = entry("default", "d", 1.0, 1.0), entry("tuned", "t", 0.9, 0.9)
    broken = entry("tuned", "b", error="is wrong")
    assert dense_winner([default, broken, fast]) is fast


@pytest.mark.parametrize(
    ("choose", "sparse_ms", "winner"),
    [
        ("measured", 0.5, "s"),
        ("measured", 0.99, "d"),
        ("measured", 2.0, "d"),
        ("sparse", 2.0, "s"),
        ("dense", 0.5, "d"),
    ],
)
def test_the_recipe_or_the_measurement_chooses(choose: Any, sparse_ms: float, winner: str) -> None:
    dense, sparse = entry("default", "d", 1.0, 1.0), entry("sparse", "s", sparse_ms, sparse_ms)
    assert region_winner([dense, sparse], dense, choose).id == winner


def test_sparse_that_does_not_work_is_not_even_chosen_by_force() -> None:
    dense, sparse = entry("default", "d", 1.0), entry("sparse", "s", error="crashed")
    assert region_winner([dense, sparse], dense, "sparse") is dense


@dataclass(frozen=True)
class Run:
    """A finished run and what it left."""

    outputs: Outputs
    choices: records.Choices
    records: list[records.Record]
    progress: list[dict[str, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Run:
    """A run on a region with a fast and a slow alternative, one for another size, and one for the
    size at which the symbolic clone is timed.
    """
    folder = tmp_path_factory.mktemp("choices")
    program = two_clones()
    kept = {"fast": 4, "slow": 64, "other_size": 4, "middle": 4}
    funcs = {
        "fast": gathered(32, 64, 64, 4),
        "slow": gathered(32, 64, 64, 64, work=4),
        "other_size": gathered(16, 64, 64, 4),
        "middle": gathered(8, 64, 64, 4),
    }
    inputs = save(folder, program, unscheduled(program))
    inputs |= save_alternatives(folder, funcs, kept)
    (folder / "work").mkdir()
    log = folder / "progress.jsonl"
    ctx = Context(folder / "work", logging.getLogger("t"), folder / "db", progress_file=log)
    outputs = MetaSchedule(target=target).run(Inputs(inputs), ctx)
    return Run(
        outputs,
        records.load_choices(outputs.artifacts["choices"]),
        records.load(outputs.artifacts["records"]),
        [json.loads(line) for line in log.read_text().splitlines()],
    )


def test_every_kernel_has_a_choice_a_time_and_its_record(run: Run) -> None:
    assert {choice.kernel for choice in run.choices.kernels} == {
        f"{kind}_{clone}" for kind in ("dense", "act") for clone in ("main_b32", "main_dyn")
    }
    known = {record.id: record for record in run.records}
    for choice in run.choices.kernels:
        [candidate] = choice.candidates
        assert candidate.id == choice.record
        assert known[choice.record].ms == candidate.ms
        assert candidate.ms is not None
        assert candidate.ms > 0


def test_the_fastest_implementation_of_a_region_is_chosen_in_each_clone(run: Run) -> None:
    chosen = {choice.clone: choice for choice in run.choices.regions}
    assert chosen["main_b32"].chosen == "region_0.fast"
    assert chosen["main_dyn"].chosen == "dense"
    measured = {c.id: c.ms for c in chosen["main_b32"].candidates if c.kind == "sparse"}
    assert measured.keys() == {"region_0.fast", "region_0.slow"}  # the other is for other sizes


def test_the_report_says_what_sparsity_brought_and_where_time_goes(run: Run) -> None:
    report = run.outputs.report
    assert any("sparsity brought" in note and "region_0.fast" in note for note in report.notes)
    kernels, after, rules, regions = report.tables
    assert after.title == "What to tune next"
    share, clone = kernels.columns.index("share %"), kernels.columns.index("clone")
    for name in ("main_b32", "main_dyn"):
        assert sum(
            float(row[share] or 0) for row in kernels.rows if str(row[clone]).startswith(name)
        ) == (pytest.approx(100, abs=0.1))
    assert ("main_dyn", "none") in {row[:2] for row in rules.rows}
    assert regions.rows[0][:3] == ("region_0", "main_b32", "region_0.fast")
    assert report.metrics["kernels/main_b32_ms"] > 0
    assert report.metrics["limits/fma_gflops"] > 0
    symbolic = [row for row in after.rows if row[1] == "main_dyn"]
    assert all(row[-1] == "tuning: {trials: 64}" for row in symbolic)
    assert [bars.title.split(";")[0] for bars in report.bars] == [
        "Time by kernel, main_b32",
        "Time by kernel, main_dyn at batch 8",
    ]
    dots = {dot.name: dot for dot in report.scatters[1].dots}
    assert dots["dense_main_dyn"].x == pytest.approx(
        2 * 8 * 64 * 64 / (4 * (8 * 64 + 64 * 64 + 8 * 64))
    )


class Failing:
    """A bench on which nothing runs."""

    def run(self, jobs: Sequence[Job], *, seconds: float) -> Iterator[Timing]:
        return (Timing(job.id, error="crashed") for job in jobs)


def test_defaults_that_fail_alone_are_all_named(context: Context) -> None:
    program = two_clones()
    kernels = find_kernels(program, unscheduled(program))
    with pytest.raises(StageError, match="default schedules fail") as told:
        baseline(Failing(), kernels, context)  # pyright: ignore[reportArgumentType]  # no workers
    assert all(kernel.name in told.value.message for kernel in kernels)


def test_a_default_that_fails_in_a_contest_only_is_kept(context: Context) -> None:
    program = two_clones()
    kernels = find_kernels(program, unscheduled(program))
    rivals = Rivals({kernel.name: [kernel.default] for kernel in kernels})
    assert contest(Failing(), kernels, rivals, context) == {}  # pyright: ignore[reportArgumentType]  # no workers


def test_progress_reaches_its_total(run: Run) -> None:
    last = [line for line in run.progress if line["note"] == "default schedules"][-1]
    assert last["done"] == last["total"] == 4


@pytest.mark.slow
def test_a_default_schedule_that_fails_is_named(
    tmp_path: Path, target: Target, context: Context
) -> None:
    program = two_clones()
    defaults = unscheduled(program)
    broken = [replace(defaults[0], func=defaults[1].func), *defaults[1:]]
    inputs = Inputs(save(tmp_path, program, broken))
    with pytest.raises(StageError, match=f"{defaults[0].kernel} in main_.* does not build"):
        MetaSchedule(target=target).run(inputs, context)
