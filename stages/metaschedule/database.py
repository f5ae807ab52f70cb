"""The tuning database: a file of finished trials for each search, so that a killed search resumes.

A search is (workload, target, toolchain, space, seed). A trial counts when its line is on disk,
error included. Appends are locked; a line torn by a kill is no trial, and is skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A finished measurement.

    round: of the search in which the schedule was proposed
    key:   structural hash of the scheduled PrimFunc
    trace: JSON of the trace that makes it
    ms:    median time, None when it failed; `error` says how
    """

    round: int
    key: str
    trace: str
    ms: float | None
    error: str = ""


class SearchFile:
    """The trials of one search, in the order in which they finished."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        """In: `identity` says which search it is: workload, target, toolchain, space, seed."""
        text = json.dumps(dict(identity), sort_keys=True)
        self._identity = dict(identity)
        self._path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.jsonl"

    def trials(self) -> list[Trial]:
        """Finished trials; a schedule that is there twice counts once."""
        names = {field.name for field in fields(Trial)}
        rows = [row for row in self._rows() if row.keys() == names]
        return list({row["key"]: Trial(**row) for row in reversed(rows)}.values())[::-1]

    def default_ms(self, measured: float) -> float:
        """The default schedule's time when this search began, so that a resumed one shares out
        its budget as before; `measured` when it begins now."""
        for row in self._rows():
            if "default_ms" in row:
                return row["default_ms"]
        self._append({**self._identity, "default_ms": measured})
        return measured

    def add(self, trial: Trial) -> None:
        """Returns when the trial is on disk."""
        self._append(asdict(trial))

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill
                continue
            if isinstance(row, dict):
                yield row

    def _append(self, row: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                torn = file.read(1) != b"\n"
            else:
                torn = False
            file.write((b"\n" if torn else b"") + json.dumps(row, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
