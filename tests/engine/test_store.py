"""The store loses rather than lies."""

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_writer import Scene, is_right, key, run_parts, survives, writers
from stored import publish

from tapml import disk, keys
from tapml.errors import EnvironmentalError, StageError
from tapml.store import DamagedError, Record, Store
from tapml.store.verification import verify

KEY = "ab" * 32
PART = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
PARTS = PART.filter(lambda part: part not in (".", ".."))
DATA = st.binary(max_size=40).filter(lambda data: not data.startswith(b"tapml.tree\0"))
TREES = st.dictionaries(st.lists(PARTS, min_size=1, max_size=3).map(tuple), DATA, max_size=6)


@pytest.fixture(params=["group", "each"])
def either(request, tmp_path: Path) -> Store:
    return Store(tmp_path / "store", request.param)


def record(made: Store, text: str = "out", **facts) -> Record:
    outputs = {"out": made.put_bytes(text.encode())}
    return Record(**{"stage": "text", "key": KEY, "preimage": {}, "outputs": outputs} | facts)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_file_is_named_by_the_digest_of_its_bytes(either, tmp_path):
    (tmp_path / "file").write_bytes(b"bytes")
    digest = either.put(tmp_path / "file")
    assert digest == hashlib.sha256(b"bytes").hexdigest()
    assert either.read(digest) == b"bytes"
    assert either.materialise(digest, tmp_path / "again").read_bytes() == b"bytes"
    assert either.put_bytes(b"bytes") == digest


def test_a_result_is_published_though_its_folder_is_taken_away_again_and_again(either, monkeypatch):
    made, taken = record(either), []
    folder = either.record_path("text", KEY, 0).parent

    def take(what: str, name: str) -> None:  # what a collector does beside a slow writer
        if (what, name) == ("record", "link") and len(taken) < 20:
            with suppress(FileNotFoundError):
                folder.rmdir()
            taken.append(name)

    monkeypatch.setattr(disk, "step", take)
    published = either.publish(made)
    assert len(taken) == 20
    assert either.lookup("text", KEY) == published


def test_a_large_file_survives(store, tmp_path):
    data = os.urandom((1 << 20) + 7) * 3
    (tmp_path / "file").write_bytes(data)
    assert store.read(store.put(tmp_path / "file")) == data


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None
)
@given(tree=TREES)
def test_a_folder_survives_the_store(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    made = Store(folder / "store")
    source = folder / "source"
    source.mkdir()
    written = {}
    for parts, data in tree.items():
        path = source.joinpath(*parts)
        if any(parent.is_file() for parent in path.parents) or path.exists():
            continue  # a file of this name is there already
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written["/".join(parts)] = data
    digest = made.put(source)
    assert read_tree(made.materialise(digest, folder / "linked")) == written
    assert read_tree(made.materialise(digest, folder / "copied", copy=True)) == written
    assert made.put(folder / "copied") == digest
    assert made.size(digest) == sum(len(data) for data in set(written.values()))


def test_files_are_handed_out_read_only_and_copies_writable(store, tmp_path):
    digest = store.put_bytes(b"bytes")
    assert store.materialise(digest, tmp_path / "linked").stat().st_mode & 0o222 == 0
    assert store.materialise(digest, tmp_path / "copied", copy=True).stat().st_mode & 0o200
    assert (tmp_path / "linked").stat().st_ino == store.blob(digest).stat().st_ino
    (tmp_path / "copied").write_bytes(b"other")
    assert store.read(digest) == b"bytes"


def test_a_link_is_no_artifact(store, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to("/etc/passwd")
    for path in (tmp_path / "folder", tmp_path / "folder" / "link"):
        with pytest.raises(StageError, match="link is neither a file nor a folder"):
            store.put(path)


def test_a_file_that_looks_like_a_listing_is_refused(store, tmp_path):
    (tmp_path / "file").write_bytes(b"tapml.tree\0{}")
    with pytest.raises(StageError, match="listings"):
        store.put(tmp_path / "file")


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", "a\0b"])
def test_a_listing_that_leads_outside_is_damaged(store, tmp_path, name):
    files = {name: store.put_bytes(b"bytes")}
    digest = store.put_bytes(b"tapml.tree\0" + keys.canonical_json(files))
    with pytest.raises(DamagedError):
        store.materialise(digest, tmp_path / "out")
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("name", ["", "AB" * 32, "../" + KEY, KEY[:-1], KEY + "\n"])
def test_what_is_no_digest_names_no_blob(store, name):
    with pytest.raises(ValueError, match="is no digest"):
        store.blob(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_what_is_no_name_of_a_stage_names_no_record(store, name):
    with pytest.raises(ValueError, match="is no name of a stage"):
        store.lookup(name, KEY)


def test_a_record_is_found_by_its_action(either):
    published = either.publish(record(either, report={"summary": "x"}, seconds=1.5))
    assert either.lookup("text", KEY) == published
    assert either.lookup("text", "cd" * 32) is None
    assert either.lookup("other", KEY) is None
    assert either.newest("text", 9) == [published]


def test_the_first_result_of_an_action_counts_and_a_forced_one_comes_before_it(store):
    first = store.publish(record(store, "first"))
    assert store.publish(record(store, "second")) == first
    third = store.publish(record(store, "third"), force=True)
    assert store.lookup("text", KEY) == third
    assert len(store.newest("text", 9)) == 2
    store.blob(third.outputs["out"]).unlink()
    assert store.lookup("text", KEY) == first


def test_who_publishes_between_a_look_and_a_link_was_first(store, monkeypatch):
    lookup, other = Store.lookup, []

    def overtaken(self, stage, key, notes=None):
        found = lookup(self, stage, key, notes)
        if not other:
            other.append(None)
            other.append(store.publish(record(store, "the other's")))
        return found

    monkeypatch.setattr(Store, "lookup", overtaken)
    assert store.publish(record(store, "mine")) == other[1]
    assert len(list(store.record_paths("text"))) == 1


def test_a_changed_blob_is_a_miss_with_a_note_and_is_set_aside(store):
    made = store.publish(record(store))
    blob = store.blob(made.outputs["out"])
    blob.chmod(0o644)
    blob.write_bytes(b"oUt")
    notes: list[str] = []
    assert Store(store.root).lookup("text", KEY, notes) is None
    assert notes == ["its stored out was damaged or lost; made again"]
    assert [path.read_bytes() for path in (store.root / "quarantine").iterdir()] == [b"oUt"]
    assert store.publish(record(store)).outputs == made.outputs
    assert store.lookup("text", KEY) is not None


def test_a_touched_blob_that_is_whole_is_a_hit_and_sealed_again(store):
    made = store.publish(record(store))
    blob = store.blob(made.outputs["out"])
    sealed = blob.stat().st_mtime_ns
    os.utime(blob)
    assert store.lookup("text", KEY) == made
    assert blob.stat().st_mtime_ns == sealed


def test_a_bit_that_rotted_is_noticed_on_reading(store, tmp_path):
    digest = store.put_bytes(b"bytes")
    blob = store.blob(digest)
    facts = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"bytez")
    os.utime(blob, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(DamagedError, match="set aside"):
        store.materialise(digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DamagedError, match="missing"):
        store.read(digest)


@pytest.mark.parametrize("keep", [0, 10, -1, -30])
def test_a_torn_record_is_a_miss_with_a_note(store, keep):
    store.publish(record(store))
    path = store.root / "ac" / "text" / KEY / "0"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:keep])
    notes: list[str] = []
    assert store.lookup("text", KEY, notes) is None
    assert len(notes) == 1
    assert "was damaged" in notes[0]


def test_a_write_that_fails_half_way_leaves_nothing(store, monkeypatch):
    def torn(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tapml.disk.write_all", torn)
    with pytest.raises(EnvironmentalError, match="No space left on device") as caught:
        store.put_bytes(b"many bytes")
    assert caught.value.exit_code == 3
    assert str(store.root) in caught.value.message
    assert not [path for path in store.root.rglob("*") if path.is_file()]


def test_records_are_compared_newest_first(store):
    for index in range(3):
        key = f"{index:064x}"
        store.publish(record(store, key=key, made_at=f"2026-01-0{index + 1}T00:00:00Z"))
    assert [one.key[-1] for one in store.newest("text", 2)] == ["2", "1"]


def test_records_hold_json_only(store):
    with pytest.raises(TypeError, match="no canonical form"):
        store.publish(record(store, report={"x": object()}))
    store.publish(record(store))
    line = (store.root / "ac" / "text" / KEY / "0").read_bytes().split(b"\n")[0]
    assert json.loads(line)["stage"] == "text"


# --- kills and power (all points: tests/faults/test_store_faults.py)


def test_a_writer_that_is_killed_leaves_nothing_wrong(tmp_path):
    scene = Scene("fresh", "group")
    points = writers("kill", tmp_path / "stores", scene, every=9)
    assert len(points) > 3
    for number in range(len(points)):
        survives(tmp_path / "stores" / str(number), scene, tmp_path / str(number))


def test_with_durability_each_all_that_counts_is_on_the_disk(tmp_path, monkeypatch):
    made, fsync, synced = Store(tmp_path / "store", "each"), os.fsync, set[int]()

    def noted(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    publish(made, 0)
    publish(made, 1)
    counts = [made.root / "cas", *(made.root / "cas").rglob("*")]
    counts += [made.root / "ac", *(made.root / "ac").rglob("*")]
    assert [path for path in counts if path.stat().st_ino not in synced] == []


def test_with_durability_each_what_a_careless_writer_put_is_synced_too(tmp_path, monkeypatch):
    digest = Store(tmp_path / "store", "group").put_bytes(b"there already")
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    made = Store(tmp_path / "store", "each")
    assert made.put_bytes(b"there already") == digest
    blob = made.blob(digest)
    assert {blob.stat().st_ino, blob.parent.stat().st_ino} <= set(synced)


def test_with_durability_group_nothing_is_synced_until_the_flush(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    made = Store(tmp_path / "store", "group")
    publish(made)
    assert synced == []
    made.flush()


POWER = st.lists(
    st.sampled_from(["kept", "kept", "empty", "half", "zeros", "gone"]), min_size=12, max_size=12
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(fates=POWER)
def test_what_was_not_on_the_disk_when_the_power_went_is_a_miss(tmp_path_factory, fates):
    """Files keep their names, times and even sizes, and lose what they hold, or are gone."""
    folder = tmp_path_factory.mktemp("power")
    root = folder / "store"
    assert run_parts(root).error is None
    kept = Store(root)
    files = [path for name in ("cas", "ac", "index") for path in sorted((root / name).rglob("*"))]
    for path, fate in zip([path for path in files if path.is_file()], fates, strict=False):
        facts, data = path.stat(), path.read_bytes()
        path.chmod(0o644)
        changed = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}
        if fate == "gone":
            path.unlink()
        else:
            path.write_bytes(changed.get(fate, data))
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    for turn in range(2):  # what has lost its bytes but not its size is noticed when it is read
        served = Store(root).lookup("parts", key())
        if served is None:
            assert run_parts(root).error is None
            served = Store(root).lookup("parts", key())
            assert served is not None
        try:
            assert is_right(Store(root), served, folder / f"out{turn}")
            break
        except DamagedError:
            continue
    else:
        raise AssertionError("it is never made good")
    verify(kept, repair=True)
    assert not verify(kept)
