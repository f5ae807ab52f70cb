"""Headers of safetensors files."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from .bounded import (
    MAX_TENSORS,
    Tensor,
    mapping,
    opened,
    parse_json,
    refuse,
    shown,
    side_by_side,
    sizes,
    whole,
)

_MAX_HEADER = 100_000_000  # bytes; the format's own limit
# name in the header → NumPy's or ml_dtypes' name, bits
DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn", 4),
    "F6_E2M3": ("float6_e2m3fn", 6),
    "F6_E3M2": ("float6_e3m2fn", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
    "F64": ("float64", 64),
    "C64": ("complex64", 64),
}


@dataclass(frozen=True)
class Header:
    """Tensors by name, `start` counted from the first byte of the file, and the writer's notes."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read(path: Path) -> Header:
    """The header of a safetensors file; its tensors cover the rest of the file without holes.

    Raises: StageError naming what is wrong where.
    """
    with opened(path) as (source, size):
        head = source.read(8)
        if len(head) < 8:
            refuse(path, f"{size} bytes are too few for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            what = f"a header of {length} bytes in a file of {size}"
            refuse(path, what, where="byte 0", hint="is it cut off, or no safetensors file?")
        data = source.read(length)
    header = mapping(path, parse_json(path, data, where="the header"), where="the header")
    if len(header) > MAX_TENSORS:
        refuse(path, f"{len(header)} tensors are more than any model has", where="the header")
    start = 8 + length
    notes = mapping(path, header.pop("__metadata__", {}), where="__metadata__")
    if wrong := next((k for k, v in notes.items() if not isinstance(v, str)), None):
        refuse(path, f"{shown(wrong)} is no text", where="__metadata__")
    tensors = [_tensor(path, name, one, start) for name, one in header.items()]
    end = start
    for one in side_by_side(path, tensors):
        if one.start > end:
            refuse(path, f"{one.start - end} bytes before it belong to none", where=shown(one.name))
        end = one.start + one.nbytes
    if end != size:
        what = f"its tensors end at byte {end}, the file at {size}"
        refuse(path, what, hint="is the file cut off?" if end > size else "")
    return Header(path, {one.name: one for one in tensors}, cast("dict[str, str]", notes))


def _tensor(path: Path, name: str, value: Any, start: int) -> Tensor:
    where = f"tensor {shown(name)}"
    entry = mapping(path, value, where=where)
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"its fields are {shown(', '.join(sorted(entry)))}", where=where)
    known = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if known is None:
        refuse(path, f"unknown dtype {shown(entry['dtype'])}", where=where)
    shape = sizes(path, entry["shape"], where=where)
    offsets = sizes(path, entry["data_offsets"], where=where)
    dtype, bits = known
    nbytes = (prod(shape) * bits + 7) // 8
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes or nbytes * 8 != prod(shape) * bits:
        what = f"{entry['dtype']} {list(shape)} is not {shown(list(offsets))} bytes"
        refuse(path, what, where=where)
    return Tensor(
        name, dtype, shape, nbytes, whole(path, start + offsets[0], where=where), path.name
    )
