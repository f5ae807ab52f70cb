"""Times of scheduled PrimFuncs, taken in worker processes that no kernel can take down with it.

A kernel that crashes, hangs or does not build gives an error in words, and the others their times.
Candidates of one group run in the same process in alternating short bursts, so that a disturbance
hits all of them: compare them with `ratio`, burst by burst. Workers die with this process, however
it dies. Their side is `measure_worker.py`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any

import numpy as np

from tapml.errors import EnvironmentalError
from tapml.stage import Target

if TYPE_CHECKING:
    from . import measure_worker  # noqa: F401  # started, not imported: keyed all the same

CHUNK = 24  # groups that a worker builds before they are timed; a crash loses the builds


@dataclass(frozen=True)
class Arg:
    """A tensor: random values, or array `key` of npz `file` (index arrays must be real), or `fill`
    everywhere.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str = ""
    key: str = ""
    fill: int | None = None


@dataclass(frozen=True)
class Job:
    """One kernel to time.

    id:       names the result; unique in a call
    module:   TVM JSON of an IRModule that holds the scheduled PrimFunc `kernel`
    args:     every argument in order, outputs last; an int is a scalar argument (a symbolic size)
    outputs:  how many of them are outputs; their `file`, where given, holds the values expected
    group:    candidates of one group are timed against each other ("" : a group of its own)
    like:     id of an earlier job of the group with equal arguments, whose outputs this must give
    tolerance: error allowed, relative to the largest magnitude expected
    shim:     shared library that exports the function that the kernel calls ("" : none)
    """

    id: str
    module: str
    kernel: str
    args: tuple[Arg | int, ...]
    outputs: int = 1
    group: str = ""
    like: str = ""
    tolerance: float = 1e-4
    shim: str = ""


@dataclass(frozen=True)
class Timing:
    """How a job fared: the mean time of a call in each burst, or none and an `error`."""

    id: str
    bursts_ms: tuple[float, ...] = ()
    error: str = ""
    deviation: float | None = None  # from the values expected, relative to their largest magnitude

    @property
    def ms(self) -> float:
        """Median over the bursts."""
        return statistics.median(self.bursts_ms)

    @property
    def low_ms(self) -> float:
        """10th percentile."""
        return float(np.percentile(self.bursts_ms, 10))

    @property
    def high_ms(self) -> float:
        """90th percentile."""
        return float(np.percentile(self.bursts_ms, 90))


def ratio(one: Timing, other: Timing) -> float:
    """Time of `one` / time of `other` (of one group): median over bursts that ran side by side, of
    which one of them may have had fewer.
    """
    return statistics.median(a / b for a, b in zip(one.bursts_ms, other.bursts_ms, strict=False))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median of a distribution that gave these values, whatever its shape, right in
    about 19 of 20 cases: no outlier moves them.
    """
    ranked, count = sorted(ratios), len(ratios)
    skipped = max(0, int((count - 2 * math.sqrt(count)) / 2))
    return ranked[skipped], ranked[count - 1 - skipped]


def measure(
    jobs: Sequence[Job],
    target: Target,
    *,
    seconds: float = 0.15,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Timing]:
    """Timings of `jobs`, in their order. For several calls keep a `Bench` open."""
    with Bench(target) as bench:
        found: dict[str, Timing] = {}
        for timing in bench.run(jobs, seconds=seconds):
            found[timing.id] = timing
            if progress is not None:
                progress(len(found), len(jobs), timing.id)
    return [found[job.id] for job in jobs]


class Bench(AbstractContextManager["Bench"]):
    """Worker processes that build in parallel and time one after the other.

    Kernels run with `target.device.threads` threads. Use it as a context manager, from one thread.
    """

    def __init__(
        self,
        target: Target,
        *,
        workers: int = 2,
        build_timeout_s: float = 120,
        run_timeout_s: float = 60,
    ) -> None:
        self._workers = [_Worker(target, build_timeout_s, run_timeout_s) for _ in range(workers)]

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    @property
    def workers(self) -> int:
        """How many groups are built at the same time."""
        return len(self._workers)

    def run(
        self,
        jobs: Iterable[Job],
        *,
        seconds: float = 0.15,
        bar: float | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Timing]:
        """Each job's Timing as soon as it is known; each candidate runs for about `seconds`.

        bar:       a candidate runs no longer than until it is clear that its time is more than this
                   share of that of the first of its group
        timeout_s: for the build of a job and for its run, instead of those of the bench
        """
        queue = deque(_groups(jobs))
        while queue:
            size = min(CHUNK, -(-len(queue) // len(self._workers)))
            shares = {w: _take(queue, size) for w in self._workers if queue}
            for worker, share in shares.items():
                worker.ask("build", share, timeout_s)
            for worker, share in shares.items():
                yield from worker.answers(share)
            for worker, share in shares.items():
                if worker.alive:
                    worker.ask("time", share, timeout_s, seconds=seconds, bar=bar)
                    yield from worker.answers(share)
                queue.extendleft(reversed([group for group in share if group]))


def _groups(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs by group, in order. An answered job is removed from its group, in place."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group or f"\0{job.id}", []).append(job)
    return list(groups.values())


def _take(queue: deque[list[Job]], count: int) -> list[list[Job]]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]


class _Worker:
    """The parent's end of a worker process, started when asked, and again after it died."""

    def __init__(self, target: Target, build_timeout_s: float, run_timeout_s: float) -> None:
        self._target = target
        self._timeouts = {"build": build_timeout_s, "time": run_timeout_s}
        self._timeout_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None
        self._output: Any = None
        self._doing = ""

    @property
    def alive(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._output.close()
        self._process = None

    def ask(self, do: str, share: list[list[Job]], timeout_s: float | None, **options: Any) -> None:
        if self._process is None:
            self._start()
        self._doing = do
        self._timeout_s = timeout_s or self._timeouts[do]
        groups = [[asdict(job) for job in group] for group in share]
        self._send({"do": do, "groups": groups, **options})

    def answers(self, share: list[list[Job]]) -> Iterator[Timing]:
        """Answers to the last question; an answered job leaves its group.

        When the worker dies, that answers the running job; what is left of `share` is asked again.
        """
        current = ""
        while True:
            message = self._receive()
            if isinstance(message, str):
                if not current:
                    raise EnvironmentalError(
                        message=f"the measuring process does not work: {message}"
                    )
                yield self._settle(share, Timing(current, error=message))
                return
            match message:
                case {"end": _}:
                    return
                case {"at": job}:
                    current = job
                case {"result": result}:
                    yield self._settle(
                        share, Timing(**{**result, "bursts_ms": tuple(result["bursts_ms"])})
                    )

    @staticmethod
    def _settle(share: list[list[Job]], timing: Timing) -> Timing:
        for group in share:
            group[:] = [job for job in group if job.id != timing.id]
        return timing

    def _start(self) -> None:
        ours, theirs = Pipe()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        command = [
            sys.executable,
            "-P",
            "-m",
            "tapml_stages.measure_worker",
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        threads = str(self._target.device.threads)
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "TVM_NUM_THREADS": threads},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        theirs.close()
        self._connection = ours
        self._send(self._target.model_dump(mode="json"))

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except BrokenPipeError:
            return  # it died; `_receive` says how

    def _receive(self) -> dict[str, Any] | str:
        """The next message, or how the worker died (killed here when it is out of time)."""
        try:
            if self._connection.poll(self._timeout_s):
                return json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            assert self._process is not None
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            words = self._last_words()
            self.stop()
            return f"crashed ({how}) while it was {_DONE_TO_IT[self._doing]}{words}"
        self.stop()
        return f"no answer in {self._timeout_s:g} s while it was {_DONE_TO_IT[self._doing]}"

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return f": {words[-1][:200]}" if words else ""


_DONE_TO_IT = {"build": "built", "time": "run"}
