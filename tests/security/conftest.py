"""A stranger's project: Python that tells when it runs, files that lie, links that lead away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz import mutations, run

Called = tuple[int, str, str]
CANARY = "open({!r}, 'w').close()\n"


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of the project, which the process stands in; its store is `store`."""
    monkeypatch.setenv("TAPML_STORE", "store")
    monkeypatch.setenv("TAPML_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "argv", sys.argv)
    with run.house() as folder:
        yield folder


@pytest.fixture
def ran(stranger: Path) -> Callable[[], bool]:
    """Whether anything of the project ran until now."""
    return (stranger / mutations.PWNED).exists


@pytest.fixture
def cli(stranger: Path) -> Callable[..., Called]:
    """Exit code, stdout and stderr of a command in this process."""
    return run.call


def canary(folder: Path) -> str:
    """A line of Python that leaves a mark."""
    return CANARY.format(str(folder / mutations.PWNED))
