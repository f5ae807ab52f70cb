"""Bytes ↔ values at the rooms' borders: TVM JSON, npz without pickle, safetensors, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 16 << 20  # bytes of one write
_SAFETENSORS = {  # its names of dtypes
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
}


def write_json(path: Path, value: Any) -> None:
    """Canonical JSON (sorted keys, no NaN), so that equal values are equal bytes."""
    path.write_text(
        json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, uncompressed; names may hold any character but NUL. Bytes are
    reproducible.
    """
    with path.open("wb") as out:
        np.savez(out, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})


def read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """`weights.safetensors`, C order, 0-d arrays kept 0-d; one array after the other, none copied
    whole (safetensors' own writer holds all of them twice).

    Wide dtypes come first, so that each array is aligned; then by name.
    """
    names = sorted(weights, key=lambda name: (-weights[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + weights[name].nbytes
        dtype, shape = _SAFETENSORS[str(weights[name].dtype)], list(weights[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            flat = np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8)
            for at in range(0, flat.size, _CHUNK):
                out.write(flat[at : at + _CHUNK].data)


def read_weights(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def save_module(path: Path, mod: Any) -> None:
    """An IRModule as TVM JSON. Structurally equal modules may differ in bytes; never re-print to
    get a digest.
    """
    from .compat import tvm

    path.write_text(tvm.ir.save_json(mod), encoding="utf-8")


def load_module(path: Path) -> Any:
    from .compat import load_json

    return load_json(path.read_text(encoding="utf-8"))
