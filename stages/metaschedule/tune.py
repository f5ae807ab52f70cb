"""The search over schedules: a budget of trials, given in rounds to the workloads where there is
most to win.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from tapml.stage import Context, Target

from .. import records
from ..measure import Bench
from ..records import Record
from .choose import dense_winner
from .contest import Contender, Contests, contest_job, hold
from .database import SearchFile, Trial, describe
from .experience import Experience, load
from .explorer import made_by
from .kernels import Args, Kernel, Site
from .spaces import Spaces, named_as
from .stage import MetaSchedule, Reused, Tuning
from .task import BATCH, Task, default_trial
from .turns import Explorers, next_task

FINALISTS = 3  # tuned schedules of a workload that meet its default in a contest
SPACE = "2"  # raised when equal modules are searched in another way


@dataclass(frozen=True)
class Searched:
    """How the search of one workload went: the time of each trial behind the default's, None for
    one that failed. `ended`: why it got no more, "" where it may.
    """

    kernels: tuple[str, ...]
    default_ms: float
    trials_ms: tuple[float | None, ...]
    ended: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search found: the best record of a kernel, and how it went.

    measured: the trials that were not in the database, which took `seconds`
    curves:   clone → (trials, best time of its kernels in ms)
    """

    records: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    trials: int = 0
    failed: int = 0
    measured: int = 0
    seconds: float = 0.0
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    searched: tuple[Searched, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, kernel: str) -> Searched | None:
        """The search that a kernel had."""
        return next((one for one in self.searched if kernel in one.kernels), None)


def tune(
    bench: Bench,
    kernels: Sequence[Kernel],
    defaults: Contests,
    tuning: Tuning,
    target: Target,
    ctx: Context,
    reused: Reused | None = None,
) -> Tuned:
    """Spends the budget of trials, the defaults' included, and holds the finals."""
    started = time.monotonic()
    learns = tuning.strategy == "learned"
    past = None if reused is None else load(reused, target)
    tasks = tasks_of(kernels, defaults, tuning, target, ctx, past)
    totals = _Totals(kernels, defaults, tasks)
    explorers = Explorers(learns=learns)
    cap = tuning.max_trials_per_kernel or tuning.trials
    out_of_time = False
    while totals.trials < tuning.trials:
        task = next_task(tasks, cap, learns=learns)
        out_of_time = _is_over(started, tuning)
        if task is None or out_of_time:
            break
        if task.rounds == 0:
            task.start()
            totals.count()
            continue
        left = min(tuning.trials - totals.trials, cap - len(task.trials))
        explorer, before = explorers.choose(task), task.best_ms
        for _ in task.round(explorer, bench, min(BATCH, left)):
            totals.count()
            ctx.progress(totals.trials, tuning.trials, f"best {totals.now():.4g} ms")
        explorers.learn(explorer, before, task.best_ms)
    searched_s = time.monotonic() - started
    for task in tasks:
        if past is not None and task.rounds == 0:
            task.open_up()
    notes = [] if past is None else [*past.notes, _served(tasks, past)]
    if tasks and tuning.trials:
        notes += _notes(tasks, totals.trials, tuning, out_of_time, searched_s)
    return Tuned(
        records=dict(_finals(bench, [one for one in tasks if one.rounds or one.reused], ctx)),
        trials=totals.trials,
        failed=sum(trial.ms is None for task in tasks for trial in task.trials),
        measured=sum(task.measured for task in tasks),
        seconds=searched_s,
        curves=totals.curves,
        searched=tuple(map(_searched, tasks)),
        notes=tuple(notes),
    )


def _searched(task: Task) -> Searched:
    assert task.default.ms is not None
    ended = "its last rounds brought nothing" if task.is_flat else ""
    return Searched(
        kernels=tuple(kernel.name for kernel in task.kernels),
        default_ms=task.default.ms,
        trials_ms=tuple(t.ms for t in task.trials if t.key != task.default.key),
        ended="its space is exhausted" if task.is_exhausted else ended,
    )


def _is_over(started: float, tuning: Tuning) -> bool:
    return tuning.max_seconds is not None and time.monotonic() - started > tuning.max_seconds


def tasks_of(
    kernels: Sequence[Kernel],
    defaults: Contests,
    tuning: Tuning,
    target: Target,
    ctx: Context,
    past: Experience | None = None,
) -> list[Task]:
    """A task for each distinct workload."""
    spaces = Spaces(tuning, target, ctx, past)
    searched = f"{SPACE} {tuning.strategy} {' '.join(tuning.space)}"
    learned = "" if past is None else past.digest
    by_workload: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_workload.setdefault(kernel.default.workload, []).append(kernel)
    tasks = []
    for sharing in by_workload.values():
        kernel = sharing[0]
        times = {site: defaults[kernel.name, site][0].timing.ms for site in kernel.sites}
        site = max(kernel.sites, key=lambda one: one.count * times[one])
        header = describe(kernel, target, searched, tuning.seed, times[site], learned)
        file = SearchFile(ctx.database, header)
        default_func = kernel.default.module()[kernel.name]
        tasks.append(
            Task(
                kernels=sharing,
                site=site,
                file=file,
                open_spaces=partial(spaces.open, kernel),
                default=default_trial(
                    default_func, file.default_ms() if tuning.trials else times[site]
                ),
                default_func=default_func,
                timeout_s=tuning.max_trial_seconds,
            )
        )
    _set_parts(tasks)
    return tasks


def _set_parts(tasks: Sequence[Task]) -> None:
    """How near each default schedule is to the machine's limits, which the best of them show: the
    most operations, and the most bytes of arguments, in a millisecond.
    """

    def rates(task: Task) -> tuple[float, float]:
        kernel, ms = task.kernels[0], task.best_ms
        flops = 0.0 if kernel.symbolic else kernel.default.flops
        return flops / ms, _bytes(task.site.args) / ms

    limits = [max(each, default=0.0) or 1.0 for each in zip(*map(rates, tasks), strict=True)]
    for task in tasks:
        task.part = max(rate / limit for rate, limit in zip(rates(task), limits, strict=True))


def _bytes(args: Args) -> float:
    return float(
        sum(
            np.prod(arg.shape) * (4 if "32" in arg.dtype else 8 if "64" in arg.dtype else 1)
            for arg in args
            if not isinstance(arg, int)
        )
    )


class _Totals:
    """The time of each clone over the trials: its kernels at their best."""

    def __init__(
        self, kernels: Sequence[Kernel], defaults: Contests, tasks: Sequence[Task]
    ) -> None:
        by_kernel = {kernel.name: task for task in tasks for kernel in task.kernels}
        self._fixed: dict[str, float] = {}
        self._tasks: dict[str, list[tuple[float, Task]]] = {}
        for kernel in kernels:
            for site in kernel.sites:
                ms = site.count * defaults[kernel.name, site][0].timing.ms
                if kernel.name in by_kernel:
                    task = by_kernel[kernel.name]
                    self._tasks.setdefault(site.clone, []).append((ms / task.best_ms, task))
                else:
                    self._fixed[site.clone] = self._fixed.get(site.clone, 0.0) + ms
        self.trials = 0
        self._points = {clone: [(0.0, self._now(clone))] for clone in self._tasks}

    @property
    def curves(self) -> dict[str, tuple[tuple[float, float], ...]]:
        return {clone: tuple(points) for clone, points in self._points.items()}

    def count(self) -> None:
        """One more trial."""
        self.trials += 1
        for clone, points in self._points.items():
            points.append((float(self.trials), self._now(clone)))

    def now(self) -> float:
        """Best time of all clones with kernels that can be tuned."""
        return sum(self._now(clone) for clone in self._tasks)

    def _now(self, clone: str) -> float:
        tuned = sum(share * task.best_ms for share, task in self._tasks[clone])
        return self._fixed.get(clone, 0.0) + tuned


def _finals(
    bench: Bench, tasks: Sequence[Task], ctx: Context
) -> Iterator[tuple[str, list[Record]]]:
    """The fastest schedule of each workload that is clearly faster than its default, in a contest
    of the best trials, as a record for each of its kernels.
    """
    entries: list[tuple[Kernel, Site, list[Contender]]] = []
    found: dict[tuple[str, str], tuple[Trial, Any]] = {}
    for task in tasks:
        kernel = task.kernels[0]
        contenders = [contest_job(kernel, task.site)]
        for trial in task.finalists(FINALISTS):
            if (func := task.func(trial)) is not None:
                record = record_of(kernel, trial, func)
                found[kernel.name, record.id] = trial, func
                contenders.append(contest_job(kernel, task.site, record))
        if len(contenders) > 1:
            entries.append((kernel, task.site, contenders))
    held = hold(bench, entries, ctx, "finals")
    for task in tasks:
        kernel = task.kernels[0]
        candidates = held.get((kernel.name, task.site))
        if candidates is None or candidates[0].timing.error:
            continue
        winner = dense_winner(candidates)
        if winner.kind == "tuned":
            trial, func = found[kernel.name, winner.id]
            for one in task.kernels:
                yield one.name, [record_of(one, trial, named_as(func, one.func))]


def record_of(kernel: Kernel, trial: Trial, func: Any) -> Record:
    return records.make(
        kernel.name,
        kernel.func,
        func,
        kind="tuned",
        rule=made_by(trial),
        trace=trial.trace,
        ms=trial.ms,
        flops=kernel.default.flops,
        toolchain={tool: version(tool) for tool in MetaSchedule.tools},
    )


def _served(tasks: Sequence[Task], past: Experience) -> str:
    """For how many workloads the past had schedules, in words."""
    known = {one.workload for one in past.pasts}
    equal = [task.kernels[0].default.workload in known for task in tasks if task.reused]
    similar = len(equal) - sum(equal)
    return f"reuse: schedules for {sum(equal)} equal workloads, and for {similar} similar ones"


def _notes(
    tasks: Sequence[Task], trials: int, tuning: Tuning, out_of_time: bool, seconds: float
) -> Iterator[str]:
    measured = sum(task.measured for task in tasks)
    note = f"{trials} of {tuning.trials} trials over {len(tasks)} workloads"
    note += f": {measured} measured now, {trials - measured} taken from the tuning database"
    if measured and seconds:
        note += f"; {measured / seconds:.2f} a second"
    yield note
    every = [trial for task in tasks for trial in task.trials]
    makers = Counter(made_by(trial) for trial in every)
    bests = Counter(made_by(task.best) for task in tasks if task.rounds)
    if makers:  # else there was no time for any
        yield "trials by module: " + ", ".join(
            f"{name} {count} (the best of {bests[name]} workloads)"
            for name, count in makers.items()
        )
    if kinds := Counter(kind_of(trial.error) for trial in every if trial.ms is None):
        yield "trials that failed: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    if trials < tuning.trials and out_of_time:
        yield f"the search stopped after {tuning.max_seconds:g} s"
    elif trials < tuning.trials:
        why = "every space is exhausted or brings nothing any more"
        if tuning.max_trials_per_kernel is not None:
            why += f", or has had its {tuning.max_trials_per_kernel} trials"
        yield f"the search stopped before its budget: {why}"


def kind_of(error: str) -> str:
    """What went wrong, without the particulars."""
    return error.partition(":")[0].partition(" in ")[0].partition(" (")[0].partition(" while")[0]
