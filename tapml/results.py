"""What a run is asked for, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import TapmlError
from .events import State
from .settings import Dask, Joblib, Local
from .stage import Report


@dataclass(frozen=True)
class Options:
    """How to run; in no key.

    executor:  what stages run on: worker processes here, a backend of joblib, a dask cluster
    jobs:      worker processes; None: one when a stage has to run alone, else one per core;
               0: in this process, for a debugger (no time limits, a crash ends everything)
    threads:   threads of a stage's numerical libraries; None: its share of the cores
    fail_fast: start nothing more after a failure
    timeout_s: longest a stage may run, where the stage itself sets none
    views:     stages write readable views (IR around passes) to `<run folder>/views/<stage>`;
               of a hit they are there when it was made with them
    """

    executor: Local | Joblib | Dask = field(default_factory=Local)
    jobs: int | None = None
    threads: int | None = None
    fail_fast: bool = False
    timeout_s: float | None = None
    views: bool = False


@dataclass(frozen=True)
class StepResult:
    """How one step ended. A hit has the figures of when it was made.

    made_at, made_on: when, ISO 8601, and where: the host's fingerprint and `machine`, an opaque id
    foreign:          it was made on another machine
    """

    name: str
    state: State
    seconds: float = 0.0
    rss_mib: float = 0.0
    key: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict[str, str])
    report: Report = field(default_factory=Report)
    error: TapmlError | None = None
    log: Path | None = None
    notes: tuple[str, ...] = ()
    made_at: str = ""
    made_on: Mapping[str, Any] = field(default_factory=dict[str, Any])
    foreign: bool = False


@dataclass(frozen=True)
class Result:
    """How a run ended, gates not judged yet.

    exit_code: that of the first failed step, 130 or 143 when interrupted, else 0
    started:   Unix time
    seconds:   from start to end; of one of several recipes, of its own stages that ran
    sweep:     the id that the runs of one batch share; "" for a single run
    """

    run_id: str
    folder: Path
    steps: Mapping[str, StepResult]
    exit_code: int
    seconds: float
    started: float
    sweep: str = ""
