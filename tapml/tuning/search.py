"""One search in a file: what was searched, and every trial that finished.

    {"format": "tapml.tuning", "version": 1, "workload": …, "func": …, "target": …, …}
    {"round": 0, "key": …, "trace": …, "ms": 0.12, "error": "", "time": 1795000000}

A search is (workload, target, toolchain, space, seed, learned): the digest of these is the file's
name. A trial counts when its line is on disk, error included.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field, fields, replace
from functools import cached_property
from pathlib import Path

from pydantic import ConfigDict, PositiveFloat
from pydantic.dataclasses import dataclass

from .. import host
from ..errors import RecipeError
from . import lines

FORMAT, VERSION = "tapml.tuning", 1
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # it comes from files


@dataclass(frozen=True, config=_STRICT)
class Identity:
    """Which search it is: nothing else decides what is proposed, beside the times measured.

    workload:  structural hash of the unscheduled PrimFunc, hex
    target:    JSON of the resolved target
    toolchain: names and versions of the tools that build and search
    space:     of schedules, and how it is searched
    seed:      of the search
    learned:   digest of the records of other searches that it was taught, or ""
    """

    workload: str
    target: str
    toolchain: str
    space: str
    seed: int
    learned: str = ""

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, config=_STRICT)
class Header:
    """What a search is of, for those that did not run it.

    kernel:     the PrimFunc's name in the program that it was searched for
    func:       TVM JSON of an IRModule {main: unscheduled PrimFunc}
    tir:        the same for people
    default_ms: time of the default schedule when the search began
    host:       `tapml.host.fingerprint()` of where it was measured
    time:       Unix time when it began
    """

    identity: Identity
    kernel: str
    func: str
    tir: str
    default_ms: PositiveFloat
    host: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    time: int = 0


@dataclass(frozen=True, config=_STRICT)
class Trial:
    """A finished measurement.

    round: of the search in which the schedule was proposed
    key:   structural hash of the scheduled PrimFunc
    trace: JSON of what makes it, as its space wrote it
    ms:    median time, None when it failed; `error` says how
    """

    round: int
    key: str
    trace: str
    ms: PositiveFloat | None
    error: str = ""


@dataclass(frozen=True)
class Search:
    """A search as its file has it: trials in the order in which they finished, a schedule that is
    there twice counted once.

    times:   Unix time of each trial
    damaged: numbers of the lines that are no record
    """

    header: Header
    trials: tuple[Trial, ...]
    times: tuple[int, ...]
    damaged: tuple[int, ...] = ()

    @cached_property
    def ranked(self) -> tuple[Trial, ...]:
        """The trials that did not fail, the fastest first."""
        good = (trial for trial in self.trials if trial.ms is not None)
        return tuple(sorted(good, key=_time_of))

    @property
    def best_ms(self) -> float | None:
        return self.ranked[0].ms if self.ranked else None

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(trial, best time so far) wherever it fell, from the default schedule at trial 0."""
        points = [(0, self.header.default_ms)]
        for number, trial in enumerate(self.trials, 1):
            if trial.ms is not None and trial.ms < points[-1][1]:
                points.append((number, trial.ms))
        return points

    @property
    def latest(self) -> int:
        """Unix time of the last thing that happened."""
        return max((self.header.time, *self.times))

    def rows(self) -> list[lines.Row]:
        """What a file of it holds."""
        pairs = zip(self.trials, self.times, strict=True)
        return [_header_row(self.header), *(_trial_row(one, when) for one, when in pairs)]


class SearchFile:
    """The file of one search in a database's folder."""

    def __init__(self, folder: Path, header: Header) -> None:
        self._path = folder / f"{header.identity.digest}.jsonl"
        self._header = header

    def trials(self) -> list[Trial]:
        """Finished trials; a schedule that is there twice counts once."""
        return list(parse(lines.read(self._path)).trials)

    def default_ms(self) -> float:
        """The default schedule's time when this search began, so that a resumed one shares out its
        budget as before; that of the header, which is written, when it begins now.
        """
        if (known := parse(lines.read(self._path)).header) is not None:
            return known.default_ms
        lines.append(self._path, self._began(int(time.time())))
        return self._header.default_ms

    def add(self, trial: Trial) -> None:
        """Returns when the trial is on disk. Raises: EnvironmentalError when the disk is full."""
        now = int(time.time())
        lines.append(self._path, _trial_row(trial, now), first=self._began(now))

    def _began(self, now: int) -> lines.Row:
        return _header_row(replace(self._header, host=host.fingerprint(), time=now))


@dataclass(frozen=True)
class Parsed:
    """What the rows of a search say; no header when that line was lost."""

    header: Header | None
    trials: tuple[Trial, ...]
    times: tuple[int, ...]
    damaged: tuple[int, ...]


def parse(rows: Iterable[tuple[int, lines.Row | None]]) -> Parsed:
    """The first header and the trials among numbered rows, whatever their order.

    Raises: RecipeError when a newer tapml wrote them.
    """
    header: Header | None = None
    trials: dict[str, tuple[Trial, int]] = {}
    damaged: list[int] = []
    for number, row in rows:
        try:
            if row is None:
                damaged.append(number)
            elif "format" in row:
                header = header or _header(row)
            else:
                when = int(row.pop("time"))
                trial = Trial(**row)
                trials.setdefault(trial.key, (trial, when))
        except (KeyError, TypeError, ValueError):  # pydantic's errors are ValueErrors
            damaged.append(number)
    found = tuple(trials.values())
    return Parsed(header, tuple(t for t, _ in found), tuple(w for _, w in found), tuple(damaged))


def _header(row: lines.Row) -> Header:
    """Raises: ValueError, KeyError, TypeError when it is none."""
    written = row.pop("format"), row.pop("version")
    if written[0] == FORMAT and isinstance(written[1], int) and written[1] > VERSION:
        raise RecipeError(
            message=f"a tuning record is of version {written[1]}; this tapml reads {VERSION}",
            hint="take a tapml that is as new as the one that wrote it",
        )
    if written != (FORMAT, VERSION):
        raise ValueError(f"{written} is no format of tuning records")
    return Header(Identity(**{one.name: row.pop(one.name) for one in fields(Identity)}), **row)


def _header_row(header: Header) -> lines.Row:
    facts = asdict(header)
    return {"format": FORMAT, "version": VERSION, **facts.pop("identity"), **facts}


def _trial_row(trial: Trial, when: int) -> lines.Row:
    return {**asdict(trial), "time": when}


def _time_of(trial: Trial) -> float:
    return math.inf if trial.ms is None else trial.ms
