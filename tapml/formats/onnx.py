"""ONNX files without the bytes of their weights.

The file's wire format is walked, weights are left out, and the small rest is what the package
`onnx` parses: a file of 2 GB costs as little as its graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import EnvironmentalError
from .bounded import MAX_RANK, Tensor, inside, opened, refuse, short, shown, sizes
from .other import refuse_other

_MAX_FIELDS = 500_000  # of all messages together
_MAX_GRAPH = 48 << 20  # bytes of what is no weight
_MAX_DEPTH = 40  # messages within messages
_SMALL = 1024  # bytes of a tensor that stays: shapes, axes
_WINDOW = 1 << 16
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
BITS: Mapping[str, int] = dict(DTYPES.values())
# message → field → message, for those that lead to tensors
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "function": {7: "node", 11: "attribute"},
}
# message → fields that are texts; protobuf itself takes any bytes for one
_TEXTS: Mapping[str, frozenset[int]] = {
    "model": frozenset({2, 3, 4}),
    "graph": frozenset({2}),
    "node": frozenset({1, 2, 3, 4, 7}),
    "attribute": frozenset({1}),
    "tensor": frozenset({8}),
    "function": frozenset({1, 4, 5, 6, 10}),
}
_VALUE_INFO = 13  # of a graph; what an exporter thought of shapes
_DIMS, _DTYPE, _RAW = 1, 2, 9
_DATA = {4, 5, 7, _RAW, 10, 11}  # fields of a tensor that hold its values


@dataclass(frozen=True)
class Model:
    """An ONNX model whose large tensors have no values.

    proto:    the `onnx.ModelProto`
    weights:  initializers by name, and values of Constant nodes (where Paddle keeps weights)
    """

    path: Path
    proto: Any
    weights: Mapping[str, Tensor]


def read(path: Path) -> Model:
    """The model in a file, external data checked and left where it is.

    Raises: StageError naming what is wrong; EnvironmentalError without the package `onnx`.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        hint = "pip install 'tapml[onnx]'"
        raise EnvironmentalError(message="package 'onnx' is not installed", hint=hint) from error
    refuse_other(path, "ONNX model")
    decode_error: Any = importlib.import_module("google.protobuf.message").DecodeError
    with opened(path) as (source, size):
        graph = b"".join(_Wire(path, source, size).message("model", 0, size))
    try:
        proto = onnx.ModelProto.FromString(graph)
    except decode_error as error:
        refuse(path, f"no ONNX model, or cut off ({shown(error)})")
    if not proto.graph.node or not proto.graph.output:
        refuse(path, "no ONNX model: it has no graph with nodes and outputs")
    for one in (*proto.graph.input, *proto.graph.output, *proto.opset_import):
        _demand_texts(path, one)
    return Model(path, proto, {one.name: one for one in weights(path, proto.graph)})


def _demand_texts(path: Path, message: Any) -> None:
    """Raises StageError when a text of a message is none; protobuf takes any bytes for one."""
    for field, value in message.ListFields():
        values = (
            [value] if isinstance(value, bytes | str) or not hasattr(value, "__len__") else value
        )
        for one in values:
            if isinstance(one, bytes):
                refuse(path, f"{shown(one)} is no text", where=field.full_name)
            elif hasattr(one, "ListFields"):
                _demand_texts(path, one)


def tensor_of(path: Path, proto: Any, name: str) -> Tensor:
    """A description of a TensorProto. Raises: StageError, also for data outside of the folder."""
    where = f"tensor {shown(name)}"
    dtype, bits = _dtype(path, proto.data_type, where)
    shape = sizes(path, list(proto.dims), where=where)
    nbytes = (prod(shape) * bits + 7) // 8
    if proto.data_location != 1:
        return Tensor(name, dtype, shape, nbytes, file=path.name)
    for one in proto.external_data:
        _demand_texts(path, one)
    facts = {one.key: one.value for one in proto.external_data}
    file = inside(path.parent, facts.get("location", ""))
    start, length = (
        _digits(path, facts.get(key, ""), other, where)
        for key, other in (("offset", 0), ("length", nbytes))
    )
    with opened(file) as (_, size):
        if length != nbytes or start + length > size:
            place = f"the {length} bytes from {start} of {size} in {file}"
            refuse(path, f"{dtype} {short(list(shape))} is not {place}", where=where)
    return Tensor(name, dtype, shape, nbytes, start, file.name)


def _digits(path: Path, text: str, other: int, where: str) -> int:
    if not text:
        return other
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        refuse(path, f"{shown(text)} is no place in a file", where=where)
    return int(text)


def _dtype(path: Path, code: int, where: str) -> tuple[str, int]:
    if code not in DTYPES:
        refuse(path, f"unknown dtype {code}", where=where)
    return DTYPES[code]


def weights(path: Path, graph: Any) -> Iterator[Tensor]:
    """Initializers of a graph, and the values of its Constant nodes. Raises: StageError."""
    for one in graph.initializer:
        yield tensor_of(path, one, one.name)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield tensor_of(path, attribute.t, node.output[0])


def bodies(graph: Any) -> Iterator[Any]:
    """The graphs within the nodes of a graph, and those within them."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield inner
                    yield from bodies(inner)


class _Wire:
    """Walks protocol buffers in a file, and gives them back without the values of tensors."""

    def __init__(self, path: Path, source: BinaryIO, size: int) -> None:
        self.path, self.source, self.size = path, source, size
        self.fields = self.kept = 0
        self.window, self.first = b"", 0

    def message(self, kind: str, start: int, end: int, depth: int = 0) -> Iterator[bytes]:
        """The bytes of a message, in parts."""
        if depth > _MAX_DEPTH:
            refuse(self.path, "graphs nested too deep", where=f"byte {start}")
        if kind == "tensor":
            yield from self.tensor(start, end)
            return
        inner = _INNER[kind]
        for field, wire, head, at, stop in self.walk(start, end):
            if field in inner and wire == 2:
                parts = b"".join(self.message(inner[field], at, stop, depth + 1))
                yield _varint(field << 3 | 2) + _varint(len(parts)) + parts
            elif (kind, field) != ("graph", _VALUE_INFO):
                yield self.field(kind, field, head, at, stop)

    def tensor(self, start: int, end: int) -> Iterator[bytes]:
        """A tensor without its values, whose size is checked against its shape."""
        shape: list[int] = []
        code = raw = -1
        for field, wire, head, at, stop in self.walk(start, end):
            if field == _DIMS:
                while at < stop:
                    size, at = self.varint(at, stop)
                    shape.append(size)
                    if len(shape) > MAX_RANK:
                        what = f"a shape of more than {MAX_RANK} axes"
                        refuse(self.path, what, where=f"the tensor at byte {start}")
            elif field == _DTYPE and wire == 0:
                code, _ = self.varint(at, stop)
            elif field == _RAW:
                raw = stop - at
            if field not in _DATA or stop - at <= _SMALL:
                yield self.field("tensor", field, head, at, stop)
        dtype, bits = DTYPES.get(code, ("", 0))
        if raw >= 0 and bits and raw != (prod(shape) * bits + 7) // 8:
            what = f"{dtype} {short(shape)} in {raw} bytes"
            refuse(self.path, what, where=f"the tensor at byte {start}")

    def walk(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Field, wire type, start of the field, and start and end of its content."""
        at = start
        while at < end:
            self.fields += 1
            if self.fields > _MAX_FIELDS:
                refuse(self.path, f"more than {_MAX_FIELDS} fields", where=f"byte {at}")
            head = at
            tag, at = self.varint(at, end)
            wire, stop = tag & 7, end + 1
            if wire == 0:
                _, stop = self.varint(at, end)
            elif wire == 1:
                stop = at + 8
            elif wire == 5:
                stop = at + 4
            elif wire == 2:
                length, at = self.varint(at, end)
                stop = at + length
            if stop > end or not tag >> 3:
                refuse(self.path, "no ONNX model, or cut off", where=f"byte {head}")
            yield tag >> 3, wire, head, at, stop
            at = stop

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An integer and where it ends."""
        if not self.first <= at <= at + 10 <= self.first + len(self.window):
            self.source.seek(at)
            self.window, self.first = self.source.read(_WINDOW), at
        first = at - self.first
        byte = self.window[first] if at < end and first < len(self.window) else 0x80
        if byte < 0x80:  # as most are
            return byte, at + 1
        digits = self.window[first : min(end - self.first, first + 10)]
        length = next((i for i, one in enumerate(digits, 1) if one < 0x80), 0)
        if not length:
            refuse(self.path, "no ONNX model, or cut off", where=f"byte {at}")
        value = sum((one & 0x7F) << 7 * i for i, one in enumerate(digits[:length]))
        return value, at + length

    def field(self, kind: str, field: int, head: int, at: int, stop: int) -> bytes:
        """A field as it is; a text must be one."""
        data = self.bytes(head, stop)
        if field in _TEXTS[kind]:
            try:
                data[at - head :].decode()
            except UnicodeDecodeError:
                refuse(self.path, "a name that is no text", where=f"byte {at}")
        return data

    def bytes(self, start: int, end: int) -> bytes:
        self.kept += end - start
        if self.kept > _MAX_GRAPH:
            what = f"more than {_MAX_GRAPH >> 20} MiB that are no weights"
            refuse(self.path, what, where=f"byte {start}")
        first = start - self.first
        if first >= 0 and end - self.first <= len(self.window):
            return self.window[first : end - self.first]
        self.source.seek(start)
        return self.source.read(end - start)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
