"""A little project: a recipe, its workflow, and stages of another package by entry points."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tapml import host, registry, runs
from tapml.cli import main
from tapml.results import StepResult

HERE = Path(__file__).parent
SITE = HERE / "site"
TRACKING = ("TAPML_TRACK", "TAPML_TRACKING_URI", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `little.yaml`; the working folder. Its store is `artifacts` beside it."""
    folder = tmp_path / "project"
    shutil.copytree(HERE / "recipe", folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("PYTHONPATH", str(SITE))
    monkeypatch.setenv("TAPML_LOCKS", str(tmp_path))
    for name in ("TAPML_STORE", *TRACKING, "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    registry.installed.cache_clear()


@pytest.fixture
def cli(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command in this process, with stages in it too."""
    monkeypatch.setenv("TAPML_TRACK", "off")

    def call(*arguments: str) -> Done:
        inline = arguments[0] == "run" and "--jobs" not in arguments
        here = ("--jobs", "0") if inline else ()
        monkeypatch.setattr(sys, "argv", ["tapml", *arguments, *here])
        with pytest.raises(SystemExit) as ended:
            main()
        seen = capsys.readouterr()
        return Done(int(ended.value.code or 0), seen.out, seen.err)

    return call


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., runs.RunResult]:
    """Saves a run as `tapml run` leaves it, each one a minute after the one before.

    `ms` and `half`: median and half of the spread of its latency, None for a run that timed
    nothing; `sizes`: those that it timed, each as many times slower.
    """
    root = tmp_path / "store"

    def make(
        ms: float | None = 1.0,
        *,
        half: float = 0.1,
        sizes: tuple[int, ...] = (1,),
        metric: float = 0.99,
        error: float = 1e-6,
        bundle_mib: float = 4.0,
        on: dict[str, Any] | None = None,
        machine: str = "",
        key: str = "a",
        **changes: Any,
    ) -> runs.RunResult:
        count = len(list(root.glob("runs/*")))
        recipe = changes.get("recipe", "little")
        folder = root / "runs" / f"20261101-{count:06}-{recipe}-{count:04x}"
        folder.mkdir(parents=True)
        if ms is not None:
            told = {
                "metric": {"same": metric},
                "error": {"relative": error, "tolerance": 1e-4, "passed": True},
                "latency": [
                    {
                        "sizes": {"batch": size},
                        "threads": 2,
                        "ours_ms": {
                            "p50": ms * size,
                            "low": (ms - half) * size,
                            "high": (ms + half) * size,
                            "n": 9,
                        },
                        "peer": "onnxruntime 1.32.0",
                        "peer_ms": {"p50": size, "low": 0.99 * size, "high": 1.01 * size, "n": 9},
                        "ratio": ms,
                    }
                    for size in sizes
                ],
                "bundle_mib": bundle_mib,
                "host": {**host.fingerprint(), **(on or {})},
                "date": "2026-11-01T00:00:00+00:00",
            }
            (folder / runs.FACTS).write_text(json.dumps(told))
        where = {"machine": machine or host.machine()}
        step = StepResult("judge", "ran", 2.0, key=key * 64, outputs={"facts": "f"}, made_on=where)
        base: dict[str, Any] = {
            "run_id": folder.name,
            "recipe": recipe,
            "recipe_path": "little.yaml",
            "workflow": "little of workflows.yaml",
            "started": 1793000000.0 + 60 * count,
            "seconds": 3.0,
            "folder": folder,
            "exit_code": 0,
            "steps": (step,),
        }
        record = runs.save(runs.RunResult(**{**base, **changes}))
        os.utime(record, (base["started"], base["started"]))
        return runs.load(folder)

    return make
