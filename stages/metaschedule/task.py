"""The search of one workload: its rounds, its trials, and what is left to win."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..compat import tvm
from ..measure import Bench, Job, Timing, ratio
from ..records import workload_hash
from .database import SearchFile, Trial
from .explorer import DEFAULT, REUSE, Explorer, Proposal, made_by, trace_of
from .kernels import Kernel, Site
from .reuse import ReuseExplorer

BATCH = 8  # trials of a round
TRIAL_S = 0.06  # of running, for a trial that is not clearly slower than the incumbent
LEAST_HEADROOM = 0.2  # of a kernel's time counts as there to win, however fast it is
FLAT_ROUNDS = 4  # that must bring something, or the search of a workload ends
FLAT_GAIN = 0.01


@dataclass
class Task:
    """The kernels that share a workload, what searches its space, and the trials that count so far.

    site:     the calls at whose sizes it is timed: those that take longest
    open_spaces: makes what searches its space, when its turn comes
    default:  the trial of the default schedule, which is the first
    part:     of the machine's limits that the default schedule reaches
    open:     explorers whose space is not exhausted
    measured: of the trials; the others were in the database
    reused:   trials of other searches, with times relative to the default's
    """

    kernels: list[Kernel]
    site: Site
    file: SearchFile
    open_spaces: Callable[[], dict[str, Explorer]]
    default: Trial
    default_func: Any
    part: float = 0.0
    timeout_s: float = 30.0
    rounds: int = 0
    trials: list[Trial] = field(default_factory=list)
    bests: list[float] = field(default_factory=list)  # best time after each round, in ms
    explorers: Mapping[str, Explorer] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    measured: int = 0
    reused: Sequence[Trial] = ()

    @property
    def calls(self) -> int:
        return sum(kernel.calls for kernel in self.kernels)

    @property
    def best(self) -> Trial:
        """The incumbent."""
        return min(
            [self.default, *(t for t in self.trials if t.ms is not None)],
            key=lambda trial: trial.ms or math.inf,
        )

    @property
    def best_ms(self) -> float:
        assert self.best.ms is not None
        return self.best.ms

    @property
    def expected_ms(self) -> float:
        """What another round may win, over all calls: half of what the last two won a round, half a
        share of the time above the machine's limits, which shrinks with every round.
        """
        lately = (self.bests[-3] - self.bests[-1]) / 2 if len(self.bests) >= 3 else 0.0
        headroom = max(1 - self.part * (self.default.ms or 0.0) / self.best_ms, LEAST_HEADROOM)
        return self.calls * (lately + self.best_ms * headroom / (self.rounds + 1)) / 2

    @property
    def is_exhausted(self) -> bool:
        return self.rounds > 0 and not self.open

    @property
    def is_flat(self) -> bool:
        """Whether the last rounds brought nothing, every explorer having had one."""
        if len(self.bests) <= max(FLAT_ROUNDS, len(self.open)):
            return False
        return self.bests[-1] > (1 - FLAT_GAIN) * self.bests[-1 - FLAT_ROUNDS]

    def finalists(self, count: int) -> list[Trial]:
        """The fastest trials that beat the default, those of other searches as they were there
        unless they were measured here.
        """
        assert self.default.ms is not None
        known = {trial.key: trial for trial in self.trials if trial.key != self.default.key}
        for trial in self.reused:
            ms = None if trial.ms is None else trial.ms * self.default.ms
            known.setdefault(trial.key, replace(trial, ms=ms))
        faster = [t for t in known.values() if t.ms is not None and t.ms < self.default.ms]
        return sorted(faster, key=lambda trial: trial.ms or math.inf)[:count]

    def open_up(self) -> None:
        """Opens the spaces, and asks for what was tuned before."""
        self.explorers = self.open_spaces()
        self.open = list(self.explorers)
        taken = self.explorers.get(REUSE)
        self.reused = taken.trials if isinstance(taken, ReuseExplorer) else ()

    def start(self) -> Trial:
        """Counts the default schedule, the first trial, and opens the spaces."""
        self.open_up()
        if all(trial.key != self.default.key for trial in self.file.trials()):
            self.file.add(self.default)
            self.measured += 1
        self.trials.append(self.default)
        self.bests.append(self.best_ms)
        self.rounds = 1
        return self.default

    def round(self, explorer: str, bench: Bench, count: int) -> Iterator[Trial]:
        """The next `count` trials: those of this round in the database, then measured ones.

        Fewer are left when the explorer's space is exhausted; it is then no longer open.
        """
        finished = [t for t in self.file.trials() if t.round == self.rounds][:count]
        for trial in finished:
            yield self._counted(trial)
        if len(finished) < count:
            known = [t for t in self.file.trials() if t.round < self.rounds]
            done = {t.key for t in finished}
            found = self.explorers[explorer].propose(self.rounds, known, BATCH)
            proposals = [p for p in found if p.key not in done][: count - len(finished)]
            if len(found) < min(BATCH, count):
                self.open.remove(explorer)
            for trial in self._measure(bench, proposals):
                self.file.add(trial)
                self.measured += 1
                yield self._counted(trial)
        self.bests.append(self.best_ms)
        self.rounds += 1

    def func(self, trial: Trial) -> Any | None:
        """The PrimFunc of a trial; None when its trace leads elsewhere today."""
        if trial.key == self.default.key:
            return self.default_func
        maker = self.explorers.get(made_by(trial))
        return maker.scheduled(trial) if maker is not None else None

    def _counted(self, trial: Trial) -> Trial:
        self.trials.append(trial)
        relative = None if trial.ms is None else trial.ms / (self.default.ms or trial.ms)
        if (maker := self.explorers.get(made_by(trial))) is not None:
            maker.observe(trial, relative)
        return trial

    @cached_property
    def _default_json(self) -> str:
        return self._json(self.default_func)

    def _json(self, func: Any) -> str:
        return tvm.ir.save_json(tvm.IRModule({self.kernels[0].name: func}))

    def _measure(self, bench: Bench, proposals: Sequence[Proposal]) -> Iterator[Trial]:
        """Trials of proposals, each timed beside the default schedule, whose time they are relative
        to; no longer than until it is clear that they are slower than the incumbent.
        """
        assert self.default.ms is not None
        bar = self.best_ms / self.default.ms
        name, site = self.kernels[0].name, self.site
        jobs: list[Job] = []
        for number in range(bench.workers):  # a group is built by one worker
            mine = proposals[number :: bench.workers]
            rival = Job("", self._default_json, name, site.args, site.outputs, f"{number}")
            first = replace(rival, id=f"{number}:{DEFAULT}")
            jobs += [first] if mine else []
            for proposal in mine:
                text = self._json(proposal.func)
                jobs.append(replace(rival, id=proposal.key, module=text, like=first.id))
        by_key = {proposal.key: (n, proposal) for n, proposal in enumerate(proposals)}
        defaults: dict[int, Timing] = {}
        for timing in bench.run(jobs, seconds=TRIAL_S, bar=bar, timeout_s=self.timeout_s):
            if timing.id not in by_key:
                defaults[int(timing.id.partition(":")[0])] = timing
                continue
            number, proposal = by_key[timing.id]
            ms = None
            if not timing.error:
                beside = defaults.get(number % bench.workers)
                if beside is None or beside.error:
                    ms = timing.ms
                else:
                    ms = self.default.ms * ratio(timing, beside)
            yield Trial(self.rounds, proposal.key, proposal.trace, ms, timing.error)


def default_trial(func: Any, ms: float) -> Trial:
    """The first trial of every search."""
    return Trial(0, workload_hash(func), trace_of(DEFAULT, {}), ms)
