"""The rows of a bench: libraries timed beside each other at each size and number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tapml import facts, locks

from .. import latency
from ..platforms.runner import Runner
from .cases import Case
from .idle import TOLERATED, Meter

_ASK_S = 0.2  # between two tries for the machine
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long each row is measured: calls of each library, and seconds at most."""

    repeats: int = 30
    warmup: int = 2
    max_seconds: float = 20.0


@dataclass(frozen=True)
class Peer:
    """Another runtime's model of the same."""

    name: str
    model: Path


@dataclass(frozen=True)
class Figures:
    """Milliseconds of `n` calls; `low` and `high` are the 10th and 90th percentile."""

    p50: float
    p95: float
    best: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Figures:
        low, p50, high, p95 = np.percentile(times, [10, 50, 90, 95])
        return cls(float(p50), float(p95), min(times), float(low), float(high), len(times))

    @property
    def spread(self) -> facts.Spread:
        return facts.Spread(self.p50, self.low, self.high, self.n)


@dataclass(frozen=True)
class Row:
    """A size at a number of threads. `busy`: cores that others used meanwhile."""

    case: Case
    threads: int
    ours: Figures
    peer: str
    theirs: Figures | None
    busy: float

    @property
    def per_second(self) -> float:
        """Items of the case, by the median."""
        return self.case.items / self.ours.p50 * 1e3

    @property
    def disturbed(self) -> bool:
        return self.busy > TOLERATED

    @property
    def latency(self) -> facts.Latency:
        """As validation tells it: ratio and words, which know the noise."""
        theirs = None if self.theirs is None else self.theirs.spread
        ratio = self.ours.p50 / self.theirs.p50 if self.theirs is not None else None
        return facts.Latency(
            self.case.sizes, self.threads, self.ours.spread, self.peer, theirs, ratio
        )


def rows(
    folder: Path,
    cases: Sequence[Case],
    threads: Sequence[int],
    peer: Peer | None,
    effort: Effort,
    tell: Tell,
) -> Iterator[Row]:
    """Each row as soon as it is known; the machine is ours alone meanwhile.

    Raises: StageError when a library does not run, WorkerError when its process dies.
    """
    with _alone(f"tapml bench {folder.name}", tell):
        for count in threads:
            yield from _at(folder, cases, count, peer, effort, tell)


def _at(
    folder: Path,
    cases: Sequence[Case],
    threads: int,
    peer: Peer | None,
    effort: Effort,
    tell: Tell,
) -> Iterator[Row]:
    with ExitStack() as stack:
        runners = [stack.enter_context(Runner("bundle", folder, threads))]
        if peer is not None:
            runners[0].pause()  # its threads spin while another one starts
            runners.append(stack.enter_context(Runner("onnx", peer.model, threads)))
        for case in cases:
            tell(f"timing {case.label}, {threads} threads")
            meter = Meter([runner.pid for runner in runners])
            times = latency.alternate(
                runners,
                case.arrays,
                repeats=effort.repeats,
                max_seconds=effort.max_seconds,
                warmup=effort.warmup,
                before=case.before,
            )
            busy = meter.elsewhere()
            ours, *others = map(Figures.of, times)
            name = peer.name if peer is not None else ""
            yield Row(case, threads, ours, name, others[0] if others else None, busy)


@contextmanager
def _alone(owner: str, tell: Tell) -> Iterator[None]:
    """The machine, which stages that measure share out between them."""
    lock = locks.MachineLock(locks.machine_folder(), owner)
    waits = ""
    try:
        while not lock.acquire(alone=True):
            if (holder := lock.holder()) != waits:
                waits = holder
                tell(f"waiting for the machine, which {holder} has")
            time.sleep(_ASK_S)
        yield
    finally:
        lock.release()
