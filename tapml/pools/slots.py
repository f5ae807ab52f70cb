"""Slots, each a worker process of its own: a crash, a kill or a time limit touches one stage."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

from .. import errors, guard, host
from ..admission import Machine
from ..errors import StageError, WorkerError
from ..worker import THREADS, Done, Job, initialise, peak_mib, run_stage

_START_S = 60.0  # longest that a worker process may take to start


class _Executor(Protocol):
    """What is used of loky's ProcessPoolExecutor, which has no types."""

    def submit(self, fn: Callable[[Job], Done], job: Job, /) -> Future[Done]: ...
    def shutdown(self, wait: bool = True, kill_workers: bool = False) -> None: ...


class SlotPool:
    """Slots of one-worker loky executors, and a guard that outlives us to end what they started."""

    apart = False

    def __init__(self, place: Machine) -> None:
        self.place = place
        # a run inside a stage of another run has that one's mark in front, to end with it
        mark = f"{os.environ.get(guard.VARIABLE, '')}{uuid4().hex}."
        self._idle = [_Slot(f"{mark}{number}.") for number in range(place.slots)]
        self._busy: dict[Future[Done], _Slot] = {}
        self._guard = guard.Guard(mark)

    @property
    def free(self) -> int:
        return len(self._idle)

    def submit(self, job: Job) -> Future[Done]:
        """Prefers a slot that needs no new process."""
        resources = job.stage.resources
        threads = job.threads or self.place.threads(resources)

        def fits(slot: _Slot) -> bool:
            return slot.fits(threads, fresh=resources.fresh_process)

        slot = next(filter(fits, self._idle), None) or min(
            self._idle, key=lambda one: one.executor is not None
        )
        if not fits(slot):
            slot.start(threads)
        future = slot.submit(job)
        self._idle.remove(slot)
        self._busy[future] = slot
        return future

    def watch(self) -> None:
        for slot in self._busy.values():
            slot.watch()

    def collect(self, future: Future[Done]) -> Done:
        slot = self._free(future)
        try:
            return future.result()
        except (BrokenProcessPool, RuntimeError) as error:  # RuntimeError: loky's, when we end it
            slot.stop()
            return Done(
                error=errors.to_data(slot.account(error)),
                seconds=time.monotonic() - slot.started,
                rss_mib=slot.peak_mib,
            )

    def kill(self, future: Future[Done]) -> None:
        self._free(future).stop()

    def close(self) -> None:
        for slot in (*self._busy.values(), *self._idle):
            slot.stop()
        self._guard.close()
        self.place.close()

    def _free(self, future: Future[Done]) -> _Slot:
        slot = self._busy.pop(future)
        self._idle.append(slot)
        return slot


@dataclass(eq=False)
class _Slot:
    """A worker process, with what is known of the job that it has.

    started: when its job began, on the monotonic clock; until then, when it was submitted
    pid:     of the process, once it has begun with the job
    """

    mark: str
    executor: _Executor | None = None
    threads: int = 0
    used: bool = False
    progress: Path = Path()
    limit_s: float | None = None
    started: float = 0.0
    pid: int = 0
    peak_mib: float = 0.0
    overdue: bool = False
    oom_kills: int = 0

    def fits(self, threads: int, *, fresh: bool) -> bool:
        return self.executor is not None and self.threads == threads and not (fresh and self.used)

    def start(self, threads: int) -> None:
        """A new process, with its thread counts set before any library is loaded."""
        from joblib.externals import loky  # pyright: ignore[reportMissingTypeStubs]

        self.stop()
        make = cast("Callable[..., _Executor]", cast(Any, loky).ProcessPoolExecutor)
        env = dict.fromkeys(THREADS, str(threads)) | {guard.VARIABLE: self.mark}
        self.executor = make(
            max_workers=1, timeout=None, env=env, initializer=initialise, initargs=(os.getpid(),)
        )
        self.threads, self.used = threads, False

    def submit(self, job: Job) -> Future[Done]:
        assert self.executor is not None
        self.used, self.overdue = True, False
        self.progress, self.limit_s = job.progress, job.limit_s
        self.started, self.pid, self.peak_mib = time.monotonic(), 0, 0.0
        self.oom_kills = host.oom_kills()
        return self.executor.submit(run_stage, job)

    def watch(self) -> None:
        """Ends a job over its limit, and what a dead process left: a forked child keeps its pipes
        open, as if it lived.
        """
        if not self.pid and (pid := _begun(self.progress)):
            self.pid, self.started = pid, time.monotonic()
        if self.pid:
            self.peak_mib = max(self.peak_mib, peak_mib(self.pid))
            if _has_ended(self.pid):
                guard.end(self.mark)
        spent = time.monotonic() - self.started
        if self.limit_s is not None and spent > self.limit_s + (0 if self.pid else _START_S):
            self.overdue = True
            self.stop()

    def stop(self) -> None:
        if self.executor is not None:
            guard.end(self.mark)
            self.executor.shutdown(wait=True, kill_workers=True)
            self.executor = None

    def account(self, error: Exception) -> StageError:
        """Why the process ended before it could say how the stage did."""
        peak = f"peak {self.peak_mib:.0f} MiB"
        if self.overdue:
            message = f"took longer than {self.limit_s:g} s; its worker was ended ({peak})"
            return WorkerError(message=message, signal="timeout")
        if error.__cause__ is not None:  # loky's account of what went wrong before our code ran
            last = str(error.__cause__).strip('" \n').splitlines()[-1]
            return StageError(message=f"its worker could not load it: {last}")
        killed = re.search(r"(SIG[A-Z0-9]+)\(", str(error))  # loky gives exit codes in prose only
        if not killed:
            return WorkerError(message=f"its worker ended by itself ({peak})")
        guess = ""
        if killed[1] == "SIGKILL":
            certain = host.oom_kills() > self.oom_kills
            guess = ": out of memory" if certain else ": probably out of memory"
        message = f"its worker was killed by {killed[1]}{guess} ({peak})"
        return WorkerError(message=message, signal=killed[1])


def _begun(progress: Path) -> int:
    """The process that has begun with a job; 0 before."""
    try:
        lines = progress.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    rows = (json.loads(line) for line in lines if line.endswith(b"\n"))
    return next((row["pid"] for row in rows if "pid" in row), 0)


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # waited for already
        return True
