"""The comparison of engines: its own part, small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "engine" / "run.py"


@pytest.mark.slow
def test_every_scenario_of_every_graph_gives_what_the_graph_says(tmp_path: Path) -> None:
    """The script itself compares each result, and ends when one is wrong."""
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--only", "tapml", "--steps", "30", "--rounds", "1"),
            *("--cache", str(tmp_path / "cache")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if "tapml" in line]
    assert [row[0].strip("| ") for row in rows] == ["chain", "wide", "diamond", "wide", "diamond"]
    assert all("–" not in row[3:7] for row in rows[:3])
