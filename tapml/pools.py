"""Where stages run: slots, each a worker process of its own.

A crash, a kill or a time limit touches one stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast
from uuid import uuid4

from . import guard
from .worker import Done, Job, initialise, run_stage

_THREADS = ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Pool(Protocol):
    """Runs jobs; `free` more may be submitted now."""

    @property
    def free(self) -> int: ...
    def submit(self, job: Job, *, threads: int, fresh: bool) -> Future[Done]:
        """Starts a job. `fresh`: in a process that has run nothing."""
        ...

    def sweep(self, future: Future[Done]) -> None:
        """Ends what a dead worker left: a forked child keeps its pipes open, as if it lived."""
        ...

    def kill(self, future: Future[Done]) -> None:
        """Ends the process of a job and all that it started."""
        ...

    def release(self, future: Future[Done]) -> None:
        """Frees the slot of a finished job."""
        ...

    def close(self) -> None:
        """Ends every process."""
        ...


class _Executor(Protocol):
    """What is used of loky's ProcessPoolExecutor, which has no types."""

    def submit(self, fn: Callable[[Job], Done], job: Job, /) -> Future[Done]: ...
    def shutdown(self, wait: bool = True, kill_workers: bool = False) -> None: ...


@dataclass(eq=False)
class _Slot:
    mark: str
    executor: _Executor | None = None
    threads: int = 0
    used: bool = False

    def start(self, threads: int) -> _Executor:
        """A new worker process, with its thread counts set before any library is loaded."""
        from joblib.externals import loky  # pyright: ignore[reportMissingTypeStubs]

        self.stop()
        make = cast("Callable[..., _Executor]", cast(Any, loky).ProcessPoolExecutor)
        env = dict.fromkeys(_THREADS, str(threads)) | {guard.VARIABLE: self.mark}
        self.executor = make(
            max_workers=1, timeout=None, env=env, initializer=initialise, initargs=(os.getpid(),)
        )
        self.threads, self.used = threads, False
        return self.executor

    def stop(self) -> None:
        if self.executor is not None:
            guard.end(self.mark)
            self.executor.shutdown(wait=True, kill_workers=True)
            self.executor = None


class SlotPool:
    """Slots of one-worker loky executors, and a guard that outlives us to end what they started."""

    def __init__(self, slots: int) -> None:
        # a run inside a stage of another run has that one's mark in front, to end with it
        self._mark = f"{os.environ.get(guard.VARIABLE, '')}{uuid4().hex}."
        self._idle = [_Slot(f"{self._mark}{number}.") for number in range(slots)]
        self._busy: dict[Future[Done], _Slot] = {}
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def free(self) -> int:
        return len(self._idle)

    def submit(self, job: Job, *, threads: int, fresh: bool) -> Future[Done]:
        """Prefers a slot that needs no new process."""

        def fits(slot: _Slot) -> bool:
            return (
                slot.executor is not None and slot.threads == threads and not (fresh and slot.used)
            )

        slot = next(filter(fits, self._idle), None) or min(
            self._idle, key=lambda one: one.executor is not None
        )
        executor = slot.executor if fits(slot) else None
        future = (executor or slot.start(threads)).submit(run_stage, job)
        slot.used = True
        self._idle.remove(slot)
        self._busy[future] = slot
        return future

    def sweep(self, future: Future[Done]) -> None:
        guard.end(self._busy[future].mark)

    def kill(self, future: Future[Done]) -> None:
        self._busy[future].stop()
        self.release(future)

    def release(self, future: Future[Done]) -> None:
        self._idle.append(self._busy.pop(future))

    def close(self) -> None:
        for slot in (*self._busy.values(), *self._idle):
            slot.stop()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()


class InlinePool:
    """Runs stages in this process, one by one: for a debugger. No shelter from crashes."""

    def __init__(self) -> None:
        self.free = 1

    def submit(self, job: Job, *, threads: int, fresh: bool) -> Future[Done]:
        self.free = 0
        for name in _THREADS:
            os.environ.setdefault(name, str(threads))
        future: Future[Done] = Future()
        future.set_result(run_stage(replace(job, capture=False)))
        return future

    def sweep(self, future: Future[Done]) -> None: ...

    def kill(self, future: Future[Done]) -> None:
        self.free = 1  # it has ended

    def release(self, future: Future[Done]) -> None:
        self.free = 1

    def close(self) -> None: ...
