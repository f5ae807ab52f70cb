from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.models import safetensors as written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tapml.errors import StageError
from tapml.formats import safetensors

ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def two(**changes: object) -> dict[str, object]:
    second = {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}
    return {"a": ONE, "b": {**second, **changes}}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6), st.integers(0, 3))
def test_a_header_says_what_the_library_wrote(
    tmp_path: Path, shapes: list[list[int]], kind: int
) -> None:
    dtype = ("float32", "float16", "int64", "bool")[kind]
    arrays = {f"w{i}": np.ones(shape, dtype) for i, shape in enumerate(shapes)}
    save_file(arrays, tmp_path / "m.safetensors", {"format": "np"})
    header = safetensors.read(tmp_path / "m.safetensors")
    assert header.metadata == {"format": "np"}
    found = {name: (one.shape, one.dtype, one.nbytes) for name, one in header.tensors.items()}
    assert found == {k: (v.shape, str(v.dtype), v.nbytes) for k, v in arrays.items()}


def test_a_tensor_starts_where_its_bytes_are(tmp_path: Path) -> None:
    arrays = {"a": np.arange(4, dtype="float32"), "b": np.arange(6, dtype="int64")}
    path = tmp_path / "m.safetensors"
    save_file(arrays, path)
    data = path.read_bytes()
    for name, one in safetensors.read(path).tensors.items():
        held = np.frombuffer(data, one.dtype, one.count, one.start)
        np.testing.assert_array_equal(held, arrays[name])


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "a header of 2^63 bytes": ((1 << 63).to_bytes(8, "little") + b"{}", "header of 9223372036854"),
    "a header longer than the file": ((99).to_bytes(8, "little") + b"{}", "header of 99"),
    "no JSON": (written(b"{nonsense"), "no JSON"),
    "a list": (written([1]), "object is wanted"),
    "NaN": (written(b'{"a": NaN}'), "NaN is no number"),
    "a number of 5000 digits": (written(b'{"a": ' + b"9" * 5000 + b"}"), "no JSON"),
    "a key given twice": (written(b'{"a": 1, "a": 2}'), "given twice"),
    "lists in lists": (written(b'{"a":' + b"[" * 100_000 + b"}"), "nested too deep"),
    "no UTF-8": (written(b'{"\xff": 1}'), "no JSON"),
    "a text for a tensor": (written({"a": "b"}), "object is wanted"),
    "a field too many": (written({"a": {**ONE, "x": 1}}, bytes(16)), "its fields are"),
    "an unknown dtype": (written({"a": {**ONE, "dtype": "F31"}}, bytes(16)), "unknown dtype"),
    "a dtype that is a list": (written({"a": {**ONE, "dtype": []}}, bytes(16)), "unknown dtype"),
    "a size of 2^62": (written({"a": {**ONE, "shape": [2**62, 4]}}, bytes(16)), "more elements"),
    "a size below 0": (written({"a": {**ONE, "shape": [-1, 4]}}, bytes(16)), "size from 0"),
    "a size that is true": (written({"a": {**ONE, "shape": [True, 4]}}, bytes(16)), "size from 0"),
    "shape and bytes apart": (written({"a": {**ONE, "shape": [2, 3]}}, bytes(16)), "is not"),
    "offsets backwards": (written({"a": {**ONE, "data_offsets": [16, 0]}}, bytes(16)), "is not"),
    "bytes of two tensors": (written(two(data_offsets=[8, 16]), bytes(24)), "overlap"),
    "a hole": (written(two(data_offsets=[20, 28]), bytes(28)), "belong to none"),
    "a tail": (written({"a": ONE}, bytes(20)), "end at byte"),
    "cut off": (written({"a": ONE}, bytes(12)), "cut off"),
    "notes that are numbers": (written({"__metadata__": {"a": 1}, "a": ONE}, bytes(16)), "no text"),
}


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(
    write: Callable[[str, bytes], Path], data: bytes, match: str
) -> None:
    path = write("m.safetensors", data)
    with pytest.raises(StageError, match=match) as caught:
        safetensors.read(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.slow
def test_a_file_of_many_tensors_is_refused_before_they_are_read(
    write: Callable[[str, bytes], Path],
) -> None:
    entry = json.dumps({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})
    text = "{" + ",".join(f'"{i}":{entry}' for i in range(100_001)) + "}"
    with pytest.raises(StageError, match="more than any model"):
        safetensors.read(write("m.safetensors", written(text.encode())))


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in (
        (tmp_path / "pipe", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(StageError, match=match):
            safetensors.read(path)
