"""One store for all shipped recipes, and the command as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Answer:
    """What a command gave: exit code, the JSON document on stdout, and stderr."""

    code: int
    data: dict[str, Any]
    stderr: str

    @property
    def run(self) -> dict[str, Any]:
        return self.data["runs"][0]

    @property
    def states(self) -> dict[str, str]:
        """State by stage, of a run or of a plan."""
        if "stages" in self.data:
            return {stage["name"]: stage["state"] for stage in self.data["stages"]}
        return {name: stage["state"] for name, stage in self.run["stages"].items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What validation measured."""
        return json.loads((Path(self.run["folder"]) / "facts.json").read_text())

    @property
    def bundle(self) -> Path:
        return Path(self.run["bundle"])


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of a run: what one of them makes, the others wait for and take."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "store"


@pytest.fixture(scope="session")
def tapml(store: Path) -> Callable[..., Answer]:
    """Runs `tapml … --json` on the shared store, tracking off."""

    def command(*arguments: str | Path, cwd: Path = ROOT) -> Answer:
        words = [sys.executable, "-m", "tapml", *map(str, arguments), "--json"]
        env = {**os.environ, "TAPML_STORE": str(store), "TAPML_TRACK": "off"}
        answer = subprocess.run(
            words, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
        data = json.loads(answer.stdout) if answer.stdout.strip() else {}
        return Answer(answer.returncode, data, answer.stderr)

    return command
