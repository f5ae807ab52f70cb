"""Real inputs of the magika recipes: files of installed packages, as the model sees files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

MANIFEST = Path(__file__).with_name("magika_files.txt")
HALF, BLOCK, PADDING = 1024, 4096, 256


def files() -> dict[str, np.ndarray]:
    """One row of 2048 bytes for every file of the manifest.

    Raises: ValueError when a file is missing or differs from its digest: another version of its
            package is installed than the lock says.
    """
    rows = []
    for line in MANIFEST.read_text(encoding="utf-8").splitlines():
        digest, package, name = line.split(maxsplit=2)
        path = Path(str(metadata.distribution(package).locate_file(name)))
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != digest:
            version = metadata.version(package)
            raise ValueError(
                f"{name} of {package} {version} is not the file of {MANIFEST.name}: install by the "
                "lock, or write a new manifest with `python recipes/magika_files.py`"
            )
        rows.append(features(content))
    return {"bytes": np.stack(rows)}


def features(content: bytes) -> np.ndarray:
    """int32[2048]: first and last 1024 bytes, stripped of white space, padded with 256."""
    start = np.frombuffer(content[:BLOCK].lstrip()[:HALF], np.uint8)
    end = np.frombuffer(content[-BLOCK:].rstrip()[-HALF:], np.uint8)
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: start.size] = start
    row[2 * HALF - end.size :] = end
    return row


def same_label(
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> float:
    """Share of files that get the reference's label."""
    ours, theirs = outputs["target_label"], reference["target_label"]
    return float(np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)))
