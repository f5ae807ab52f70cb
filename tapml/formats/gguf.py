"""Headers of GGUF files (llama.cpp), versions 2 and 3, little endian."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

from .bounded import MAX_COUNT, MAX_TENSORS, Tensor, opened, refuse, shown, side_by_side

_MAGIC, _CHUNK = int.from_bytes(b"GGUF", "little"), 1 << 20
_MAX_HEADER = 128 << 20  # bytes; the largest vocabularies take about 20 MiB
_MAX_VALUES = 2_000_000  # strings and numbers of all arrays together
_MAX_NAME, _MAX_AXES = 1 << 16, 8
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# type → name, elements of a block, bytes of a block
DTYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("float32", 1, 4),
    1: ("float16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("int8", 1, 1),
    25: ("int16", 1, 2),
    26: ("int32", 1, 4),
    27: ("int64", 1, 8),
    28: ("float64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bfloat16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
}
# types whose blocks are 32 integers of a row and a scale → bits, and whether a least value follows
INTEGERS: Mapping[str, tuple[Literal[4, 8], bool]] = {
    "q4_0": (4, False),
    "q4_1": (4, True),
    "q8_0": (8, False),
}

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True)
class Header:
    """Metadata by key, and tensors by name with `start` counted from the file's first byte.

    Shapes are in NumPy's order: GGUF writes the fastest axis first.
    """

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]


def read(path: Path) -> Header:
    """The header of a GGUF file. Raises: StageError naming what is wrong where."""
    with opened(path) as (source, size):
        return _Reader(path, source, size).header()


class _Reader:
    def __init__(self, path: Path, source: BinaryIO, size: int) -> None:
        self.path, self.source, self.size = path, source, size
        self.data, self.at = bytearray(), 0
        self.values = 0

    def header(self) -> Header:
        if self.number("I", "the magic number") != _MAGIC:
            refuse(self.path, "it is no GGUF file", where="byte 0")
        version = self.number("I", "the version")
        if version not in (2, 3):
            what = f"version {version}"
            if version.bit_length() > 16:
                what = "a file of a big-endian machine"
            refuse(self.path, what, where="byte 4", hint="convert it to version 3, little endian")
        count, keys = self.number("Q", "the counts"), self.number("Q", "the counts")
        # the smallest tensor takes 8 + 4 + 4 + 8 bytes of the header, the smallest key 8 + 4 + 1
        if count * 24 + keys * 13 > self.size or max(count, keys) > MAX_TENSORS:
            what = f"{count} tensors and {keys} keys in {self.size} bytes"
            refuse(self.path, what, where="byte 8")
        metadata: dict[str, Value] = {}
        for _ in range(keys):
            key = self.name("a key")
            where = f"key {shown(key)}"
            if key in metadata:
                refuse(self.path, "given twice", where=where)
            metadata[key] = self.value(self.number("I", where), where)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            refuse(self.path, f"{shown(alignment)} is no power of two", where="general.alignment")
        rows = [self.tensor() for _ in range(count)]
        start = -(-self.at // alignment) * alignment
        tensors = [self.placed(row, start, alignment) for row in rows]
        side_by_side(self.path, tensors)
        by_name = {one.name: one for one in tensors}
        if len(by_name) != len(tensors):
            refuse(self.path, "a tensor's name is given twice", where="the tensors")
        return Header(self.path, version, metadata, by_name)

    def reach(self, count: int, where: str) -> int:
        """Where the next `count` bytes of the header start; never more than there are."""
        start, end = self.at, self.at + count
        if end > min(self.size, _MAX_HEADER):
            refuse(
                self.path, f"{count} bytes announced at byte {start} of {self.size}", where=where
            )
        if end > len(self.data):
            self.data += self.source.read(max(end - len(self.data), _CHUNK))
            if end > len(self.data):
                refuse(self.path, "the file was cut while it was read", where=where)
        self.at = end
        return start

    def number(self, code: str, where: str) -> Any:
        start = self.reach(struct.calcsize(code), where)
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def text(self, where: str) -> str:
        """A string; the format says UTF-8, some writers put raw bytes into vocabularies."""
        count = self.number("Q", where)
        start = self.reach(count, where)
        return self.data[start : start + count].decode("utf-8", "replace")

    def name(self, where: str) -> str:
        name = self.text(f"{where} at byte {self.at}")
        if not name or len(name) > _MAX_NAME or "�" in name:
            refuse(self.path, f"{shown(name)} is no name", where=f"byte {self.at}")
        return name

    def value(self, kind: int, where: str) -> Value:
        if kind == _ARRAY:
            return self.array(where)
        if kind == _STRING:
            return self.text(where)
        if kind not in _SCALARS:
            refuse(self.path, f"unknown type {kind}", where=where)
        return self.number(_SCALARS[kind], where)

    def array(self, where: str) -> tuple[Scalar, ...]:
        kind, count = self.number("I", where), self.number("Q", where)
        if kind == _ARRAY:
            refuse(self.path, "an array of arrays", where=where)
        self.values += count
        if self.values > _MAX_VALUES:
            refuse(self.path, f"an array of {count} values", where=where)
        if kind == _STRING:
            return tuple(self.text(where) for _ in range(count))
        if kind not in _SCALARS:
            refuse(self.path, f"an array of unknown type {kind}", where=where)
        code = f"<{count}{_SCALARS[kind]}"
        start = self.reach(struct.calcsize(code), where)
        return struct.unpack_from(code, self.data, start)

    def tensor(self) -> Tensor:
        name = self.name("a tensor")
        where = f"tensor {shown(name)}"
        if (rank := self.number("I", where)) > _MAX_AXES:
            refuse(self.path, f"{rank} axes", where=where)
        shape = tuple(self.number("Q", where) for _ in range(rank))[::-1]
        kind, offset = self.number("I", where), self.number("Q", where)
        if kind not in DTYPES:
            refuse(self.path, f"unknown type {kind}", where=where)
        dtype, block, block_bytes = DTYPES[kind]
        count = prod(shape)
        if count > MAX_COUNT:
            refuse(
                self.path, f"a shape {list(shape)} of more elements than there can be", where=where
            )
        if count % block or (block > 1 and (not shape or shape[-1] % block)):
            refuse(self.path, f"rows of {list(shape)} are no whole {dtype} blocks", where=where)
        return Tensor(name, dtype, shape, count // block * block_bytes, offset, self.path.name)

    def placed(self, row: Tensor, start: int, alignment: int) -> Tensor:
        """The tensor with its place in the file, which must lie in it and be aligned."""
        where = f"tensor {shown(row.name)}"
        if row.start % alignment:
            refuse(self.path, f"offset {row.start} is not aligned to {alignment}", where=where)
        first = start + row.start
        if first + row.nbytes > self.size:
            what = f"its bytes end at {first + row.nbytes}, the file at {self.size}"
            refuse(self.path, what, where=where, hint="is the file cut off?")
        return Tensor(row.name, row.dtype, row.shape, row.nbytes, first, row.file)
