"""What is tried next: by modules, by what was learned, by what is left to win."""

from __future__ import annotations

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metaschedule_programs import matmul
from searches import header

from tapml.errors import RecipeError
from tapml.stage import Context, Target
from tapml_stages import search_modules
from tapml_stages.measure import Timing
from tapml_stages.metaschedule.contest import has_drifted
from tapml_stages.metaschedule.cost_model import LEAST, CostModel
from tapml_stages.metaschedule.database import SearchFile, Trial
from tapml_stages.metaschedule.explorer import RULES, Explorer, trace_of
from tapml_stages.metaschedule.spaces import Spaces
from tapml_stages.metaschedule.stage import MetaSchedule, Tuning
from tapml_stages.metaschedule.task import BATCH, FLAT_ROUNDS, Task
from tapml_stages.metaschedule.tune import kind_of
from tapml_stages.metaschedule.turns import EVERY, Explorers, next_task
from tapml_stages.metaschedule.variants import VariantSearch
from tapml_stages.records import make, workload_hash
from tapml_stages.search_modules import Space

TESTS = Path(__file__).parent


def explorers(target: Target, **tuning: Any) -> dict[str, Explorer]:
    """What searches the space of a small product."""
    from tapml_stages.metaschedule.kernels import Kernel

    func = matmul(32, 32, 32)
    record = make("k", func, func, kind="default", rule="none")
    kernel = Kernel("k", func, record, (), "", symbolic=False)
    ctx = Context(Path(), logging.getLogger("test"), Path())
    return Spaces(Tuning(trials=1, **tuning), target, ctx).open(kernel)


def task(name: str, ms: float, *, part: float = 0.5, modules: tuple[str, ...] = ("a", "b")) -> Task:
    """A started search of a kernel that takes `ms`, whose spaces never end."""
    from tapml_stages.metaschedule.kernels import Kernel, Site

    func = matmul(2, 2, 2)
    site = Site("main", (), 1)
    record = make(name, func, func, kind="default", rule="none")
    made = Task(
        kernels=[Kernel(name, func, record, (site,), "", symbolic=False)],
        site=site,
        file=SearchFile(Path("nowhere"), header()),
        open_spaces=dict,
        default=Trial(0, name, trace_of("default", {}), ms),
        default_func=func,
        part=part,
        rounds=1,
        bests=[ms],
        explorers=dict.fromkeys(modules),  # pyright: ignore[reportArgumentType]  # never asked
        open=list(modules),
    )
    made.trials.append(made.default)
    return made


def gain(one: Task, ms: float) -> None:
    """A round that makes the best time `ms`."""
    one.trials.append(Trial(one.rounds, f"{one.rounds}", trace_of("a", {}), ms))
    one.bests.append(one.best_ms)
    one.rounds += 1


def test_the_default_space_is_installed_and_holds_our_modules_and_metaschedules() -> None:
    modules = search_modules.load(Tuning().space)
    kinds = {name: type(module).__name__ for name, module in modules.items()}
    assert kinds["tiles"] == kinds["rules"] == "Variants"
    assert kinds["multi-level-tiling"] == "ScheduleRules"


def test_a_module_that_is_not_installed_is_a_mistake_in_the_recipe_with_those_that_are() -> None:
    with pytest.raises(RecipeError, match="unknown search module 'tile'") as caught:
        search_modules.demand(("tiles", "tile"))
    assert caught.value.exit_code == 2
    assert caught.value.field == "tuning.space.1"
    assert "multi-level-tiling" in caught.value.hint
    assert "tiles" in caught.value.hint


def test_a_module_is_listed_once() -> None:
    with pytest.raises(RecipeError, match="'tiles' is listed twice"):
        search_modules.demand(("tiles", "rules", "tiles"))


def test_the_digest_of_another_packages_module_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = tmp_path / "own_space", tmp_path / "own_space-1.dist-info"
    for folder in (package, info):
        folder.mkdir()
    (package / "__init__.py").write_text("MODULE = None\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-space\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tapml.search_modules]\nown = own_space:MODULE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = MetaSchedule.tool_versions()
    assert set(before) == {"own"}
    assert "own" in search_modules.names()
    (package / "__init__.py").write_text("MODULE = 1\n")
    assert MetaSchedule.tool_versions() != before


def test_where_most_is_to_be_won_has_the_first_turn_and_a_flat_search_ends() -> None:
    large, small, fast = task("large", 9.0), task("small", 1.0), task("fast", 5.0, part=1.0)
    tasks = [small, fast, large]
    assert next_task(tasks, 99) is large
    for _ in range(FLAT_ROUNDS + 1):
        gain(large, 9.0)
    assert large.is_flat
    assert next_task(tasks, 99) is fast
    for one in (small, fast):
        one.open.clear()
    assert next_task(tasks, 99) is None


def test_a_search_that_wins_is_not_left_and_shares_its_time_with_one_that_may() -> None:
    winning, still = task("winning", 4.0), task("still", 4.0)
    for ms in (3.5, 3.0, 2.5):
        gain(winning, ms)
    for _ in range(3):
        gain(still, 4.0)
    assert next_task([still, winning], 99) is winning


def test_no_kernel_gets_more_trials_than_its_cap() -> None:
    first, second = task("first", 9.0), task("second", 1.0)
    gain(first, 8.0)
    assert next_task([first, second], 2) is second


def test_the_module_that_gains_gets_the_rounds_and_none_is_left_out_for_long() -> None:
    one, chooser = task("one", 9.0, modules=("a", "b", "c")), Explorers()
    asked = []
    for _ in range(4 * EVERY):
        name = chooser.choose(one)
        asked.append(name)
        chooser.learn(name, 1.0, 0.9 if name == "b" else 1.0)
    counts = {name: asked.count(name) for name in "abc"}
    assert counts["b"] > 3 * EVERY - 6
    assert min(counts.values()) >= 3


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("does not build: InternalError: no such loop", "does not build"),
        ("crashed (SIGSEGV) while it was run: core dumped", "crashed"),
        ("no answer in 30 s while it was built", "no answer"),
        ("is wrong: off by 3.1e-01 of the largest value", "is wrong"),
        ("does not write all of its output", "does not write all of its output"),
    ],
)
def test_errors_are_counted_by_kind(error: str, kind: str) -> None:
    assert kind_of(error) == kind


def test_a_machine_that_became_slower_is_noticed_and_an_outlier_is_not() -> None:
    assert has_drifted(Timing("a", (1.0,) * 10 + (1.3,) * 20))
    assert not has_drifted(Timing("a", (1.0, 1.01) * 10 + (2719.0,) + (1.0, 1.02) * 5))
    assert not has_drifted(Timing("a", error="crashed"))


@pytest.mark.slow  # xgboost is imported
def test_the_cost_model_ranks_what_it_was_not_shown() -> None:
    rng = np.random.default_rng(0)
    model = CostModel()
    points = rng.uniform(1, 8, (200, 3))

    def relative(point: np.ndarray) -> float:
        return float(0.5 + (point[0] - 3) ** 2 / 10 + point[1] / 20)

    assert model.predict(points[:5].tolist()) is None
    for point in points[:160]:
        model.add(point.tolist(), relative(point))
    expected = model.predict(points[160:].tolist())
    assert expected is not None
    best = points[160:][int(np.argmin(expected))]
    ranked = sorted(map(relative, points[160:]))
    assert relative(best) <= ranked[4]


@pytest.mark.slow  # xgboost is imported
def test_a_failed_trial_is_expected_to_fail_again() -> None:
    model = CostModel()
    for number in range(LEAST):
        model.add([float(number % 2)], None if number % 2 else 0.9)
    expected = model.predict([[0.0], [1.0]])
    assert expected is not None
    assert expected[0] < expected[1]


def grid() -> Space:
    """Products of several sizes as schedules of one: the time of (i, j) is known."""
    return Space(
        knobs={"i": tuple(range(1, 25)), "j": tuple(range(1, 25)), "k": tuple(range(16))},
        default={"i": 1, "j": 1, "k": 0},
        build=lambda d: matmul(int(d["i"]), int(d["j"]), int(d["k"]) + 1),
        legal=lambda d: (int(d["i"]) + int(d["j"])) % 3 > 0,
        features=lambda d: (float(d["i"]), float(d["j"]), float(d["k"])),
    )


def grid_time(point: dict[str, int]) -> float:
    away = abs(point["i"] - 17) + abs(point["j"] - 6) + abs(point["k"] - 9)
    return 1 + 0.05 * away


@pytest.mark.slow  # xgboost is imported
def test_a_search_comes_nearer_to_the_best_than_lots_do() -> None:
    search = VariantSearch("grid", grid(), CostModel(), 0, lambda func: func)
    known: list[Trial] = []
    for number in range(1, 13):
        proposals = search.propose(number, known, BATCH)
        assert len({p.key for p in proposals} - {t.key for t in known}) == BATCH
        for proposal in proposals:
            ms = grid_time(json.loads(proposal.trace)["decisions"])
            known.append(Trial(number, proposal.key, proposal.trace, ms))
            search.observe(known[-1], ms)
    rng = random.Random(0)
    knobs = grid().knobs

    def lot() -> float:
        return grid_time({name: int(rng.choice(options)) for name, options in knobs.items()})

    lots = sorted(min(lot() for _ in known) for _ in range(21))
    assert min(t.ms or math.inf for t in known) < lots[10]  # the middle case


def test_a_small_space_is_exhausted_and_nothing_is_proposed_twice() -> None:
    space = Space(
        knobs={"i": (1, 2, 3), "j": (1, 2)},
        default={"i": 1, "j": 1},
        build=lambda d: matmul(int(d["i"]), int(d["j"]), 1) if d["i"] != 3 else None,
        legal=lambda d: True,
        features=lambda d: (float(d["i"]),),
    )
    search = VariantSearch("small", space, CostModel(), 0, lambda func: func)
    first = search.propose(1, [], BATCH)
    known = [Trial(1, p.key, p.trace, 1.0) for p in first]
    assert len(first) == 3  # two options of i that can be built, twice, less the default
    assert search.propose(2, known, BATCH) == []


def test_a_trial_is_made_again_from_its_decisions_and_not_from_those_of_another_day(
    target: Target,
) -> None:
    search = explorers(target, space=("tiles",))["tiles"]
    proposal = search.propose(1, [], 1)[0]
    trial = Trial(1, proposal.key, proposal.trace, 1.0)
    again = search.scheduled(trial)
    assert again is not None
    assert workload_hash(again) == proposal.key
    assert search.scheduled(Trial(1, "another", proposal.trace, 1.0)) is None
    assert search.scheduled(Trial(1, "older", trace_of("tiles", {"rows": 1}), 1.0)) is None


@pytest.mark.slow
def test_metaschedules_rounds_follow_from_the_rounds_before_and_are_made_again(
    target: Target,
) -> None:
    search = explorers(target)[RULES]
    first = search.propose(1, [], BATCH)
    assert len({proposal.key for proposal in first}) == BATCH
    known = [Trial(1, p.key, p.trace, 1.0 + i / 10) for i, p in enumerate(first)]
    second = search.propose(2, known, BATCH)
    fresh = explorers(target)[RULES]
    assert [p.key for p in fresh.propose(2, known, BATCH)] == [p.key for p in second]
    assert not {p.key for p in second} & {p.key for p in first}
    again = fresh.scheduled(known[0])
    assert workload_hash(again) == first[0].key


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "learned"])
def test_two_processes_try_the_same_schedules_in_the_same_order(strategy: str) -> None:
    script = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]
from tapml.stage import Device, Target
from test_search import explorers
target = Target(kind="llvm", mcpu="x86-64-v3", cores=2, device=Device(threads=1))
for name, one in sorted(explorers(target, strategy={strategy!r}, seed=3).items()):
    for proposal in one.propose(1, [], 4):
        print(name, proposal.key, proposal.trace)
"""
    runs = [
        subprocess.run(
            [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    first, second = (run.stdout.splitlines() for run in runs)
    assert first == second
    assert {line.split()[0] for line in first} == {"tiles", "rules", RULES}
