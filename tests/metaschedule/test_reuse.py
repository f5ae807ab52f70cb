"""`tuning.reuse`: what was tuned before ships without a search, and a search starts from it."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metaschedule_programs import matmul, relax, save, two_clones
from scipy.stats import spearmanr

from tapml.errors import StageError
from tapml.stage import Context, File, Inputs, Outputs, Target
from tapml.tuning import database
from tapml.tuning.search import Search, Trial
from tapml_stages import records
from tapml_stages.metaschedule.cost_model import CostModel
from tapml_stages.metaschedule.database import describe
from tapml_stages.metaschedule.experience import load
from tapml_stages.metaschedule.explorer import DEFAULT, made_by
from tapml_stages.metaschedule.kernels import Kernel
from tapml_stages.metaschedule.pretraining import Lessons, teach
from tapml_stages.metaschedule.reuse import Reuse
from tapml_stages.metaschedule.search import RuleSearch
from tapml_stages.metaschedule.stage import MetaSchedule, Reused, Tuning
from tapml_stages.search_modules import Variants
from tapml_stages.search_modules import load as modules
from tapml_stages.target import tvm_target
from tapml_stages.tensorir.schedule import schedule

pytestmark = pytest.mark.slow
TILES = ("tiles",)


def inputs(folder: Path, target: Target, k: int, n: int) -> dict[str, Path]:
    """A program whose default schedules are those of the rules."""
    program = two_clones(k, n)
    defaults = []
    for gv, func in program.mod.functions_items():
        if not isinstance(func, relax.Function):
            scheduled, rule = schedule(func, target)
            defaults.append(
                records.make(gv.name_hint, func, scheduled, kind="default", rule=rule, flops=1.0)
            )
    folder.mkdir()
    return save(folder, program, defaults)


def run(
    folder: Path, target: Target, given: dict[str, Path], reused: Reused | None, trials: int
) -> Outputs:
    work = folder / f"work{len(list(folder.glob('work*')))}"
    work.mkdir(parents=True)
    ctx = Context(work, logging.getLogger("test"), folder / "database")
    tuning = Tuning(trials=trials, space=TILES)
    return MetaSchedule(target=target, tuning=tuning, reused=reused).run(Inputs(given), ctx)


def reused(folder: Path, *searches: Search, **facts: Any) -> Reused:
    path = folder / f"export{len(list(folder.glob('export*')))}.jsonl"
    database.export(searches, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Reused(source=File(path=str(path), sha256=digest), **facts)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Path:
    """The folder of a search of 40 trials, its database in it."""
    folder = tmp_path_factory.mktemp("tuned")
    run(folder, target, inputs(folder / "inputs", target, 64, 64), None, 40)
    return folder


@pytest.fixture(scope="module")
def searches(tuned: Path) -> tuple[Search, ...]:
    """What it found, the best trial of each kernel as if it had been four times faster."""

    def boosted(one: Search) -> Search:
        own = [trial for trial in one.ranked if made_by(trial) != DEFAULT]
        if not own:
            return one
        fast = replace(own[0], ms=one.header.default_ms / 4)
        return replace(one, trials=tuple(fast if t == own[0] else t for t in one.trials))

    return tuple(map(boosted, database.load(tuned / "database").searches))


def candidates(outputs: Outputs, kernel: str) -> list[records.Candidate]:
    choices = records.load_choices(outputs.artifacts["choices"])
    (found,) = [one.candidates for one in choices.kernels if one.kernel == kernel]
    return list(found)


def test_the_best_of_an_equal_workload_meets_the_default_with_no_trial(
    tmp_path: Path, target: Target, tuned: Path, searches: tuple[Search, ...]
) -> None:
    given = {"program": tuned / "inputs/program", "records": tuned / "inputs/records.jsonl"}
    reuse = Reuse(load(reused(tmp_path, *searches), target), {}, {})
    (dense,) = [one for one in searches if one.header.kernel == "dense_main_b32"]
    (best, *_) = reuse.trials(dense.header.identity.workload, None, {})
    assert best.key == dense.ranked[0].key
    assert best.ms == pytest.approx(0.25)
    outputs = run(tmp_path, target, given, reused(tmp_path, *searches), 0)
    assert not list(tmp_path.glob("database/*.jsonl"))
    assert "reuse: schedules for" in "\n".join(outputs.report.notes)
    assert all(c.ms is not None for c in candidates(outputs, "dense_main_b32"))


def test_decisions_of_another_size_are_tried_and_a_search_starts_with_them(
    tmp_path: Path, target: Target, searches: tuple[Search, ...]
) -> None:
    given = inputs(tmp_path / "inputs", target, 96, 160)
    source = reused(tmp_path, *searches)
    outputs = run(tmp_path, target, given, source, 0)
    (note,) = [note for note in outputs.report.notes if "similar ones" in note]
    assert not note.endswith("for 0 similar ones")
    run(tmp_path, target, given, source, 16)
    found = database.load(tmp_path / "database").searches
    assert {one.header.identity.learned for one in found} == {source.digest}
    first = [trial for one in found for trial in one.trials if trial.round == 1]
    past = {json.dumps(json.loads(t.trace)["decisions"]) for s in searches for t in s.trials}
    assert first
    assert {json.dumps(json.loads(trial.trace)["decisions"]) for trial in first} & past


def test_records_of_another_target_or_toolchain_are_left_out_and_told(
    tmp_path: Path, target: Target, searches: tuple[Search, ...]
) -> None:
    def foreign(one: Search, **facts: str) -> Search:
        identity = replace(one.header.identity, **facts)
        return replace(one, header=replace(one.header, identity=identity))

    wider = target.model_copy(update={"vector_bits": 512}).model_dump_json()
    source = reused(
        tmp_path,
        *(foreign(one, target=wider) for one in searches),
        *(foreign(one, toolchain="apache-tvm 0.1") for one in searches),
    )
    found = load(source, target)
    assert found.pasts == ()
    left_out = f"{2 * len(searches)} searches of another target or toolchain are left out"
    assert f"reuse: {left_out}" in found.notes


def test_a_search_that_holds_another_primfunc_than_it_says_is_left_out(
    tmp_path: Path, target: Target, searches: tuple[Search, ...]
) -> None:
    one, other = (s for s in searches if s.header.kernel.startswith("dense"))
    lying = replace(one, header=replace(one.header, func=other.header.func))
    broken = replace(other, header=replace(other.header, func="{}"))
    found = load(reused(tmp_path, lying, broken), target)
    assert found.pasts == ()
    assert any("hold another PrimFunc than they say" in note for note in found.notes)


def test_a_database_that_changed_since_the_plan_is_refused(
    tmp_path: Path, target: Target, searches: tuple[Search, ...]
) -> None:
    source = reused(tmp_path, *searches)
    with Path(source.source.path).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(StageError, match="has changed since the run was planned"):
        load(source, target)


def test_the_cost_model_learns_from_others_and_ranks_what_they_measured(
    tmp_path: Path, target: Target, searches: tuple[Search, ...]
) -> None:
    experience = load(reused(tmp_path, *searches), target)
    space_of = {n: m for n, m in modules(TILES).items() if isinstance(m, Variants)}
    models: dict[str, CostModel | None] = {"tiles": CostModel()}
    count = teach(models, space_of, experience)
    own = [t for s in searches for t in s.trials if made_by(t) == "tiles"]
    assert count == len(own) > 0
    model = models["tiles"]
    assert model is not None
    rows = [
        (past.relative(trial.ms), space.features(json.loads(trial.trace)["decisions"]))
        for past, space in experience.spaces("tiles", space_of["tiles"])
        for trial in past.search.ranked
        if made_by(trial) == "tiles"
    ]
    features = [one for _, one in rows]
    foretold = model.predict(features)
    assert foretold is not None
    assert spearmanr([ms for ms, _ in rows], foretold).statistic > 0.5
    again = CostModel()
    teach({"tiles": again}, space_of, load(reused(tmp_path, *searches), target))
    np.testing.assert_array_equal(again.predict(features), foretold)


def test_metaschedules_own_model_is_taught_the_same_by_the_same_trials(
    tmp_path: Path, target: Target
) -> None:
    def search(size: int, lessons: Lessons | None = None) -> RuleSearch:
        names = ("multi-level-tiling", "parallel-vectorize-unroll")
        rules = [rule for one in modules(names).values() for rule in one.rules(target)]  # pyright: ignore[reportAttributeAccessIssue]  # these are rules
        func = matmul(size, size, size)
        logger = logging.getLogger("test")
        return RuleSearch(
            func, lambda: rules, tvm_target(target), 0, lambda made: made, logger, lessons=lessons
        )

    func = matmul(64, 64, 64)
    record = records.make("dense", func, func, kind="default", rule="none", flops=1.0)
    header = describe(Kernel("dense", func, record, (), "", False), target, "s", 0, 1.0)
    trials = [
        Trial(1, one.key, one.trace, 0.1 + 0.05 * number)
        for number, one in enumerate(search(64).propose(0, [], 20))
    ]
    past = Search(header, tuple(trials), (0,) * len(trials))
    source = reused(tmp_path, past)
    taught = [Lessons(load(source, target)) for _ in range(2)]
    assert [one.count for one in taught] == [20, 20]
    first, again = ([p.key for p in search(32, lessons).propose(0, [], 16)] for lessons in taught)
    assert first == again
    assert first != [p.key for p in search(32).propose(0, [], 16)]


def test_two_recipes_with_an_equal_kernel_measure_its_schedules_once(
    tmp_path: Path, target: Target
) -> None:
    """Two buckets or recipes of one plan share the database of their store."""
    first = run(tmp_path, target, inputs(tmp_path / "a", target, 48, 48), None, 24)
    again = run(tmp_path, target, inputs(tmp_path / "b", target, 48, 48), None, 24)
    assert "24 measured now" in "\n".join(first.report.notes)
    assert "0 measured now, 24 taken from the tuning database" in "\n".join(again.report.notes)
