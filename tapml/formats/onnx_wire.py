"""The bytes of an ONNX file, walked within bounds and without onnx.

An ONNX file is one protobuf message, and protobuf copies every byte of it, a few times. Here only
lengths are read: a plan is cheap, a file that lies about its lengths is refused before any C++ sees
it, and gigabytes of weights stay where they are.

Source: protobuf's wire format; field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import NoReturn

from .bounded import MAX_RANK, opened, refuse, short

Buffer = bytes | mmap.mmap
LARGE = 1 << 14  # bytes from which on a tensor's values stay in the file
ADVICE = "copy the model with all its files into one folder, without links"
HERE = "tapml.inline"  # key in `external_data`: values at this offset of the model's own file

_MAX_FIELDS = 500_000  # of all messages together
_MAX_GRAPH = 48 << 20  # bytes of what is no weight
_MAX_DEPTH = 64  # messages within messages
_MAX_NAME = 4096  # bytes
_HEADER = 1024  # bytes of values that a header keeps: shapes, axes
# code → NumPy's or ml_dtypes' name, bits
DTYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8_e4m3fn", 8),
    18: ("float8_e4m3fnuz", 8),
    19: ("float8_e5m2", 8),
    20: ("float8_e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4_e2m1fn", 4),
    24: ("float8_e8m0fnu", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}
# message → field → message
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 14: "type", 15: "type",
        22: "sparse", 23: "sparse",
    },
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "value": {2: "type"},
    "type": {1: "array", 4: "holder", 5: "holder", 8: "array", 9: "holder"},
    "holder": {1: "type", 2: "type"},
    "array": {2: "shape"},
    "shape": {1: "dim"},
}  # fmt: skip
# message → fields that are texts; protobuf itself takes any bytes for one
_TEXTS: Mapping[str, frozenset[int]] = {
    "model": frozenset({2, 3, 4}),
    "graph": frozenset({2}),
    "node": frozenset({1, 2, 3, 4, 7, 8}),
    "attribute": frozenset({1}),
    "tensor": frozenset({8}),
    "function": frozenset({1, 4, 5, 6, 10, 13}),
    "value": frozenset({1}),
    "dim": frozenset({2, 3}),
    "entry": frozenset({1, 2}),
    "opset": frozenset({1}),
}
# What nobody reads: what an exporter thought of shapes, quantisation and training; its notes.
_IDLE = frozenset(
    [("model", 14), ("model", 20), ("graph", 13), ("graph", 14), ("graph", 16), ("node", 9),
     ("function", 12), ("function", 14), ("tensor", 16)]
)  # fmt: skip
_DIMS, _DTYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_VALUES = frozenset({4, 5, 6, 7, _RAW, 10, 11})  # fields of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def mapped(path: Path) -> Buffer:
    """A file's bytes. Raises: StageError when there is none, or it is no regular file."""
    with opened(path) as (source, size):  # an empty file cannot be mapped
        return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def header(path: Path, buffer: Buffer) -> bytes:
    """The message without the values of tensors. Raises: StageError."""
    return b"".join(_Wire(path, buffer, keeps=False).message("model", 0, len(buffer)))


def skeleton(path: Path, buffer: Buffer) -> bytes:
    """The message with the values of large tensors pointed at by `HERE`. Raises: StageError."""
    return b"".join(_Wire(path, buffer, keeps=True).message("model", 0, len(buffer)))


def external_files(path: Path, buffer: Buffer) -> dict[str, str]:
    """Files that tensors name → the first tensor that does, as written; nothing is checked.

    Raises: StageError for bytes that are no such message.
    """
    wire, files = _Wire(path, buffer), dict[str, str]()
    for start, end in wire.tensors("model", 0, len(buffer)):
        name, location = "", None
        for field, kind, _, at, stop in wire.walk(start, end):
            if (field, kind) == (_NAME, _BYTES):
                name = wire.text(at, stop)
            elif (field, kind) == (_EXTERNAL, _BYTES):
                entry = {field: wire.text(a, b) for field, _, _, a, b in wire.walk(at, stop)}
                location = entry.get(2, "") if entry.get(1) == "location" else location
        if location is not None:
            files.setdefault(location, name)
    return files


def input_names(path: Path, buffer: Buffer) -> list[str]:
    """Names of what a graph takes, those that have an initializer included. Raises: StageError."""
    wire, names = _Wire(path, buffer), list[str]()
    for number, kind, _, start, end in wire.walk(0, len(buffer)):
        if (number, kind) != (7, _BYTES):
            continue
        for field, kind, _, at, stop in wire.walk(start, end):
            if (field, kind) == (11, _BYTES):
                entry = {n: (a, b) for n, _, _, a, b in wire.walk(at, stop)}
                names.append(wire.text(*entry.get(1, (0, 0))))
    return names


class _Wire:
    """Walks a message and gives it back, the values of tensors left out.

    keeps: values that are not large stay, large ones are pointed at
    """

    def __init__(self, path: Path, buffer: Buffer, *, keeps: bool = False) -> None:
        self.path, self.buffer, self.keeps = path, buffer, keeps
        self.fields = self.kept = 0

    def message(self, kind: str, start: int, end: int, depth: int = 0) -> Iterator[bytes]:
        """The bytes of a message, in parts."""
        if depth > _MAX_DEPTH:
            self.refuse("messages nested too deep", start)
        if kind == "tensor":
            self.check(start, end)
        if kind == "shape" and len(list(islice(self.walk(start, end), MAX_RANK + 1))) > MAX_RANK:
            self.refuse(f"a shape of more than {MAX_RANK} axes", start)
        inner, texts = _INNER.get(kind, {}), _TEXTS.get(kind, frozenset[int]())
        for field, wire, head, at, stop in self.walk(start, end):
            if (kind, field) in _IDLE:
                continue
            if field in inner and wire == _BYTES:
                yield _field(field, b"".join(self.message(inner[field], at, stop, depth + 1)))
            elif kind == "tensor" and field in _VALUES:
                yield self.values(field, head, at, stop)
            else:
                if field in texts:
                    self.demand_text(at, stop)
                yield self.bytes(head, stop)

    def values(self, field: int, head: int, at: int, stop: int) -> bytes:
        """Values of a tensor, as far as they stay."""
        if stop - at < (LARGE if self.keeps else _HEADER):
            return self.bytes(head, stop)
        if not self.keeps:
            return b""
        if field != _RAW:  # written in another way than they lie in memory
            return self.buffer[head:stop]
        entry = _field(1, HERE.encode()) + _field(2, f"{at} {stop - at}".encode())
        return _field(_EXTERNAL, entry) + bytes([_LOCATION << 3, 1])

    def check(self, start: int, end: int) -> None:
        """Raises StageError when a tensor's shape is none, or not that of its values."""
        shape: list[int] = []
        code = raw = -1
        for field, wire, _, at, stop in self.walk(start, end):
            if field == _DIMS:
                while at < stop:
                    size, at = self.varint(at, stop)
                    shape.append(size)
                    if len(shape) > MAX_RANK:
                        self.refuse(f"a shape of more than {MAX_RANK} axes", start)
            elif field == _DTYPE and wire == _VARINT:
                code, _ = self.varint(at, stop)
            elif field == _RAW:
                raw = stop - at
        dtype, bits = DTYPES.get(code, ("", 0))
        if raw >= 0 and bits and raw != (prod(shape) * bits + 7) // 8:
            self.refuse(f"{dtype} {short(shape)} in {raw} bytes", start)

    def tensors(self, kind: str, start: int, end: int, depth: int = 0) -> Iterator[tuple[int, int]]:
        """Where tensors lie that may have their values in other files."""
        if depth > _MAX_DEPTH:
            self.refuse("messages nested too deep", start)
        for field, wire, _, at, stop in self.walk(start, end):
            inner = _INNER[kind].get(field, "")
            if wire != _BYTES:
                continue
            if inner == "tensor":
                yield at, stop
            elif inner in ("graph", "function") or (
                inner in ("node", "attribute", "sparse")
                and self.buffer.find(b"location", at, stop) >= 0
            ):
                yield from self.tensors(inner, at, stop, depth + 1)

    def walk(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Field, wire type, start of the field, and start and end of its content."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > _MAX_FIELDS:
                self.refuse(f"more than {_MAX_FIELDS} fields", at)
            head = at
            tag, at = self.varint(at, end)
            wire, stop = tag & 7, end + 1
            if wire == _VARINT:
                _, stop = self.varint(at, end)
            elif wire == _FIXED64:
                stop = at + 8
            elif wire == _FIXED32:
                stop = at + 4
            elif wire == _BYTES:
                length, at = self.varint(at, end)
                stop = at + length
            if stop > end or not tag >> 3:
                self.refuse("no ONNX model, or cut off", head)
            yield tag >> 3, wire, head, at, stop
            at = stop

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An integer and where it ends."""
        value, shift, byte = 0, 0, 0x80
        while byte >= 0x80:
            if at >= end or shift >= 70:
                self.refuse("no ONNX model, or cut off", at)
            byte = self.buffer[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
        return value, at

    def demand_text(self, start: int, end: int) -> None:
        """Raises StageError for what is no text, or a longer one than any name."""
        if end - start > _MAX_NAME:
            self.refuse(f"a name of {end - start} bytes", start)
        try:
            self.buffer[start:end].decode()
        except UnicodeDecodeError:
            self.refuse("a name that is no text", start)

    def text(self, start: int, end: int) -> str:
        return self.buffer[start : min(end, start + _MAX_NAME)].decode("utf-8", "replace")

    def bytes(self, start: int, end: int) -> bytes:
        self.kept += end - start
        if self.kept > _MAX_GRAPH:
            self.refuse(f"more than {_MAX_GRAPH >> 20} MiB that are no weights", start)
        return self.buffer[start:end]

    def refuse(self, what: str, at: int) -> NoReturn:
        refuse(self.path, what, where=f"byte {at}")


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
