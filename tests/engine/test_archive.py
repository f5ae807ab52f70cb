"""Results as one file: what goes out comes in, and nothing else does."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored import publish, stored

from tapml.errors import RecipeError
from tapml.store import Record, Store, archive, inventory
from tapml.store.blobs import DamagedError
from tapml.store.record import encode
from tapml.store.verification import verify

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


@pytest.fixture
def exported(store: Store, tmp_path: Path) -> tuple[Path, Record]:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_bytes(b"deep" * 1000)
    made = publish(
        store,
        log=store.put_bytes(b"its log"),
        views=store.put(tmp_path / "folder"),
        made_on={"cpu": "another", "machine": "elsewhere"},
        seconds=3.5,
    )
    archive.export(store, inventory.select(store, ["text"]), tmp_path / "results.tar")
    return tmp_path / "results.tar", made


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as source:
        return [(one, source.extractfile(one).read()) for one in source]


def write(path: Path, found: list[Member]) -> Path:
    with tarfile.open(path, "w") as out:
        for member, data in found:
            out.addfile(member, io.BytesIO(data))
    return path


def named(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    return member, data


def refused(store: Store, path: Path, match: str) -> None:
    """Nothing of it counts."""
    with pytest.raises(RecipeError, match=match) as caught:
        archive.load(store, path)
    assert caught.value.exit_code == 2
    assert stored(store) == set()
    assert verify(store) == []


def test_what_goes_out_comes_in_with_its_files_its_log_and_its_views(exported, other, tmp_path):
    path, made = exported
    done = archive.load(other, path)
    assert done.new == [made]
    assert other.lookup("text", made.key) == made
    assert other.read(made.log) == b"its log"
    assert (other.materialise(made.views, tmp_path / "views") / "deep" / "file").stat().st_size
    assert verify(other) == []
    assert archive.load(other, path).known == [made]


def test_what_is_here_already_stays_as_it_is(exported, other):
    path, made = exported
    mine = publish(other, text="another text", seconds=1.0)
    assert mine.key == made.key
    assert archive.load(other, path).known == [mine]
    assert other.lookup("text", made.key) == mine


def test_a_timing_of_another_machine_says_so(exported, other):
    (here,) = archive.load(other, exported[0]).new
    assert here.made_on["machine"] == "elsewhere"


def test_equal_results_make_an_equal_file(exported, other, tmp_path):
    path, _ = exported
    archive.load(other, path)
    archive.export(other, inventory.select(other, ["text"]), tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == path.read_bytes()


def test_of_several_generations_the_newest_goes_out(store, other, tmp_path):
    publish(store, text="first")
    second = publish(store, text="second", force=True)
    archive.export(store, inventory.select(store, ["text"]), tmp_path / "results.tar")
    assert archive.load(other, tmp_path / "results.tar").new == [second]


def test_a_file_that_is_there_is_not_written_over(exported, store):
    path, _ = exported
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="there already"):
        archive.export(store, inventory.select(store, ["text"]), path)
    assert path.read_bytes() == before


def test_what_is_damaged_does_not_go_out(store, tmp_path):
    made = publish(store)
    blob = store.blob(made.outputs["out"])
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        archive.export(store, inventory.select(store, ["text"]), tmp_path / "results.tar")
    assert not list(tmp_path.glob("*results*"))


TRICKS: dict[str, Callable[[], Member]] = {
    "climbs": lambda: named("../../escape"),
    "climbs from a blob": lambda: named("cas/../../escape"),
    "is absolute": lambda: named("/tmp/escape"),
    "ends oddly": lambda: named("cas/" + "a" * 64 + "\n"),
    "is a link": lambda: named("cas/" + "a" * 64, b"", tarfile.SYMTYPE, "/etc/passwd"),
    "is a hard link": lambda: named("cas/" + "a" * 64, b"", tarfile.LNKTYPE, "/etc/passwd"),
    "is a link of a record": lambda: named(
        f"ac/text/{'a' * 64}.record", b"", tarfile.SYMTYPE, "/etc/passwd"
    ),
    "is a device": lambda: named("cas/" + "a" * 64, b"", tarfile.CHRTYPE),
    "is a pipe": lambda: named("cas/" + "a" * 64, b"", tarfile.FIFOTYPE),
    "is a folder": lambda: named("cas/" + "a" * 64, b"", tarfile.DIRTYPE),
    "has other bytes": lambda: named("cas/" + "a" * 64),
    "is of a hidden stage": lambda: named(f"ac/.hidden/{'a' * 64}.record"),
    "is of no stage": lambda: named(f"ac/../{'a' * 64}.record"),
    "is no record": lambda: named(f"ac/text/{'a' * 64}.record"),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("first", [True, False])
def test_a_member_that_plays_tricks_refuses_the_archive(exported, other, tmp_path, trick, first):
    good, bad = members(exported[0]), TRICKS[trick]()
    path = write(tmp_path / "bad.tar", [bad, *good] if first else [*good, bad])
    before = {one for one in tmp_path.parent.rglob("*") if "other" not in one.parts}
    refused(other, path, "no archive of results, or is damaged")
    after = {one for one in tmp_path.parent.rglob("*") if "other" not in one.parts}
    assert after == before


def test_a_sparse_member_cannot_make_much_of_little(exported, other, tmp_path):
    member, data = named("cas/" + "a" * 64, b"x" * 512)
    member.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.name": member.name,
        "GNU.sparse.size": str(1 << 50),
        "GNU.sparse.map": "0,1",
    }
    path = write(tmp_path / "bad.tar", [(member, data), *members(exported[0])])
    refused(other, path, "is no plain file")


def test_a_compressed_archive_is_refused(exported, other, tmp_path):
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(gzip.compress(exported[0].read_bytes()))
    refused(other, path, "no archive of results")


def test_a_record_without_its_files_is_refused(exported, other, tmp_path):
    kept = [one for one in members(exported[0]) if not one[0].name.startswith("cas/")]
    refused(other, write(tmp_path / "bad.tar", kept), "which is not there")


def test_a_record_under_another_key_is_refused(exported, other, tmp_path):
    path, made = exported
    lying = encode(Record("text", "ab" * 32, made.preimage, made.outputs, blobs=made.blobs))
    rest = [one for one in members(path) if not one[0].name.startswith("ac/")]
    bad = [*rest, named(f"ac/text/{'ab' * 32}.record", lying)]
    refused(other, write(tmp_path / "bad.tar", bad), "is another one's")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(part=st.floats(0.0, 1.0, exclude_max=True))
def test_an_archive_that_is_cut_short_is_refused(exported, tmp_path_factory, part):
    with tarfile.open(exported[0]) as source:
        last = source.getmembers()[-1]
    whole = last.offset_data + last.size  # what follows is padding
    folder = tmp_path_factory.mktemp("cut")
    (folder / "cut.tar").write_bytes(exported[0].read_bytes()[: int(part * whole)])
    refused(Store(folder / "other"), folder / "cut.tar", "no archive of results, or is damaged")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(where=st.floats(0.0, 1.0, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_lets_in_nothing_wrong(exported, tmp_path_factory, where, bit):
    path, made = exported
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "flipped.tar").write_bytes(data)
    other = Store(folder / "other")
    try:
        archive.load(other, folder / "flipped.tar")
    except RecipeError:
        assert stored(other) == set()
    else:
        assert other.lookup("text", made.key) == made
    assert verify(other) == []
