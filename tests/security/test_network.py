"""What tapml serves is for this machine only."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_line import environment

ROOT = Path(__file__).parents[2]
RECIPE = """\
version: 1
name: served
workflow: import
model: {source: operator, python: "operator_sparse.py:linear", inputs: {x: {shape: [m, 768], \
dtype: float32}}, dims: {m: {min: 1, max: 8}}}
"""


def listening(pid: int) -> Iterator[str]:
    """Addresses that a process and those below it listen on."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                yield one.laddr.ip


@pytest.mark.slow
def test_the_pages_of_mlflow_are_served_on_loopback_alone(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "workflows.yaml").write_text("workflows: {import: {import: {}}}\n")
    text = (ROOT / "recipes" / "operator_sparse.py").read_text()
    (tmp_path / "operator_sparse.py").write_text(text)
    tapml = [sys.executable, "-m", "tapml"]
    env = environment(tmp_path / "store")
    subprocess.run([*tapml, "run", "recipe.yaml"], cwd=tmp_path, env=env, check=True)
    command = [*tapml, "ui", "last"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as ui:
        assert ui.stdout is not None
        try:
            link = next(line for line in ui.stdout if re.search(r"http://127\.0\.0\.1:\d+/", line))
            assert link
            assert set(listening(ui.pid)) == {"127.0.0.1"}
        finally:
            ui.terminate()
