"""What validation measured (`facts.json`), read back as frozen data; the gates, the report and the
tracker read this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from .errors import StageError

Json = Mapping[str, Any]
NOISE = "within noise"  # what is said of two timings whose spreads overlap


@dataclass(frozen=True)
class Spread:
    """Median and spread of repeated timings, in milliseconds."""

    p50: float
    low: float
    high: float
    n: int = 0

    def overlaps(self, other: Spread) -> bool:
        """Whether the two lie within each other's noise."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Latency:
    """One size, timed beside the peer. `ratio` is ours / peer: below 1 is faster."""

    sizes: Mapping[str, int]
    threads: int
    ours: Spread
    peer: str = ""
    theirs: Spread | None = None
    ratio: float | None = None

    @property
    def workload(self) -> tuple[object, ...]:
        """What two timings must have in common to be compared: threads and sizes."""
        return self.threads, *sorted(self.sizes.items())

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items()) or "static"

    @property
    def tone(self) -> Literal["good", "bad", ""]:
        """Whether it is faster than its peer; neither without one, or where noise hides it."""
        if self.ratio is None or not self.ratio > 0:
            return ""
        if self.theirs is not None and self.ours.overlaps(self.theirs):
            return ""
        return "good" if self.ratio < 1 else "bad"

    @property
    def words(self) -> str:
        """`1.4x faster than onnxruntime`, `1.4x SLOWER than onnxruntime`, `within noise of
        onnxruntime`, or nothing without a peer.
        """
        if self.ratio is None or not self.ratio > 0:
            return ""
        peer = self.peer.split()[0] if self.peer else "the reference"
        match self.tone:
            case "good":
                return f"{1 / self.ratio:.2f}x faster than {peer}"
            case "bad":
                return f"{self.ratio:.2f}x SLOWER than {peer}"
            case "":
                return f"{NOISE} of {peer}"


@dataclass(frozen=True)
class ErrorFact:
    """Largest difference from the reference on equal weights, and the tolerance for it."""

    max_abs: float | None
    relative: float | None
    tolerance: float | None
    reason: str
    passed: bool
    cases: tuple[Json, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One shipped kernel: its share of the time of a run."""

    kernel: str
    rule: str
    kind: str
    ms: float | None
    share: float | None


@dataclass(frozen=True)
class Facts:
    """Everything that validation found out about a bundle. `host` is the fingerprint of the machine
    that timed it.
    """

    metric: Mapping[str, float] = field(default_factory=dict[str, float])
    error: ErrorFact | None = None
    latency: tuple[Latency, ...] = ()
    carve: Json = field(default_factory=dict[str, Any])
    bundle_mib: float | None = None
    kernels: tuple[Kernel, ...] = ()
    host: Json = field(default_factory=dict[str, Any])
    date: str = ""

    @property
    def failed_kernels(self) -> int | None:
        """Carved call sites whose shipped kernel differs from its unscheduled form; None: none was
        carved.
        """
        failed: list[Any] | int | None = self.carve.get("failed")
        return len(failed) if isinstance(failed, list) else failed


def load(path: Path) -> Facts:
    """The facts in a file.

    Raises: StageError when it is not the JSON object that validation writes.
    """
    try:
        data = json.loads(path.read_bytes())
        return parse(cast("dict[str, Any]", data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            message=f"{path}: no facts of validation: {type(error).__name__}: {error}",
            hint="run again with `--force validation`",
        ) from error


def parse(data: Json) -> Facts:
    """Facts from plain data; what an older or other validation left out stays empty."""
    return Facts(
        metric={name: float(value) for name, value in _mapping(data.get("metric")).items()},
        error=_error(data["error"]) if data.get("error") else None,
        latency=tuple(_latency(row) for row in data.get("latency") or ()),
        carve=_mapping(data.get("carve")),
        bundle_mib=_number(data.get("bundle_mib")),
        kernels=tuple(_kernel(row) for row in data.get("kernels") or ()),
        host=_mapping(data.get("host")),
        date=str(data.get("date") or ""),
    )


def _error(row: Json) -> ErrorFact:
    return ErrorFact(
        max_abs=_number(row.get("max_abs")),
        relative=_number(row.get("relative")),
        tolerance=_number(row.get("tolerance")),
        reason=str(row.get("reason") or ""),
        passed=bool(row["passed"]),
        cases=tuple(row.get("cases") or ()),
    )


def _latency(row: Json) -> Latency:
    return Latency(
        sizes={name: int(size) for name, size in _mapping(row.get("sizes")).items()},
        threads=int(row.get("threads") or 1),
        ours=_spread(row["ours_ms"]),
        peer=str(row.get("peer") or ""),
        theirs=_spread(row["peer_ms"]) if row.get("peer_ms") else None,
        ratio=_number(row.get("ratio")),
    )


def _spread(row: Json) -> Spread:
    p50 = float(row["p50"])
    return Spread(
        p50, float(row.get("low", p50)), float(row.get("high", p50)), int(row.get("n") or 0)
    )


def _kernel(row: Json) -> Kernel:
    return Kernel(
        kernel=str(row["kernel"]),
        rule=str(row.get("rule") or ""),
        kind=str(row.get("kind") or ""),
        ms=_number(row.get("ms")),
        share=_number(row.get("share")),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value or {})
