"""The benchmark of an import's memory, smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "import_memory.py"


@pytest.mark.torch
@pytest.mark.slow
def test_an_import_holds_large_weights_once(tmp_path: Path) -> None:
    """A second copy of the 800 MiB would show as 2; what Python and torch need beside them does not
    grow with the weights.
    """
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "rows.json"), "0.8"]
    subprocess.run(command, check=True, capture_output=True)
    (row, half) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["float32_mib"] > 700
    assert 0.5 < row["times_float32"] <= 1.5
    assert 0.5 < half["times_float32"] <= 1.5
