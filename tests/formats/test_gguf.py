from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.models import gguf as written
from fuzz.models import sound, string

from tapml.errors import StageError
from tapml.formats import gguf

Write = Callable[[str, bytes], Path]


def test_a_header_says_what_the_library_wrote(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "é", "c"])
    writer.add_rope_freq_base(1e4)
    rows = {"plain": np.ones((2, 5), np.float32), "packed": np.ones((4, 64), np.float32)}
    writer.add_tensor("plain", rows["plain"])
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("packed", quants.quantize(rows["packed"], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = gguf.read(path)
    assert header.metadata["llama.block_count"] == 3
    assert header.metadata["tokenizer.ggml.tokens"] == ("a", "é", "c")
    assert header.metadata["llama.rope.freq_base"] == 1e4
    found = {name: (one.shape, one.dtype) for name, one in header.tensors.items()}
    assert found == {"plain": ((2, 5), "float32"), "packed": ((4, 64), "q8_0")}
    one = header.tensors["plain"]
    held = np.frombuffer(path.read_bytes(), "float32", one.count, one.start)
    np.testing.assert_array_equal(held, rows["plain"].ravel())


def test_blocks_are_those_of_the_library() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    known = {kind: (block, nbytes) for kind, (_, block, nbytes) in gguf.DTYPES.items()}
    assert known == {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}


def value(kind: int, text: bytes) -> bytes:
    return written(metadata=[("k", kind, text)])


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return value(9, struct.pack("<IQ", kind, count) + data)


SMALL = ("t", (4,), 0, 0)
LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "announced"),
    "another magic": (b"GGML" + bytes(40), "no GGUF"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (written(counts=(1 << 60, 0)), "1152921504606846976 tensors"),
    "2^60 keys": (written(counts=(0, 1 << 60)), "1152921504606846976 keys"),
    "more keys than there are": (written(metadata=[("k", 7, b"\1")], counts=(0, 2)), "no name"),
    "a text of 2^60 bytes": (value(8, struct.pack("<Q", 1 << 60)), "announced"),
    "an array of 2^60 bytes": (array(0, 1 << 60), "array of 1152921504606846976"),
    "an array beyond the file": (array(10, 1000), "announced"),
    "an array of arrays": (array(9, 1, struct.pack("<IQ", 9, 1) * 50), "array of arrays"),
    "an array of an unknown type": (array(99, 1), "unknown type 99"),
    "an unknown type": (value(99, b""), "unknown type 99"),
    "a key twice": (written(metadata=[("k", 7, b"\1"), ("k", 7, b"\1")]), "given twice"),
    "a key without a name": (written(metadata=[("", 7, b"\1")]), "no name"),
    "an alignment of 0": (
        written(metadata=[("general.alignment", 4, bytes(4))]),
        "no power of two",
    ),
    "an alignment that is a text": (
        written(metadata=[("general.alignment", 8, string("32"))]),
        "no power of two",
    ),
    "2^32 - 1 axes": (written([("t", (), 0, 0)]).replace(b"t" + bytes(4), b"t" + b"\xff" * 4),
                      "4294967295 axes"),
    "sizes whose product has no end": (written([("t", (2**63, 2**63), 0, 0)]), "more elements"),
    "an unknown quantisation": (written([("t", (4,), 4, 0)], data=bytes(16)), "unknown type 4"),
    "rows that are no whole blocks": (written([("t", (33, 32), 8, 0)]), "no whole q8_0 blocks"),
    "an offset that is not aligned": (written([("t", (4,), 0, 4)], data=bytes(64)), "not aligned"),
    "an offset of 2^63": (written([("t", (4,), 0, 1 << 63)], data=bytes(64)), "the file at"),
    "bytes of two tensors": (written([SMALL, ("u", (4,), 0, 0)], data=bytes(64)), "overlap"),
    "a name twice": (written([SMALL, ("t", (4,), 0, 32)], data=bytes(64)), "given twice"),
    "cut off": (sound("gguf")["model.gguf"][:-1], "cut off"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_a_header_that_lies_is_refused(write: Write, data: bytes, match: str) -> None:
    path = write("m.gguf", data)
    with pytest.raises(StageError, match=match) as caught:
        gguf.read(path)
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 600
