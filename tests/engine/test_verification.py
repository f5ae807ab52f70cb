"""Reading a whole store: what is damaged is named, and set aside only when asked."""

from __future__ import annotations

import os
import time

import pytest
from stored import newest_file, publish, stored

from tapml.store import Store, index, inventory
from tapml.store.verification import verify


def rot(path, data: bytes | None = None) -> None:
    """Changes a file as a disk does: its time stays."""
    facts, old = path.stat(), path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(bytes([old[0] ^ 1]) + old[1:] if data is None else data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    path.chmod(0o444)


def files(store: Store) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(store.root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in store.root.rglob("*")
        if path.is_file()
    }


def damage_blob(store, made):
    rot(store.blob(made.outputs["out"]))


def damage_record(store, made):
    rot(newest_file(store, made))


def tear_record(store, made):
    path = newest_file(store, made)
    rot(path, path.read_bytes()[:-20])


def empty_blob(store, made):
    rot(store.blob(made.outputs["out"]), b"")


def lose_blob(store, made):
    store.blob(made.outputs["out"]).unlink()


@pytest.mark.parametrize(
    ("damage", "kinds"),
    [
        (damage_blob, ["blob", "result"]),
        (empty_blob, ["blob", "result"]),
        (damage_record, ["record"]),
        (tear_record, ["record"]),
        (lose_blob, ["result"]),
    ],
)
def test_damage_is_told_and_only_repaired_when_asked(store, damage, kinds):
    made, other = publish(store, 0), publish(store, 1)
    assert verify(store) == []
    damage(store, made)
    before = files(store)
    told = verify(store)
    assert [one.kind for one in told] == kinds
    assert all(one.is_damage and not one.done for one in told)
    assert files(store) == before
    assert verify(store) == told
    assert [one.kind for one in verify(store, repair=True)] == kinds
    assert verify(store) == []
    assert len(list((store.root / "quarantine").iterdir())) == len(told)
    assert stored(store) == {other.key}
    again = publish(store, 0)
    assert again.outputs == made.outputs
    assert stored(store) == {made.key, other.key}
    assert verify(store) == []


def test_a_lost_result_that_was_made_again_otherwise_is_no_damage(store):
    first = publish(store, text="timed once")
    lose_blob(store, first)
    second = publish(store, text="timed again")
    assert second.key == first.key
    (found,) = verify(store)
    assert (found.kind, found.is_damage) == ("superseded", False)
    verify(store, repair=True)
    assert verify(store) == []
    assert store.lookup("text", first.key) == second


def test_leftovers_of_killed_writers_are_told_and_removed(store):
    publish(store)
    left = store.root / "tmp" / "0123"
    left.write_bytes(b"half a fi")
    assert verify(store) == []  # its writer may still be at it
    later = time.time() + 2 * 3600
    (found,) = verify(store, now=later)
    assert (found.kind, found.path, found.is_damage) == ("leftover", left, False)
    (found,) = verify(store, repair=True, now=later)
    assert found.done == "removed"
    assert not left.exists()


def test_a_file_of_another_name_is_told_and_left_alone(store):
    publish(store)
    stranger = store.root / "cas" / "ab" / "README"
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("mine")
    (found,) = verify(store, repair=True)
    assert (found.kind, found.done) == ("stranger", "left alone")
    assert stranger.exists()


def test_repairing_writes_the_index_anew(store):
    made = [publish(store, number) for number in range(3)]
    store.index("text").write_bytes(b"nonsense\n")
    verify(store, repair=True)
    assert [one.key for one in index.read(store.index("text"))] == [one.key for one in made]
    assert len(list(inventory.results(store))) == 3


def test_a_store_that_is_not_there_is_whole(tmp_path):
    assert verify(Store(tmp_path / "none")) == []
