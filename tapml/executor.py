"""Runs a plan: stages go to worker processes as what they read becomes known; results come back as digests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import TapmlError
from .events import State
from .stage import Report


@dataclass(frozen=True)
class Options:
    """How to run; in no key.

    jobs:      worker processes; None: one when a stage has to run alone, else one per core; 0: in this process
    threads:   threads of one stage's numerical libraries; None: what its share of the cores gives
    fail_fast: start nothing more after a failure
    timeout_s: longest a stage may run, where the stage itself sets none
    views:     stages also write readable views (IR before and after passes) to `<run folder>/views/<stage>`
    """

    jobs: int | None = None
    threads: int | None = None
    fail_fast: bool = False
    timeout_s: float | None = None
    views: bool = False


@dataclass(frozen=True)
class StepResult:
    """How one step ended. `seconds`, `rss_mib`, `made_at` and `made_on` of a hit are those of when it was made.

    foreign: it was made on another machine (with an equal fingerprint, where it is a timing)
    """

    name: str
    state: State
    seconds: float = 0.0
    rss_mib: float = 0.0
    key: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    report: Report = Report()
    error: TapmlError | None = None
    log: Path | None = None
    notes: tuple[str, ...] = ()
    made_at: str = ""
    made_on: Mapping[str, Any] = field(default_factory=dict[str, Any])
    foreign: bool = False


@dataclass(frozen=True)
class Result:
    """How a run ended. `exit_code` is that of the first failed step, 130 or 143 when interrupted; gates come later."""

    run_id: str
    folder: Path
    steps: Mapping[str, StepResult]
    exit_code: int
    seconds: float
