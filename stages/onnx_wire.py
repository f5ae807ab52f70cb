"""The bytes of an ONNX file, walked without onnx: which files it names, and where its data lie.

An ONNX file is one protobuf message; protobuf copies every byte of it, a few times. Here only the
lengths are read, so that a plan is cheap, a file that lies about its lengths is refused before any
C++ sees it, and gigabytes of weights stay where they are: `skeleton` is the message with its large
tensors pointing into the file.

Source: protobuf's wire format; field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Buffer = bytes | mmap.mmap
Span = tuple[int, int]
LARGE = 1 << 14  # bytes from which on a tensor's data stay in the file
HERE = "tapml.inline"  # key in `external_data`: data at this offset of the model's own file

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEPTH = 64

# message type → field number → type of the message there; what is not listed holds no tensor
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION = range(7)
_INSIDE: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
}
_OF_MODEL, _INPUT = 7, 11  # graph of a model, input of a graph
_DATA_TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 2, 8, 9, 13, 14


class WireError(ValueError):
    """Bytes that are no such message."""


ADVICE = "copy the model with all its files into one folder, without links"


def beside(model: Path, location: str) -> Path:
    """The file that a model names, in the model's folder. ValueError says why it is none."""
    folder = model.resolve().parent
    if not location or "\0" in location or "\\" in location or os.path.isabs(location):
        raise ValueError("the path is not relative to the model's folder")
    try:
        path = (folder / location).resolve()
        inside, there = path.is_relative_to(folder), path.is_file()
    except OSError as error:
        raise ValueError(error.strerror) from error
    if not inside:
        raise ValueError("the path leaves the model's folder")
    if not there:
        raise ValueError("no such file beside the model")
    return path


def map_file(path: Path) -> Buffer:
    """A file's bytes; an empty one cannot be mapped."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def external_files(buffer: Buffer) -> dict[str, str]:
    """Files that tensors name → the first tensor that does, as written; nothing is checked."""
    files: dict[str, str] = {}
    for start, end in _tensors(buffer, (0, len(buffer)), _MODEL, 0):
        name, location = "", None
        for number, wire, (first, last) in _fields(buffer, (start, end)):
            if number == _NAME and wire == _BYTES:
                name = _text(buffer[first:last])
            elif number == _EXTERNAL and wire == _BYTES:
                entry = {n: buffer[a:b] for n, _, (a, b) in _fields(buffer, (first, last))}
                if entry.get(1) == b"location":
                    location = _text(entry.get(2, b""))
        if location is not None:
            files.setdefault(location, name)
    return files


def input_names(buffer: Buffer) -> list[str]:
    """Names of what a graph takes, those that have an initializer included."""
    names: list[str] = []
    for number, wire, graph in _fields(buffer, (0, len(buffer))):
        if (number, wire) != (_OF_MODEL, _BYTES):
            continue
        for field, kind, (first, last) in _fields(buffer, graph):
            if (field, kind) == (_INPUT, _BYTES):
                entry = {n: buffer[a:b] for n, _, (a, b) in _fields(buffer, (first, last))}
                names.append(_text(entry.get(1, b"")))
    return names


def skeleton(buffer: Buffer) -> bytes:
    """The message with the data of its large tensors left out and pointed at by `HERE`."""
    return b"".join(_without_data(buffer, (0, len(buffer)), _MODEL, 0))


def _without_data(buffer: Buffer, span: Span, kind: int, depth: int) -> list[bytes]:
    if depth > _DEPTH:
        raise WireError(f"messages are nested more than {_DEPTH} deep")
    parts, done = list[bytes](), span[0]
    for number, wire, (start, end), tag in _tagged_fields(buffer, span):
        if wire != _BYTES or end - start < LARGE:
            continue
        if kind == _TENSOR and number == _RAW:
            place = f"{start} {end - start}".encode()
            entry = _field(1, HERE.encode()) + _field(2, place)
            new = _field(_EXTERNAL, entry) + bytes([_LOCATION << 3, 1])
        elif (inside := _INSIDE[kind].get(number)) is not None:
            new = _field(number, b"".join(_without_data(buffer, (start, end), inside, depth + 1)))
        else:
            continue
        parts += [buffer[done:tag], new]
        done = end
    return [*parts, buffer[done : span[1]]]


def _tensors(buffer: Buffer, span: Span, kind: int, depth: int) -> Iterator[Span]:
    """Where tensors lie."""
    if depth > _DEPTH:
        raise WireError(f"messages are nested more than {_DEPTH} deep")
    for number, wire, (start, end) in _fields(buffer, span):
        inside = _INSIDE[kind].get(number)
        if wire != _BYTES or inside is None:
            continue
        if inside == _TENSOR:
            yield start, end
        elif inside in (_GRAPH, _FUNCTION) or buffer.find(b"location", start, end) >= 0:
            yield from _tensors(buffer, (start, end), inside, depth + 1)


def _fields(buffer: Buffer, span: Span) -> Iterator[tuple[int, int, Span]]:
    return ((number, wire, place) for number, wire, place, _ in _tagged_fields(buffer, span))


def _tagged_fields(buffer: Buffer, span: Span) -> Iterator[tuple[int, int, Span, int]]:
    """Number, wire type and place of each field's value, and where its tag begins.

    Raises: WireError for a field that ends behind its message, or of no known type.
    """
    at, end = span
    while at < end:
        begin = at
        tag, at = _varint(buffer, at, end)
        number, wire = tag >> 3, tag & 7
        start = at
        if wire == _VARINT:
            _, at = _varint(buffer, at, end)
        elif wire == _BYTES:
            length, start = _varint(buffer, at, end)
            at = start + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise WireError(f"a field of unknown type {wire} at byte {begin}")
        if at > end or not number:
            raise WireError(f"the field at byte {begin} ends behind what holds it")
        yield number, wire, (start, at), begin


def _varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = buffer[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WireError(f"a number that does not end, at byte {at}")


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(content)) + content


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(content: Any) -> str:
    return bytes(content).decode("utf-8", "replace")
