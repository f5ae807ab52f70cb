"""Latency of libraries beside each other: one process each, blocks of calls in turn, the others
stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .platforms.runner import Runner

BLOCKS = 10  # a disturbance of one block is then a tenth of the sample


@dataclass(frozen=True)
class Spread:
    """Milliseconds: median, 10th and 90th percentile of `n` calls."""

    p50: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Latency:
    """One size. `ratio` is ours / peer, None without a peer."""

    sizes: Mapping[str, int]
    ours: Spread
    theirs: Spread | None
    ratio: float | None


def measure(
    ours: Runner,
    peer: Runner | None,
    arrays: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    *,
    repeats: int,
    max_seconds: float,
) -> Latency:
    """Both runners on the same inputs."""
    runners = [ours] if peer is None else [ours, peer]
    times = alternate(runners, arrays, repeats=repeats, max_seconds=max_seconds)
    spreads = [spread(taken) for taken in times]
    theirs = spreads[1] if peer is not None else None
    return Latency(sizes, spreads[0], theirs, spreads[0].p50 / theirs.p50 if theirs else None)


def alternate(
    runners: Sequence[Runner],
    arrays: Mapping[str, np.ndarray],
    *,
    repeats: int,
    max_seconds: float,
    warmup: int = 2,
    before: Mapping[str, np.ndarray] | None = None,
) -> list[list[float]]:
    """Milliseconds of the calls of each runner on the same inputs, in alternating blocks; with
    states they go on from a call on `before`.

    Fewer than `repeats` where `max_seconds` are over, three blocks at least.
    """
    for runner in runners:
        runner.resume()
        runner.prepare(arrays, warmup, before)
        runner.pause()
    times: list[list[float]] = [[] for _ in runners]
    per_block = max(1, -(-repeats // BLOCKS))
    stop = time.monotonic() + max_seconds
    for block in range(BLOCKS):
        for runner, taken in zip(runners, times, strict=True):
            runner.resume()
            taken.extend(runner.time(per_block + 1)[1:])  # the first call wakes the threads
            runner.pause()
        if time.monotonic() > stop and block >= 2:
            break
    for runner in runners:
        runner.resume()
    return times


def spread(times: Sequence[float]) -> Spread:
    p10, p50, p90 = np.percentile(times, [10, 50, 90])
    return Spread(float(p50), float(p10), float(p90), len(times))
