"""Machines that share a cache: each a store of its own, and what the tests look at there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tapml.store.record import decode

Machines = Any  # the fixture of tests/engine/conftest.py
Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """Every file below a folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def objects(folder: Path) -> Files:
    """What a shared cache holds, its marker left out."""
    return {name: data for name, data in files(folder).items() if name != "tapml.json"}


def place_of(name: str, data: bytes) -> bool:
    """Whether an object is whole and lies where it belongs."""
    kind, group, last = name.split("/")
    if kind == "cas":
        return hashlib.sha256(data).hexdigest() == last and last.startswith(group)
    record = decode(data)
    return record is not None and (kind, record.stage, record.key) == ("ac", group, last)
