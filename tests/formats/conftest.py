"""Files of a model, written down where a test wants them, and whether anything of them ran."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes bytes under a name."""

    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once something of a model ran."""
    return tmp_path / "pwned"
