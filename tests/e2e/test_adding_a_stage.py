"""docs/adding-a-stage.md works as it stands: its code blocks become an outside package and run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import write_mlp

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "adding-a-stage.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An installed outside package (modules and entry points, as pip leaves them) and a recipe."""
    site = tmp_path / "site"
    info = site / "counting-1.0.dist-info"
    info.mkdir(parents=True)
    for source in blocks("python"):
        name = "count_operators" if "CountOperators" in source else "common_subexpressions"
        (site / f"{name}.py").write_text(source)
    points = [line for block in blocks("toml") for line in block.splitlines()[1:]]
    entry_points = [line.replace('"', "") for line in points]
    (info / "entry_points.txt").write_text("[tapml.stages]\n" + "\n".join(entry_points) + "\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    files = [p.name for p in site.glob("*.py")]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    workflow = (ROOT / "workflows.yaml").read_text()
    added = "".join(blocks("yaml"))
    without = re.sub(r"^ +tensorir:.*\n", "", workflow, flags=re.MULTILINE)
    (tmp_path / "workflows.yaml").write_text(without + added)
    write_mlp(tmp_path)
    return tmp_path


def tapml(outside: Path, *arguments: str) -> dict:
    command = [sys.executable, "-m", "tapml", *arguments, "--json"]
    env = {**os.environ, "PYTHONPATH": str(outside / "site")}
    answer = subprocess.run(
        command, cwd=outside, env=env, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_the_stages_of_the_guide_run_from_an_outside_package_and_are_cached(outside: Path) -> None:
    first = tapml(outside, "run", "recipe.yaml")["runs"][0]["stages"]
    assert first["count_operators"]["state"] == "ran"
    assert first["common_subexpressions"]["state"] == "ran"
    second = tapml(outside, "run", "recipe.yaml")["runs"][0]["stages"]
    assert {stage["state"] for stage in second.values()} == {"hit"}

    module = outside / "site" / "count_operators.py"
    module.write_text(module.read_text() + "\n# changed\n")
    planned = tapml(outside, "plan", "recipe.yaml")["stages"]
    states = {stage["name"]: stage["state"] for stage in planned}
    assert states["count_operators"] == "run"
    assert states["import"] == "hit"
