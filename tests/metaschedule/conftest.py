"""Fixtures of the room that measures; puts this folder on the path, for its little programs."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from tapml.stage import Context, Device, Target

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def target() -> Target:
    return Target(kind="llvm", mcpu="x86-64-v3", cores=2, device=Device(kind="local", threads=1))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    work, database = tmp_path / "work", tmp_path / "database"
    work.mkdir()
    progress = tmp_path / "progress.jsonl"
    return Context(work, logging.getLogger("test"), database, progress_file=progress)
