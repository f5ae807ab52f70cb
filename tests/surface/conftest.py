"""A little project: a recipe, its workflow, and stages of another package by entry points."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tapml import registry
from tapml.cli import main

HERE = Path(__file__).parent
SITE = HERE / "site"


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
    for name in ("TAPML_STORE", "TAPML_TRACKING_URI", "MLFLOW_TRACKING_URI", "NO_COLOR"):
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
        here = ("--jobs", "0") if arguments[0] == "run" else ()
        monkeypatch.setattr(sys, "argv", ["tapml", *arguments, *here])
        with pytest.raises(SystemExit) as ended:
            main()
        seen = capsys.readouterr()
        return Done(int(ended.value.code or 0), seen.out, seen.err)

    return call
