"""What runs beside what on one machine: never more than fits at once."""

from itertools import pairwise

import pytest

from tapml import admission, host
from tapml.admission import Machine
from tapml.errors import EnvironmentalError
from tapml.stage import Resources

ONE, BIG, ALONE = Resources(), Resources(memory_mib=400), Resources(exclusive=True)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine another: cores, GPUs, MiB in all and free."""
    free = [1000.0]

    def make(cores=4, gpus=0, memory=1000.0):
        free[0] = memory
        monkeypatch.setattr(host, "threads", lambda: cores)
        monkeypatch.setattr(host, "gpus", lambda: gpus)
        monkeypatch.setattr(
            host, "memory_mib", lambda which: memory if which == "MemTotal" else free[0]
        )
        return free

    return make


def test_cores_are_promised_until_they_are_given_back(machine):
    machine(cores=4)
    place, need = Machine(2, "a test"), Resources(cpu=3)
    assert place.enter(need)
    assert place.lacks(need) == "3 cores (1 there)"
    assert not place.lacks(ONE)
    place.leave(need)
    assert not place.lacks(need)


def test_with_more_slots_than_cores_cores_do_not_bind(machine):
    machine(cores=2)
    place = Machine(3, "a test")
    for _ in range(3):
        assert not place.lacks(ONE)
        assert place.enter(ONE)


def test_memory_that_is_promised_counts_before_it_is_used(machine):
    machine(memory=1000)
    place = Machine(4, "a test")
    assert place.enter(BIG)
    assert place.enter(BIG)
    assert place.lacks(BIG) == "400 MiB of memory (200 there)"
    assert not place.lacks(ONE)


def test_memory_that_other_programs_took_is_not_there(machine):
    free = machine(memory=1000)
    place = Machine(4, "a test")
    assert place.enter(BIG)
    free[0] = 300.0
    assert place.lacks(BIG) == "400 MiB of memory (300 there)"
    free[0] = 1000.0
    assert not place.lacks(BIG)


def test_memory_is_looked_at_anew_when_nothing_runs(machine):
    free = machine(memory=1000)
    place = Machine(4, "a test")
    free[0] = 500.0
    assert not place.lacks(BIG)
    place.enter(BIG)
    assert place.lacks(BIG) == "400 MiB of memory (100 there)"
    place.leave(BIG)
    free[0] = 900.0
    place.lacks(BIG)
    place.enter(BIG)
    assert not place.lacks(BIG)


def test_what_runs_alone_waits_for_the_others_and_they_for_it(machine):
    machine()
    place = Machine(4, "a test")
    place.enter(ONE)
    assert place.lacks(ALONE) == "the end of what runs"
    place.leave(ONE)
    assert not place.lacks(ALONE)
    assert place.enter(ALONE)
    assert place.lacks(ONE) == "the end of what runs"


def test_another_run_that_is_alone_stands_in_the_way_until_it_ends(machine):
    machine()
    first, second = Machine(2, "the first"), Machine(2, "the second")
    assert first.enter(ALONE)
    assert not second.enter(ONE)
    assert second.obstacle == "the first"
    first.leave(ALONE)
    assert second.enter(ONE)
    assert not first.enter(ALONE)
    second.leave(ONE)
    assert first.enter(ALONE)


def test_who_only_waited_to_be_alone_lets_the_others_in_when_it_ends(machine):
    machine()
    first, second, third = (Machine(2, name) for name in ("one", "two", "three"))
    assert first.enter(ONE)
    assert not second.enter(ALONE)
    assert not third.enter(ONE)  # it would starve the second
    second.close()
    assert third.enter(ONE)


def test_threads_are_the_share_of_a_slot_or_all(machine):
    machine(cores=8)
    place = Machine(3, "a test")
    assert place.threads(ONE) == 2
    assert place.threads(ALONE) == 8
    assert Machine(16, "a test").threads(ONE) == 1


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Big", r"needs 300 MiB of memory \(200 there\)"),
        ("Graphic", r"needs 1 GPUs \(0 there\)"),
        ("Wide", r"needs 2 cores \(1 there\)"),
    ],
)
def test_a_stage_that_asks_for_more_than_there_is_at_all_is_refused_before_anything_runs(
    bench, stages, graph, tmp_path, machine, kind, told
):
    machine(cores=1, memory=200.0)
    counter = tmp_path / "count"
    made = graph(
        text=(stages.Text(counter=str(counter)), {}),
        greedy=(getattr(stages, kind)(act="nothing"), {"a": ("text", "out")}),
    )
    with pytest.raises(EnvironmentalError, match=f"stage greedy {told}") as caught:
        bench.run(made, jobs=1)
    assert caught.value.exit_code == 3
    assert not counter.exists()
    assert not list((bench.store.root / "runs").glob("*"))


def test_a_stage_whose_result_is_there_asks_for_nothing(bench, stages, graph, machine):
    machine(memory=400.0)
    made = graph(big=(stages.Big(act="nothing"), {}))
    assert bench.run(made).exit_code == 0
    machine(memory=200.0)
    assert bench.run(made, jobs=1).steps["big"].state == "hit"


def test_slots_are_one_where_a_stage_has_to_be_alone(bench, stages, graph, machine):
    machine(cores=4)
    shared = bench.plan(graph(a=(stages.Text(), {})))
    alone = bench.plan(graph(a=(stages.Text(), {}), b=(stages.Alone(act="nothing"), {})))
    assert admission.slots(shared, None) == 4
    assert admission.slots(alone, None) == 1
    assert admission.slots(alone, 3) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "at_once"), [("Big", 2), ("Wide", 2), ("Graphic", 2), ("Act", 4), ("Alone", 1)]
)
def test_never_more_than_fits_runs_at_once(bench, stages, graph, machine, tmp_path, kind, at_once):
    machine(cores=5, gpus=2, memory=700.0)
    spans = tmp_path / "spans"
    nodes = {
        f"s{n}": (
            getattr(stages, kind)(act="span", arg=str(spans), mark=str(tmp_path / f"m{n}")),
            {},
        )
        for n in range(5)
    }
    assert bench.run(graph(**nodes), jobs=4, threads=1).exit_code == 0
    rows = [tuple(map(float, line.split()[1:])) for line in spans.read_text().splitlines()]
    assert len(rows) == 5
    moments = sorted([(begin, 1) for begin, _ in rows] + [(end, -1) for _, end in rows])
    running = [0]
    for _, change in moments:
        running.append(running[-1] + change)
    assert max(running) <= at_once
    assert max(running) > 1 or at_once == 1
    assert all(abs(b - a) == 1 for a, b in pairwise(running))


@pytest.mark.slow
def test_a_stage_waits_with_a_note_for_memory_that_others_have(
    bench, stages, graph, machine, monkeypatch
):
    machine()
    free = iter([100.0] * 3)
    monkeypatch.setattr(
        host, "memory_mib", lambda which: 1000.0 if which == "MemTotal" else next(free, 1000.0)
    )
    result = bench.run(graph(big=(stages.Big(act="nothing"), {})), jobs=1)
    assert result.steps["big"].state == "ran"
    notes = [getattr(event, "note", "") for event in bench.events]
    assert "waits for 300 MiB of memory (100 there)" in notes
