"""Bytes ↔ values at the rooms' borders: TVM JSON, npz without pickle, safetensors, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


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
    """`weights.safetensors`, sorted by name, C order, 0-d arrays kept 0-d; written one by one, so
    that mapped arrays are never all in memory.
    """
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(weights):
        array = weights[name]
        begin, end = end, end + array.nbytes
        code = _SAFETENSORS[str(array.dtype)]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(weights):
            array = np.asarray(weights[name], order="C")
            array.tofile(out)


_SAFETENSORS = {
    "bool": "BOOL",
    "bfloat16": "BF16",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


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
    from .compat import tvm

    return tvm.ir.load_json(path.read_text(encoding="utf-8"))
