"""Lines that are torn, rot, or are written by two at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml import disk
from tapml.errors import EnvironmentalError
from tapml.tuning import lines

numbers = st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = numbers | st.text() | st.lists(numbers, max_size=3)
rows = st.dictionaries(st.text(max_size=5), values, max_size=4).filter(lambda row: "sum" not in row)
few = settings(max_examples=30)


@few
@given(rows)
def test_a_row_is_read_back_as_it_was(row: dict[str, Any]) -> None:
    line = lines.encode(row)
    assert line.count(b"\n") == 1
    assert lines.decode(line) == row


@few
@given(rows, st.data())
def test_a_line_with_another_byte_in_it_is_no_row_or_says_the_same(
    row: dict[str, Any], data: st.DataObject
) -> None:
    line = lines.encode(row)[:-1]
    at = data.draw(st.integers(0, len(line) - 1))
    flipped = bytes([line[at] ^ 1 << data.draw(st.integers(0, 7))])
    assert lines.decode(line[:at] + flipped + line[at + 1 :]) in (None, row)


@few
@given(rows, st.data())
def test_a_line_that_is_cut_is_no_row(row: dict[str, Any], data: st.DataObject) -> None:
    line = lines.encode(row)[:-1]
    assert lines.decode(line[: data.draw(st.integers(0, len(line) - 1))]) is None


@pytest.mark.parametrize("line", [b"[1]", b'{"a": NaN, "sum": ""}', b"[" * 9999, b"\xff", b"null"])
def test_what_is_no_row_is_none(line: bytes) -> None:
    assert lines.decode(line) is None


def test_a_torn_last_line_costs_itself_and_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines.append(file, {"a": 1})
    file.write_bytes(file.read_bytes() + lines.encode({"a": 2})[:-9])
    lines.append(file, {"a": 3})
    assert list(lines.read(file)) == [(1, {"a": 1}), (2, None), (3, {"a": 3})]


def test_the_first_row_is_written_to_an_empty_file_only(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    for number in range(2):
        lines.append(file, {"a": number}, first={"head": number})
    assert [row for _, row in lines.read(file)] == [{"head": 0}, {"a": 0}, {"a": 1}]


def test_a_full_disk_is_told_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    lines.append(file, {"a": 1})
    before = file.read_bytes()

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(disk, "write_all", half)
    with pytest.raises(EnvironmentalError, match="No space left on device"):
        lines.append(file, {"a": 2})
    assert file.read_bytes() == before


WRITER = """
import sys
from pathlib import Path
from tapml.tuning import lines
for number in range(int(sys.argv[2])):
    lines.append(Path(sys.argv[1]), {"writer": sys.argv[3], "number": number, "x": "y" * 5000})
"""


def test_two_writers_lose_no_row_while_a_third_replaces_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), "30", name]) for name in "ab"
    ]
    while any(writer.poll() is None for writer in writers):
        with lines.locked(file):
            kept = [row for _, row in lines.read(file) if row is not None]
            lines.replace(file, kept)
    assert [writer.returncode for writer in writers] == [0, 0]
    found = [(row["writer"], row["number"]) for _, row in lines.read(file) if row is not None]
    assert sorted(found) == [(name, number) for name in "ab" for number in range(30)]
    for name in "ab":
        assert [n for w, n in found if w == name] == list(range(30))
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.faults
def test_a_writer_that_is_killed_costs_one_row_at_most(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for number in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file), "100000", str(number)])
        least = file.stat().st_size if file.exists() else 0
        while not file.exists() or file.stat().st_size < least + 100_000:
            assert writer.poll() is None
        writer.kill()
        writer.wait()
    read = list(lines.read(file))
    assert sum(row is None for _, row in read) <= 3
    found = [(row["writer"], row["number"]) for _, row in read if row is not None]
    assert len(found) == len(set(found)) > 50
    for name in "012":
        own = [n for w, n in found if w == name]
        assert own == list(range(len(own)))


def test_rows_are_plain_json(tmp_path: Path) -> None:
    lines.append(tmp_path / "rows.jsonl", {"a": "ü"})
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row.keys() == {"a", "sum"}
