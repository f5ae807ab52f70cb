"""This process as a pool: for a debugger."""

from __future__ import annotations

import os
from concurrent.futures import Future
from dataclasses import replace

from ..admission import Machine
from ..worker import THREADS, Done, Job, run_stage


class InlinePool:
    """Runs stages in this process, one by one. No time limits; a crash ends everything."""

    apart = False

    def __init__(self, place: Machine) -> None:
        self.place = place
        self.free = 1

    def submit(self, job: Job) -> Future[Done]:
        self.free = 0
        threads = job.threads or self.place.threads(job.stage.resources)
        for name in THREADS:
            os.environ.setdefault(name, str(threads))
        future: Future[Done] = Future()
        future.set_result(run_stage(replace(job, capture=False)))
        return future

    def watch(self) -> None: ...

    def collect(self, future: Future[Done]) -> Done:
        self.free = 1
        return future.result()

    def kill(self, future: Future[Done]) -> None:
        self.free = 1  # it has ended

    def close(self) -> None:
        self.place.close()
