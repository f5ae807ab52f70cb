"""What garbage collection takes, and what it never takes, beside runs that go on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import DAY_S, RunOf, newest_file, publish, stored

from tapml import disk, locks
from tapml.errors import EnvironmentalError, RecipeError
from tapml.store import DamagedError, Store, garbage, index, inventory, record
from tapml.store.garbage import Policy
from tapml.store.index import Entry
from tapml.store.inventory import Result, Use

NOW = 1_800_000_000.0


def later(hours: float = 2.0) -> float:
    """A time at which what is made now is no longer recent."""
    return time.time() + hours * 3600


# --- the decision

HOURS = st.floats(0.0, 2000.0)
RESULTS = st.lists(
    st.tuples(HOURS, st.dictionaries(st.sampled_from("abcdef"), st.just(0), max_size=3)),
    max_size=12,
).map(
    lambda rows: [
        Result(
            "text",
            Entry(f"{n:064x}", 0, n, "", 0.0, {}, {b: 100 + ord(b) for b in blobs}),
            int((NOW - hours * 3600) * 1e9),
            10,
        )
        for n, (hours, blobs) in enumerate(rows)
    ]
)
USES = st.lists(
    st.tuples(HOURS, st.sets(st.integers(0, 11), max_size=4), st.booleans(), st.booleans()),
    max_size=5,
).map(
    lambda rows: [
        Use(
            f"run{n}",
            "mlp",
            Path(),
            NOW - hours * 3600,
            NOW - hours * 3600,
            frozenset(f"{key:064x}" for key in used),
            frozenset(),
            goes_on,
            kept,
        )
        for n, (hours, used, goes_on, kept) in enumerate(sorted(rows, key=lambda row: row[0]))
    ]
)
POLICIES = st.builds(
    Policy,
    max_bytes=st.none() | st.integers(0, 3000),
    older_than_s=st.none() | st.floats(0.0, 1000.0).map(lambda hours: hours * 3600),
    keep_runs=st.none() | st.integers(0, 4),
)


@given(results=RESULTS, uses=USES, policy=POLICIES)
def test_nothing_goes_that_a_kept_run_uses_or_that_is_recent(results, uses, policy):
    going = garbage.what_goes(results, uses, policy, NOW)
    kept = [
        use
        for rank, use in enumerate(uses)
        if use.goes_on or use.is_kept or NOW - use.changed < 3600 or rank < (policy.keep_runs or 0)
    ]
    for one in going:
        assert not any(one.entry.key in use.keys for use in kept)
        assert NOW - one.used_ns / 1e9 > 3600
    assert len({one.name for one in going}) == len(going)


@given(results=RESULTS, uses=USES, limit=st.integers(0, 3000))
def test_a_size_takes_the_least_recently_used_and_no_more_than_it_must(results, uses, limit):
    def last(one: Result) -> float:
        times = [use.changed for use in uses if one.entry.key in use.keys]
        return max([one.used_ns / 1e9, *times])

    going = garbage.what_goes(results, uses, Policy(max_bytes=limit), NOW)
    free = garbage.what_goes(results, uses, Policy(keep_runs=0), NOW)
    assert going == free[: len(going)]
    assert [last(one) for one in going] == sorted(last(one) for one in going)

    def left(count: int) -> int:
        return inventory.total([one for one in results if one not in free[:count]])

    assert left(len(going)) <= limit or len(going) == len(free)
    assert not going or left(len(going) - 1) > limit


@given(results=RESULTS, uses=USES)
def test_without_a_limit_only_what_no_result_names_goes(results, uses):
    assert garbage.what_goes(results, uses, Policy(), NOW) == []


# --- what is taken


def test_what_was_made_within_the_hour_stays_whatever_the_limit(store):
    one = publish(store)
    store.put_bytes(b"nobody names me yet")
    outcome = garbage.collect(store, Policy(max_bytes=0))
    assert outcome.results == []
    assert outcome.blobs == {}
    assert outcome.kept > 0
    assert stored(store) == {one.key}


def test_the_least_recently_used_go_until_the_rest_fits(store):
    old, middle, new = (publish(store, n, text=str(n) * 1000, days=9 - n) for n in range(3))
    room = inventory.total(inventory.results(store)) - 1
    outcome = garbage.collect(store, Policy(max_bytes=room), now=later())
    assert [one.entry.key for one in outcome.results] == [old.key]
    assert outcome.blobs == old.blobs
    assert stored(store) == {middle.key, new.key}
    assert outcome.kept == inventory.total(inventory.results(store)) <= room
    assert not (store.root / "ac" / "text" / old.key).exists()


def test_a_hit_makes_a_result_the_most_recently_used(store):
    old, new = publish(store, 0, days=9), publish(store, 1, days=5)
    assert store.lookup("text", old.key) is not None
    outcome = garbage.collect(store, Policy(older_than_s=3 * DAY_S))
    assert [one.entry.key for one in outcome.results] == [new.key]
    assert stored(store) == {old.key}


def test_a_file_that_another_result_shares_stays(store):
    old, new = publish(store, 0, text="same", days=9), publish(store, 1, text="same")
    outcome = garbage.collect(store, Policy(older_than_s=DAY_S), now=later())
    assert [one.entry.key for one in outcome.results] == [old.key]
    assert outcome.blobs == {}
    assert stored(store) == {new.key}


def test_what_no_result_names_goes_and_what_was_set_aside(store):
    loose = store.put_bytes(b"loose")
    one = publish(store)
    (store.root / "quarantine").mkdir()
    (store.root / "quarantine" / "damaged").write_bytes(b"x")
    (store.root / "tmp" / "left").write_bytes(b"x")
    outcome = garbage.collect(store, Policy(), now=later())
    assert outcome.blobs == {loose: 5}
    assert sorted(path.name for path in outcome.aside) == ["damaged", "left"]
    assert not list((store.root / "quarantine").iterdir())
    assert not list((store.root / "tmp").iterdir())
    assert stored(store) == {one.key}


def test_the_files_of_folders_the_log_and_the_views_stay_with_their_result(store, tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_bytes(b"deep")
    made = publish(store, log=store.put_bytes(b"log"), views=store.put(tmp_path / "folder"))
    outcome = garbage.collect(store, Policy(), now=later())
    assert outcome.blobs == {}
    assert store.materialise(made.views, tmp_path / "again").is_dir()
    assert store.read(made.log) == b"log"


@pytest.mark.parametrize("mark", ["pinned", "baseline", "goes on", "newest"])
def test_what_a_run_uses_that_counts_stays(store, mark):
    used, other = publish(store, 0, days=50), publish(store, 1, days=40)
    run = RunOf(store, used, days=30)
    policy = Policy(max_bytes=0, keep_runs=1 if mark == "newest" else None)
    if mark != "goes on":
        run.end()
    if mark in ("pinned", "baseline"):
        (run.folder / mark).touch()
    outcome = garbage.collect(store, policy, now=later())
    assert [one.entry.key for one in outcome.results] == [other.key]
    run.end()
    (run.folder / "pinned").unlink(missing_ok=True)
    (run.folder / "baseline").unlink(missing_ok=True)
    outcome = garbage.collect(store, Policy(max_bytes=0), now=later())
    assert [one.entry.key for one in outcome.results] == [used.key]


def test_what_a_run_that_goes_on_means_to_use_stays(store):
    one = publish(store, days=50)
    with RunOf(store, days=30) as run:
        plan = [{"name": "text", "key": one.key}, {"name": "below", "key": None}]
        (run.folder / "plan.json").write_text(json.dumps(plan))
        garbage.collect(store, Policy(max_bytes=0), now=later())
        assert stored(store) == {one.key}


def test_what_a_kept_run_made_stays_also_when_its_record_is_gone(store):
    one = publish(store, days=50)
    run = RunOf(store, one, days=30).end()
    (run.folder / "pinned").touch()
    newest_file(store, one).unlink()
    garbage.collect(store, Policy(max_bytes=0), now=later())
    assert store.read(one.outputs["out"])


def test_keeping_runs_takes_what_no_kept_run_uses(store):
    first, second, third = (publish(store, n, days=50) for n in range(3))
    RunOf(store, first, days=30).end()
    RunOf(store, second, days=20).end()
    outcome = garbage.collect(store, Policy(keep_runs=1), now=later())
    assert {one.entry.key for one in outcome.results} == {first.key, third.key}
    assert len(list(store.runs.iterdir())) == 2


def test_run_folders_go_when_asked_and_what_they_link_to_is_told(store):
    one = publish(store, text="b" * 5000, days=50)
    old = RunOf(store, one, days=30).end()
    store.materialise(one.outputs["out"], old.folder / "bundle" / "lib.so")
    RunOf(store, days=20).end()
    policy = Policy(keep_runs=1)
    assert garbage.collect(store, policy, dry_run=True, now=later()).linked == 5000
    outcome = garbage.collect(
        store, Policy(keep_runs=1, run_folders=True), dry_run=True, now=later()
    )
    assert (outcome.runs, outcome.linked) == ([old.run_id], 0)
    again = garbage.collect(store, Policy(keep_runs=1, run_folders=True), now=later())
    assert again.runs == outcome.runs
    assert not old.folder.exists()
    assert not store.blob(one.outputs["out"]).exists()


def test_a_dry_run_takes_nothing_and_says_exactly_what_goes(store):
    for number in range(6):
        publish(store, number, text=f"{number % 4}" * 100, days=number)
    loose = store.put_bytes(b"loose")
    policy = Policy(older_than_s=2.5 * DAY_S)
    before = {path for path in store.root.rglob("*") if path.is_file()}
    told = garbage.collect(store, policy, dry_run=True, now=later())
    assert {path for path in store.root.rglob("*") if path.is_file()} == before
    went = garbage.collect(store, policy, now=later())
    assert [one.name for one in told.results] == [one.name for one in went.results]
    assert told.blobs == went.blobs
    assert loose in went.blobs
    assert (told.kept, told.freed) == (went.kept, went.freed)


def test_what_another_version_of_tapml_wrote_keeps_the_files_it_names(store, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"in a folder")
    digest = store.put(tmp_path / "folder")
    path = store.record_path("text", "ab" * 32, 0)
    path.parent.mkdir(parents=True)
    line = json.dumps({"form": 99, "gives": {"out": digest}}).encode()
    path.write_bytes(line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n")
    garbage.collect(store, Policy(), now=later())
    assert store.reads_whole(digest)
    os.utime(path, (0, 0))
    garbage.collect(store, Policy(older_than_s=DAY_S), now=later())
    assert not store.blob(digest).exists()


def test_while_a_run_goes_on_what_is_an_hour_old_stays_whatever_grace_is_asked_for(store):
    one, loose = publish(store), store.put_bytes(b"stored by a stage, not named yet")
    with RunOf(store):
        assert garbage.collect(store, Policy(max_bytes=0, grace_s=0.0)).freed == 0
        assert store.read(loose)
    assert garbage.collect(store, Policy(max_bytes=0, grace_s=0.0)).blobs.keys() == {
        loose,
        *one.blobs,
    }


def test_files_of_run_folders_count_once_and_links_to_the_store_do_not(store):
    made = publish(store, text="b" * 5000)
    first, second = RunOf(store, made), RunOf(store, made)
    store.materialise(made.outputs["out"], first.folder / "bundle" / "lib.so")
    (first.folder / "log").write_bytes(b"l" * 700)
    os.link(first.folder / "log", second.folder / "log")
    journals = sum((run.folder / "events.jsonl").stat().st_size for run in (first, second))
    assert inventory.beside(store) == 700 + journals
    first.end()
    second.end()


def test_what_others_are_writing_stays(store):
    """A blob's time is its seal, long ago, just before it is linked; stages work for long."""
    store.prepare()
    sealed, folder = store.root / "tmp" / "sealed", store.temporary("metaschedule")
    sealed.write_bytes(b"whole")
    os.utime(sealed, (0, 0))
    store.prepare()
    assert sealed.exists()
    garbage.collect(store, Policy(), now=later())
    assert folder.exists()
    assert not sealed.exists()


# --- beside others


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch):
    """Does something at the moment before a file is moved aside."""

    def at(name: str, act) -> None:
        rename, done = os.rename, []

        def renamed(source, target) -> None:
            if Path(source).name == name and not done:
                done.append(name)
                act()
            rename(source, target)

        monkeypatch.setattr("tapml.store.garbage.os.rename", renamed)

    return at


def test_a_record_that_is_looked_up_at_the_last_moment_is_put_back(store, meanwhile):
    one = publish(store, days=9)
    hits = []
    meanwhile("0", lambda: hits.append(store.lookup("text", one.key)))
    outcome = garbage.collect(store, Policy(older_than_s=DAY_S), now=later())
    assert hits == [one]
    assert outcome.results == []
    assert stored(store) == {one.key}
    assert store.read(one.outputs["out"])


def test_a_file_that_is_stored_again_at_the_last_moment_is_put_back(store, meanwhile):
    digest = store.put_bytes(b"again")
    meanwhile(digest, lambda: store.put_bytes(b"again"))
    assert garbage.collect(store, Policy(), now=later()).blobs == {}
    assert store.read(digest) == b"again"


def test_a_file_that_is_handed_out_at_the_last_moment_is_put_back(store, meanwhile, tmp_path):
    digest = store.put_bytes(b"again")
    meanwhile(digest, lambda: store.materialise(digest, tmp_path / "out"))
    assert garbage.collect(store, Policy(), now=later()).blobs == {}
    assert store.read(digest) == b"again"


def test_a_writer_whose_file_goes_while_he_stores_it_stores_it_again(store, monkeypatch):
    digest = store.put_bytes(b"again")
    place = disk.place

    def taken_after(temporary, final, what, *, durable):
        done = place(temporary, final, what, durable=durable)
        if not done and final.exists():
            monkeypatch.undo()
            final.unlink()
        return done

    monkeypatch.setattr("tapml.disk.place", taken_after)
    assert store.put_bytes(b"again") == digest
    assert store.read(digest) == b"again"


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_goes_as_it_is_handed_out_is_damaged_and_told_so(
    store, monkeypatch, tmp_path, copy
):
    """The executor makes it again: an error of another kind would fail the stage."""
    digest = store.put_bytes(b"handed out")
    verify = Store._verify

    def taken_after(self, one):
        verify(self, one)
        store.blob(one).unlink()

    monkeypatch.setattr(Store, "_verify", taken_after)
    with pytest.raises(DamagedError, match="is missing") as caught:
        store.materialise(digest, tmp_path / "out", copy=copy)
    assert caught.value.digest == digest
    assert not (store.root / "quarantine").exists()


def test_a_file_that_was_away_for_a_moment_is_not_set_aside(store, monkeypatch, tmp_path):
    digest = store.put_bytes(b"put back")
    link = disk.link

    def away(source, path):
        monkeypatch.setattr("tapml.disk.link", link)
        raise FileNotFoundError(source)

    monkeypatch.setattr("tapml.disk.link", away)
    with pytest.raises(DamagedError, match="is missing"):
        store.materialise(digest, tmp_path / "out")
    assert store.materialise(digest, tmp_path / "out").read_bytes() == b"put back"


def test_a_lookup_whose_record_goes_meanwhile_is_a_miss(store, monkeypatch):
    one = publish(store, days=9)
    whole = Store.seems_whole

    def taken(self, digest, size):
        newest_file(store, one).unlink(missing_ok=True)
        return whole(self, digest, size)

    monkeypatch.setattr(Store, "seems_whole", taken)
    assert store.lookup("text", one.key) is None


def test_a_folder_that_goes_while_a_record_is_put_into_it_is_made_again(store, monkeypatch):
    one = publish(store)
    shutil.rmtree(store.root / "ac" / "text" / one.key)
    link, calls = os.link, []

    def gone(source, target):
        calls.append(target)
        if len(calls) < 3 and "ac" in Path(target).parts:
            shutil.rmtree(Path(target).parent, ignore_errors=True)
        link(source, target)

    monkeypatch.setattr("tapml.disk.os.link", gone)
    assert publish(store).key in stored(store)


def test_of_two_collections_the_second_is_refused(store):
    publish(store)
    with (
        garbage.alone(store),
        pytest.raises(EnvironmentalError, match="taking things away") as caught,
    ):
        garbage.collect(store, Policy())
    assert caught.value.exit_code == 3


def test_where_there_is_no_store_nothing_is_made(tmp_path):
    with pytest.raises(RecipeError, match="no store"):
        garbage.collect(Store(tmp_path / "none"), Policy())
    assert not (tmp_path / "none").exists()


def test_old_locks_go_and_held_ones_stay(store):
    publish(store)
    free, held = (store.root / "locks" / name for name in ("a" * 64, "b" * 64))
    one, other = locks.FileLock(free, "one"), locks.FileLock(held, "other")
    assert one.acquire()
    one.release()
    assert other.acquire()
    garbage.collect(store, Policy(), now=later())
    assert not free.exists()
    assert held.exists()
    again = locks.FileLock(held, "again")
    assert not again.acquire()
    other.release()
    assert again.acquire()
    again.release()


def test_a_lock_that_was_removed_as_it_was_opened_is_taken_anew(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    flock, raced = locks.fcntl.flock, []

    def removed(descriptor, how):
        if not raced:
            raced.append(path.unlink())
        flock(descriptor, how)

    monkeypatch.setattr("tapml.locks.fcntl.flock", removed)
    first = locks.FileLock(path, "first")
    assert first.acquire()
    assert not locks.FileLock(path, "second").acquire()
    first.release()


# --- removing by name


def test_what_is_removed_is_gone_with_the_files_that_only_it_names(store):
    one, other = publish(store, 0, text="one"), publish(store, 1, text="other")
    (chosen,) = inventory.select(store, [f"text/{one.key[:8]}"])
    outcome = garbage.remove(store, [chosen])
    assert outcome.blobs == one.blobs
    assert stored(store) == {other.key}
    assert inventory.select(store, ["text"])[0].entry.key == other.key


@pytest.mark.parametrize("mark", ["goes on", "pinned"])
def test_what_a_run_needs_is_not_removed_and_nothing_else_is(store, mark):
    one, other = publish(store, 0), publish(store, 1)
    run = RunOf(store, one)
    if mark == "pinned":
        run.end()
        (run.folder / "pinned").touch()
    with pytest.raises(RecipeError, match=f"used by run {run.run_id}"):
        garbage.remove(store, inventory.select(store, ["text"]))
    assert stored(store) == {one.key, other.key}
    run.end()


def test_results_are_chosen_by_run_and_by_recipe(store):
    first, second, third = (publish(store, n) for n in range(3))
    run = RunOf(store, first, recipe="one")
    RunOf(store, second, recipe="two").end()
    run.die()
    assert [one.entry.key for one in inventory.select(store, [run.run_id])] == [first.key]
    assert [one.entry.key for one in inventory.select(store, [], recipe="two")] == [second.key]
    with pytest.raises(RecipeError, match="no run of recipe tow"):
        inventory.select(store, [], recipe="tow")
    with pytest.raises(RecipeError, match=r"(?s)no results of a stage 'txt'.*did you mean 'text'"):
        inventory.select(store, ["txt/ab"])
    with pytest.raises(RecipeError, match="has no results"):
        inventory.select(store, ["text/ffff"])
    shares = inventory.by_recipe(inventory.results(store), inventory.uses(store))
    assert {one.name: one.count for one in shares} == {"one": 1, "two": 1, "(no run)": 1}
    assert third.key in stored(store)


def test_what_results_share_counts_once_in_a_sum(store):
    publish(store, 0, text="s" * 1000)
    publish(store, 1, text="s" * 1000)
    publish(store, 2, stage="other", text="s" * 1000)
    found = list(inventory.results(store))
    records = sum(one.bytes for one in found)
    assert inventory.total(found) == 1000 + records
    assert sum(one.bytes for one in inventory.by_stage(found)) == 2000 + records


# --- the index


def test_what_the_index_lacks_is_found_by_its_name_and_put_into_it(store):
    one, other = publish(store, 0), publish(store, 1)
    path = store.index("text")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:-1]))
    assert {found.entry.key for found in inventory.results(store)} == {one.key, other.key}
    assert {entry.key for entry in index.read(path)} == {one.key, other.key}


def test_a_torn_line_costs_itself_only(store):
    publish(store, 0)
    with store.index("text").open("ab") as out:
        out.write(b'\n12345678 ["torn')
    other = publish(store, 1)
    assert store.newest("text", 1) == [other]
    assert len(list(index.read(store.index("text")))) == 2
    assert len(list(inventory.results(store))) == 2


def test_an_entry_of_another_file_does_not_count(store):
    one = publish(store, text="first")
    entry = next(index.read(store.index("text")))
    shutil.rmtree(store.root / "ac" / "text" / one.key)
    blobs = store.parts([store.put_bytes(b"second")])
    lying = Entry(one.key, 0, entry.inode + 1, one.made_at, 0.0, {}, {"ff" * 32: 1})
    again = publish(store, text="second")
    index.append(store.index("text"), lying)
    (found,) = inventory.results(store)
    assert found.entry.blobs == again.blobs == blobs


def test_a_missing_index_is_made_again_from_the_records(store):
    made = [publish(store, number) for number in range(5)]
    store.index("text").unlink()
    assert store.newest("text", 3) == made[:1:-1]
    assert [entry.key for entry in index.read(store.index("text"))] == [one.key for one in made]


def test_the_newest_are_read_from_the_end_of_a_long_index(store, monkeypatch):
    made = [publish(store, number) for number in range(300)]
    monkeypatch.setattr("tapml.store.index._BLOCK", 1000)
    read = []
    decode = record.decode
    monkeypatch.setattr("tapml.store.decode", lambda data: read.append(1) or decode(data))
    assert store.newest("text", 7) == made[:-8:-1]
    assert len(read) == 7
    assert len(list(index.newest(store.index("text")))) == 300


def test_of_two_who_make_an_index_the_second_adds_to_the_first(store, monkeypatch):
    """Who finds none lists all records; one that another lists and links first is not written
    over, as it may name a record that was published since.
    """
    link, other = os.link, []

    def second(source, target):
        if Path(target) == store.index("text") and not other:
            other.append(None)
            other.append(publish(store, 1))
        link(source, target)

    monkeypatch.setattr("tapml.store.index.os.link", second)
    one = publish(store, 0)
    assert {entry.key for entry in index.read(store.index("text"))} == {one.key, other[1].key}


def test_an_index_is_written_anew_when_most_of_it_went(store):
    for number in range(9):
        publish(store, number, days=10 - number)
    garbage.collect(store, Policy(older_than_s=4.5 * DAY_S), now=later())
    assert len(list(index.read(store.index("text")))) == len(stored(store)) == 3
