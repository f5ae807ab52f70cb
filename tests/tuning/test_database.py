"""A database: searches in a folder or an export; merged, pruned, damaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import TRACE, file_of, header, search, trial

from tapml.errors import RecipeError
from tapml.tuning import database, lines
from tapml.tuning.search import Search, SearchFile, Trial

trials = st.lists(
    st.builds(
        Trial,
        round=st.integers(0, 3),
        key=st.sampled_from("abcdefgh"),
        trace=st.just(TRACE),
        ms=st.none() | st.floats(1e-6, 1e3),
        error=st.text(max_size=5),
    ),
    max_size=6,
    unique_by=lambda one: one.key,
)
few = settings(max_examples=30)


def loaded(folder: Path) -> Sequence[Search]:
    found = database.load(folder)
    assert found.faults == ()
    return found.searches


def test_trials_are_read_back_in_order_failures_included(tmp_path: Path) -> None:
    file = SearchFile(tmp_path, header())
    file.add(trial(1))
    file.add(trial(2, None))
    file.add(trial(1, 5.0))  # the same schedule again
    assert SearchFile(tmp_path, header()).trials() == [trial(1), trial(2, None)]
    (one,) = loaded(tmp_path)
    assert one.trials == (trial(1), trial(2, None))
    assert one.best_ms == 1.0


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"target": "{}"}, {"toolchain": "click 9"}, {"learned": "x"}]
)
def test_another_seed_target_toolchain_or_teacher_is_another_search(
    tmp_path: Path, other: dict[str, object]
) -> None:
    SearchFile(tmp_path, header()).add(trial(1))
    assert SearchFile(tmp_path, header(**other)).trials() == []


def test_the_default_time_of_the_first_run_is_kept(tmp_path: Path) -> None:
    assert SearchFile(tmp_path, header()).default_ms() == 2.0
    assert SearchFile(tmp_path, replace(header(), default_ms=3.0)).default_ms() == 2.0
    assert SearchFile(tmp_path, header()).trials() == []


def test_a_curve_falls_from_the_default(tmp_path: Path) -> None:
    one = search(trial(1, 3.0), trial(2, 1.5), trial(3, None), trial(4, 1.6), trial(5, 0.5))
    assert one.curve == [(0, 2.0), (2, 1.5), (5, 0.5)]


def test_damaged_lines_are_told_and_cost_themselves_only(tmp_path: Path) -> None:
    whole = search(*(trial(number) for number in range(4)))
    database.merge(tmp_path, [whole])
    path = file_of(tmp_path, whole)
    rows = path.read_bytes().splitlines(keepends=True)
    rows[2] = rows[2].replace(b'"ms": 1.0', b'"ms": 9.0')  # plausible, and not what was written
    path.write_bytes(b"".join(rows)[:-5])
    found = database.load(tmp_path)
    assert [one.key for one in found.searches[0].trials] == ["key0", "key2"]
    assert found.faults == (f"{path}: line 3, 5 is torn or damaged; all others count",)
    (change,) = database.prune(tmp_path, lambda one: one)
    assert (change.before, change.after) == (2, 2)
    assert len(loaded(tmp_path)[0].trials) == 2


def test_a_file_that_lost_its_first_line_is_told_and_left_out(tmp_path: Path) -> None:
    one = search(trial(1))
    database.merge(tmp_path, [one, search(trial(1), workload="other")])
    path = file_of(tmp_path, one)
    path.write_bytes(b"x" + path.read_bytes())
    found = database.load(tmp_path)
    assert [s.header.identity.workload for s in found.searches] == ["other"]
    assert "no line says what was searched" in found.faults[0]
    SearchFile(tmp_path, one.header).default_ms()  # the search itself goes on
    assert len(database.load(tmp_path).searches) == 2


def test_a_file_under_another_searchs_name_is_told_and_left_out(tmp_path: Path) -> None:
    one = search(trial(1))
    database.merge(tmp_path, [one])
    file_of(tmp_path, one).rename(tmp_path / f"{'0' * 32}.jsonl")
    found = database.load(tmp_path)
    assert found.searches == ()
    assert "another search than its name says" in found.faults[0]


def test_what_a_newer_tapml_wrote_is_refused(tmp_path: Path) -> None:
    one = search(trial(1))
    rows = one.rows()
    lines.append(file_of(tmp_path, one), {**rows[0], "version": 99}, *rows[1:])
    with pytest.raises(RecipeError, match="of version 99; this tapml reads 1"):
        database.load(tmp_path)


@few
@given(trials, trials)
def test_a_merge_has_every_trial_once_those_of_here_first(
    tmp_path_factory: pytest.TempPathFactory, here: list[Trial], there: list[Trial]
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    database.merge(folder, [search(*here)])
    (change,) = database.merge(folder, [search(*there)])
    known = {one.key for one in here}
    expected = [*here, *(one for one in there if one.key not in known)]
    assert list(loaded(folder)[0].trials) == expected
    assert (change.before, change.after) == (len(here), len(expected))
    assert database.merge(folder, [search(*there)])[0].before == len(expected)


@few
@given(st.lists(trials, max_size=3))
def test_an_export_holds_what_was_given_and_equal_searches_give_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, several: list[list[Trial]]
) -> None:
    folder = tmp_path_factory.mktemp("export")
    searches = [search(*one, workload=f"w{number}") for number, one in enumerate(several)]
    database.export(searches, folder / "a.jsonl")
    database.export(searches[::-1], folder / "b.jsonl")
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()
    found = {one.header.identity.workload: one for one in loaded(folder / "a.jsonl")}
    assert found == {one.header.identity.workload: one for one in searches}


@few
@given(st.data())
def test_an_export_that_is_cut_or_changed_is_refused_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("export")
    searches = [search(trial(1), trial(2)), search(trial(3), workload="other")]
    database.export(searches, folder / "a.jsonl")
    whole = (folder / "a.jsonl").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 2))
    cut = data.draw(st.booleans())
    changed = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    (folder / "b.jsonl").write_bytes(changed)
    with pytest.raises(RecipeError, match="no export of a tuning database, or is damaged"):
        database.load(folder / "b.jsonl")


def test_an_export_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(RecipeError, match="is there already"):
        database.export([], tmp_path / "there")
    with pytest.raises(RecipeError, match="is in no folder"):
        database.export([], tmp_path / "none" / "a.jsonl")
    assert (tmp_path / "there").read_text() == "mine"


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no tuning database"):
        database.load(tmp_path / "none")


def test_pruning_keeps_the_best_and_a_dry_run_keeps_all(tmp_path: Path) -> None:
    fast, slow = trial(2, 0.5), trial(1, 3.0)
    one = search(slow, fast, trial(3, None), trial(4, 1.0))
    database.merge(tmp_path, [one])

    def best(found: Search) -> Search:
        return database.keep_best(found, 2)

    (planned,) = database.prune(tmp_path, best, dry_run=True)
    assert loaded(tmp_path)[0] == one
    assert database.prune(tmp_path, best) == [planned]
    assert (planned.before, planned.after) == (4, 2)
    assert loaded(tmp_path)[0].trials == (fast, trial(4, 1.0))
    assert database.prune(tmp_path, best) == []
    database.prune(tmp_path, lambda _: None)
    assert loaded(tmp_path) == ()


def test_a_search_that_is_pruned_while_it_goes_on_says_again_what_it_is(tmp_path: Path) -> None:
    file = SearchFile(tmp_path, header())
    file.add(trial(1))
    database.prune(tmp_path, lambda _: None)
    file.add(trial(2))
    (one,) = loaded(tmp_path)
    assert one.trials == (trial(2),)


def test_a_target_or_a_tool_that_is_not_here_is_foreign() -> None:
    here = f"click {version('click')}"
    assert database.is_of_here(search(toolchain=here))
    assert not database.is_of_here(search(toolchain="click 0.1"))
    assert not database.is_of_here(search(toolchain="no-such-tool-at-all 1"))
    arm = search(toolchain=here).header.identity.target.replace("x86-64", "cortex-a72")
    arm = arm.replace('"mtriple":""', '"mtriple":"riscv64-linux-gnu"')
    assert not database.is_of_here(search(toolchain=here, target=arm))
    assert not database.is_of_here(search(toolchain=here, target="no target"))
