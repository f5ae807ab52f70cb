"""The store under kills, full disks, many writers and rot: it loses, and never lies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import store_writer
from store_writer import Scene, at_each, run_parts, survives, writers

from tapml import disk
from tapml.store import Record, Store
from tapml.store.blobs import DamagedError
from tapml.store.record import encode
from tapml.store.verification import verify

pytestmark = pytest.mark.faults
EVERY = {(what, step) for what, steps in disk.STEPS.items() for step in steps}
SCENES = [Scene(name, durability) for name in ("fresh", "used") for durability in ("group", "each")]


def told(what: str, points: list[tuple[str, str]]) -> None:
    count = Counter(points)
    names = ", ".join(f"{'.'.join(point)} ×{n}" for point, n in count.items())
    print(f"{what}: {len(points)} points tried and survived ({names})")


@pytest.mark.parametrize("scene", SCENES, ids=lambda one: f"{one.name}-{one.durability}")
@pytest.mark.parametrize("how", ["kill", "torn"])
def test_a_writer_that_is_killed_at_any_point_leaves_nothing_wrong(
    tmp_path: Path, scene: Scene, how: str
) -> None:
    points = writers(how, tmp_path / "stores", scene)
    for number in range(len(points)):
        survives(tmp_path / "stores" / str(number), scene, tmp_path / str(number))
    told(f"{how}, {scene.name} store, {scene.durability}", points)
    assert len(points) > 5


def test_every_named_step_of_publishing_is_among_the_points(tmp_path: Path) -> None:
    passed = {
        point
        for number, scene in enumerate(SCENES)
        for point in store_writer.points(tmp_path / str(number), scene)
    }
    assert passed == EVERY


@pytest.mark.parametrize("scene", SCENES, ids=lambda one: f"{one.name}-{one.durability}")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_disk_that_takes_no_more_at_any_point_is_told_and_leaves_nothing_wrong(
    tmp_path: Path, scene: Scene, number: int
) -> None:
    points = store_writer.points(tmp_path / "whole", scene)
    for start in range(len(points)):
        root = tmp_path / f"store{start}"
        scene.set_up(root)

        def fails(count: int, point: tuple[str, str], start: int = start) -> None:
            # a full disk lets files be removed
            if count >= start and (number == errno.EROFS or point[1] != "tidy"):
                raise OSError(number, os.strerror(number))

        with at_each(fails):
            done = run_parts(root, scene.durability)
        if done.error is not None:
            assert done.error["bases"][0] == "EnvironmentalError", done.error
            assert os.strerror(number) in done.error["facts"]["message"]
        else:  # the index may lack it
            assert all(what == "index" or step == "tidy" for what, step in points[start:])
        survives(root, scene, tmp_path / str(start))
    told(f"{os.strerror(number)}, {scene.name} store, {scene.durability}", points)


# --- many writers

CROWD = """\
import os, random, select, sys, time
from pathlib import Path
from tapml import keys
from tapml.store import garbage
from tapml.store.blobs import DamagedError
from tapml.store.garbage import Policy
from tapml.store import Record, Store, now

root, me, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(me)


def preimage(number):
    return {"stage": "crowd", "number": number}


def publish(store, number, text):
    facts = preimage(number)
    outputs = {"out": store.put_bytes(text), "same": store.put_bytes(b"same" * 999)}
    made = Record("crowd", keys.digest(facts), facts, outputs, made_at=now())
    return store.publish(made)


def right(store, record, number):
    return store.read(record.outputs["out"]).startswith(b"%d of " % number)
"""
WRITERS = (
    CROWD
    + """
for number in chance.sample(range(rounds), rounds):
    store = Store(root)
    first = publish(store, number, b"%d of %d" % (number, me))  # the others' differ
    assert right(store, first, number)
    assert store.lookup("crowd", first.key) == first
    print(number, first.outputs["out"])
    own = publish(store, 10**6 * (me + 1) + number, b"%d of me" % (10**6 * (me + 1) + number))
    assert right(store, own, 10**6 * (me + 1) + number)
"""
)
BESIDE_GC = (
    CROWD
    + """
while not (root.parent / "collecting").exists():
    time.sleep(0.01)
lost = served = 0
for turn in range(rounds):
    store, number = Store(root), chance.randrange(40)
    try:
        found = store.lookup("crowd", keys.digest(preimage(number)))
        if found is None:
            found = publish(store, number, b"%d of %d" % (number, me))
        assert right(store, found, number)
        same = store.materialise(found.outputs["same"], root.parent / f"{me}-{turn}")
        assert same.stat().st_size == 3996
        served += 1
    except DamagedError:
        lost += 1
print(served, lost)
"""
)
COLLECTOR = (
    CROWD
    + """
went = 0
(root.parent / "collecting").touch()
while not select.select([sys.stdin], [], [], 0)[0]:  # it is closed when the others have ended
    outcome = garbage.collect(Store(root), Policy(max_bytes=0, grace_s=rounds))
    went += len(outcome.results) + len(outcome.blobs)
print(went)
"""
)


def processes(tmp_path: Path, *programs: tuple[str, list[str]]) -> list[str]:
    """What they print, run at the same time; the input of each ends when those before it have."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, arguments in programs
    ]
    ended = [(*process.communicate(), process.returncode) for process in started]
    assert [code for *_, code in ended] == [0] * len(programs), [err for _, err, _ in ended if err]
    return [out for out, *_ in ended]


def test_eight_writers_agree_on_the_result_that_counts(tmp_path: Path) -> None:
    root = tmp_path / "store"
    outs = processes(tmp_path, *((WRITERS, [str(root), str(n), "60"]) for n in range(8)))
    seen = {line for out in outs for line in out.splitlines()}
    assert len(seen) == 60  # one output for each number, whoever asked
    store = Store(root)
    assert not verify(store)
    paths = list(store.record_paths("crowd"))
    assert len(paths) == 60 + 8 * 60
    assert {path.name for path in paths} == {"0"}
    assert len(store.newest("crowd", 10**6)) == len(paths)
    assert not list((root / "tmp").iterdir())
    print(f"8 writers, {len(paths)} results, {len(seen)} of them by all: all survived")


def test_beside_a_collector_that_takes_all_nothing_wrong_is_served(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Store(root).prepare()
    outs = processes(
        tmp_path,
        *((BESIDE_GC, [str(root), str(n), "150"]) for n in range(6)),
        (COLLECTOR, [str(root), "0", "0"]),
    )
    served, lost = (sum(int(out.split()[i]) for out in outs[:6]) for i in range(2))
    assert served > lost
    assert int(outs[6]) > 0
    assert not [one for one in verify(Store(root)) if one.kind in ("blob", "record")]
    print(f"{served} served right, {lost} lost and made again, {outs[6].strip()} taken meanwhile")


def test_a_collector_with_a_grace_period_takes_nothing_from_under_a_writer(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    Store(root).prepare()
    outs = processes(
        tmp_path,
        *((BESIDE_GC, [str(root), str(n), "100"]) for n in range(6)),
        (COLLECTOR, [str(root), "0", "3600"]),
    )
    assert [out.split() for out in outs[:6]] == [["100", "0"]] * 6
    assert outs[6].strip() == "0"
    assert not verify(Store(root))


# --- rot


def small(store: Store) -> tuple[Record, Path]:
    """A result, and where its record is."""
    outputs = {"out": store.put_bytes(b"forty bytes that a stage gave, no more..")}
    record = store.publish(Record("rot", "ab" * 32, {"n": 1}, outputs, made_at="2026"))
    return record, store.record_path("rot", "ab" * 32, 0)


def overwrite(path: Path, data: bytes) -> None:
    """As a disk does it: the file's time stays."""
    facts = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_flipped_bit_anywhere_in_a_record_is_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record, path = small(store)
    data = encode(record)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(flipped)
        assert store.lookup("rot", record.key) is None, bit
        assert not path.exists()
    print(f"{len(data) * 8} flipped bits of a record: each a miss")


def test_a_record_cut_at_any_length_is_told_and_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record, path = small(store)
    data = encode(record)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert [one.kind for one in verify(store)] == ["record"], length
        assert store.lookup("rot", record.key) is None
        assert not verify(store)
    print(f"{len(data)} lengths of a record: each told, and a miss")


@pytest.mark.parametrize("seen", [True, False], ids=["written to", "rotted"])
def test_a_flipped_bit_anywhere_in_a_file_is_never_read(tmp_path: Path, seen: bool) -> None:
    store = Store(tmp_path / "store")
    record, _ = small(store)
    digest = record.outputs["out"]
    data = store.read(digest)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(store.blob(digest), bytes(flipped))
        if seen:
            os.utime(store.blob(digest))
        fresh = Store(store.root)
        assert [one.kind for one in verify(fresh)] == ["blob", "result"]
        if seen:
            assert fresh.lookup("rot", record.key) is None
        with pytest.raises(DamagedError):
            fresh.materialise(digest, tmp_path / "out")
        assert Store(store.root).lookup("rot", record.key) is None
        assert store.put_bytes(data) == digest
        assert Store(store.root).lookup("rot", record.key) == record
    print(f"{len(data) * 8} flipped bits of a file: none read")


def test_a_file_cut_at_any_length_is_a_miss(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    record, _ = small(store)
    digest = record.outputs["out"]
    data = store.read(digest)
    for length in range(len(data)):
        overwrite(store.blob(digest), data[:length])
        assert Store(store.root).lookup("rot", record.key) is None
        assert store.put_bytes(data) == digest
        assert Store(store.root).lookup("rot", record.key) == record
    print(f"{len(data)} lengths of a file: each a miss")
