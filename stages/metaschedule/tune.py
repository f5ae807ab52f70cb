"""The search over schedules: a budget of trials, given to kernels by the time there is to win.

Rounds go to kernels in an order that follows from the database and the recipe alone, and a larger
budget only adds rounds at its end. So a killed search resumes where it was, and raising the budget
measures exactly what it is raised by.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from tapml.stage import Context, Target

from .. import records
from ..compat import tvm
from ..measure import Bench, Job
from ..records import Record
from ..target import tvm_target
from .contest import Contests
from .database import SearchFile, Trial
from .kernels import Kernel
from .search import BATCH, SPACE, Search
from .stage import MetaSchedule, Tuning

TRIAL_S = 0.06  # of running, for each trial
FINALISTS = 2  # tuned schedules of a kernel that meet its default in a contest
LEAST_HEADROOM = 0.05  # of a kernel's time counts as there to win, however fast it is


@dataclass(frozen=True)
class Searched:
    """How the search of one workload went: the time of each trial, None for one that failed."""

    kernels: tuple[str, ...]
    default_ms: float
    trials_ms: tuple[float | None, ...]
    exhausted: bool


@dataclass(frozen=True)
class Tuned:
    """What a search found: the best records by kernel, fastest first, and how it went.

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


@dataclass
class Task:
    """The search of one workload: the kernels that share it, and the trials that count so far."""

    kernels: list[Kernel]
    file: SearchFile
    search: Search
    default_ms: float
    worth_ms: float = 0.0  # time that could be won, over all calls
    rounds: int = 0
    trials: list[Trial] = field(default_factory=list)
    measured: int = 0  # of the trials; the others were in the database
    exhausted: bool = False

    @property
    def best_ms(self) -> float:
        return min([self.default_ms, *(t.ms for t in self.trials if t.ms is not None)])

    def round(self, bench: Bench, count: int) -> Iterator[Trial]:
        """The next `count` trials: those of this round in the database, then measured ones.

        Fewer are left when the space is exhausted; the task says so.
        """
        finished = [t for t in self.file.trials() if t.round == self.rounds][:count]
        yield from self._counted(finished)
        if len(finished) < count:
            known = [t for t in self.file.trials() if t.round < self.rounds]
            done = {t.key for t in finished}
            proposals = [p for p in self.search.propose(self.rounds, known) if p.key not in done][
                : count - len(finished)
            ]
            self.exhausted = len(finished) + len(proposals) < count
            yield from self._counted(self._measure(bench, proposals))
        self.rounds += 1

    def _counted(self, trials: Iterator[Trial] | Sequence[Trial]) -> Iterator[Trial]:
        for trial in trials:
            self.trials.append(trial)
            yield trial

    def _measure(self, bench: Bench, proposals: Sequence[Any]) -> Iterator[Trial]:
        kernel = self.kernels[0]
        [site, *_] = kernel.sites
        jobs = [
            Job(
                id=proposal.key,
                module=tvm.ir.save_json(tvm.IRModule({kernel.name: proposal.func})),
                kernel=kernel.name,
                args=site.args,
                outputs=site.outputs,
            )
            for proposal in proposals
        ]
        traces = {proposal.key: proposal.trace for proposal in proposals}
        for timing in bench.run(jobs, seconds=TRIAL_S):
            ms = None if timing.error else timing.ms
            trial = Trial(self.rounds, timing.id, traces[timing.id], ms, timing.error)
            self.file.add(trial)
            self.measured += 1
            yield trial


def tune(
    bench: Bench,
    kernels: Sequence[Kernel],
    defaults: Contests,
    tuning: Tuning,
    target: Target,
    ctx: Context,
) -> Tuned:
    """Spends the budget of trials on the kernels with static sizes."""
    tasks = _tasks(kernels, defaults, tuning, target, ctx)
    started = time.monotonic()
    totals = _Totals(kernels, defaults, tasks)
    out_of_time = False
    while totals.trials < tuning.trials and (task := _next(tasks, tuning)) is not None:
        if tuning.max_seconds is not None and time.monotonic() - started > tuning.max_seconds:
            out_of_time = True
            break
        left = min(tuning.trials - totals.trials, _cap(tuning) - len(task.trials))
        for _ in task.round(bench, min(BATCH, left)):
            totals.count()
            ctx.progress(totals.trials, tuning.trials, f"best {totals.now():.4g} ms")
    return Tuned(
        records={k.name: found for task in tasks for k, found in _finalists(task)},
        trials=totals.trials,
        failed=sum(trial.ms is None for task in tasks for trial in task.trials),
        measured=sum(task.measured for task in tasks),
        seconds=time.monotonic() - started,
        curves=totals.curves,
        searched=tuple(
            Searched(
                kernels=tuple(kernel.name for kernel in task.kernels),
                default_ms=task.default_ms,
                trials_ms=tuple(trial.ms for trial in task.trials),
                exhausted=task.exhausted,
            )
            for task in tasks
        ),
        notes=tuple(_notes(tasks, totals.trials, tuning, out_of_time)),
    )


def _tasks(
    kernels: Sequence[Kernel],
    defaults: Contests,
    tuning: Tuning,
    target: Target,
    ctx: Context,
) -> list[Task]:
    """A task for each distinct workload with static sizes, and what it is worth."""
    logger = ctx.logger.getChild("search")
    logger.setLevel("WARNING")
    identity = {
        "target": target.model_dump_json(),
        "toolchain": " ".join(f"{tool} {version(tool)}" for tool in MetaSchedule.tools),
        "space": SPACE,
        "seed": str(tuning.seed),
    }
    tasks: dict[str, Task] = {}
    for kernel in kernels:
        workload = kernel.default.workload
        if kernel.symbolic:
            continue
        if workload in tasks:
            tasks[workload].kernels.append(kernel)
            continue
        file = SearchFile(ctx.database / "tuning", {**identity, "workload": workload})
        tasks[workload] = Task(
            kernels=[kernel],
            file=file,
            search=Search(kernel.func, tvm_target(target), tuning.seed, logger),
            default_ms=file.default_ms(defaults[kernel.name, kernel.sites[0]][0].timing.ms),
        )
    rates = {key: task.kernels[0].default.flops / task.default_ms for key, task in tasks.items()}
    peak = max(rates.values(), default=0.0)
    for key, task in tasks.items():
        headroom = 1 - rates[key] / peak if peak else 1.0
        calls = sum(kernel.calls for kernel in task.kernels)
        task.worth_ms = calls * task.default_ms * max(headroom, LEAST_HEADROOM)
    return list(tasks.values())


def _next(tasks: Sequence[Task], tuning: Tuning) -> Task | None:
    """Whose turn it is: highest averages, so that a larger budget never takes a round back."""
    cap = _cap(tuning)
    open_ = [task for task in tasks if not task.exhausted and len(task.trials) < cap]
    return max(open_, key=lambda task: task.worth_ms / (task.rounds + 1), default=None)


def _cap(tuning: Tuning) -> int:
    return tuning.max_trials_per_kernel or tuning.trials


class _Totals:
    """The time of each clone over the trials: its kernels at their best."""

    def __init__(self, kernels: Sequence[Kernel], defaults: Contests, tasks: list[Task]) -> None:
        by_kernel = {kernel.name: task for task in tasks for kernel in task.kernels}
        self._fixed: dict[str, float] = {}
        self._tasks: dict[str, list[tuple[int, Task]]] = {}
        for kernel in kernels:
            for site in kernel.sites:
                if kernel.name in by_kernel:
                    task = by_kernel[kernel.name]
                    self._tasks.setdefault(site.clone, []).append((site.count, task))
                else:
                    ms = site.count * defaults[kernel.name, site][0].timing.ms
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
        tuned = sum(count * task.best_ms for count, task in self._tasks[clone])
        return self._fixed.get(clone, 0.0) + tuned


def _finalists(task: Task) -> Iterator[tuple[Kernel, list[Record]]]:
    """The fastest trials of a task as records, for each of its kernels; slower than the default
    by a fifth is out of the race."""
    ranked = sorted((t for t in task.trials if t.ms is not None), key=lambda t: t.ms or 0.0)
    best = [t for t in ranked[:FINALISTS] if t.ms is not None and t.ms < 1.2 * task.default_ms]
    toolchain = {tool: version(tool) for tool in MetaSchedule.tools}
    for kernel in task.kernels:
        if best:
            yield (
                kernel,
                [
                    records.make(
                        kernel.name,
                        kernel.func,
                        task.search.scheduled(trial),
                        kind="tuned",
                        rule="metaschedule",
                        trace=trial.trace,
                        ms=trial.ms,
                        flops=kernel.default.flops,
                        toolchain=toolchain,
                    )
                    for trial in best
                ],
            )


def _notes(tasks: Sequence[Task], trials: int, tuning: Tuning, out_of_time: bool) -> Iterator[str]:
    measured = sum(task.measured for task in tasks)
    failed = sum(trial.ms is None for task in tasks for trial in task.trials)
    note = f"{trials} of {tuning.trials} trials over {len(tasks)} kernels with static sizes"
    note += f": {measured} measured now, {trials - measured} taken from the tuning database"
    yield note + (f", {failed} failed" if failed else "")
    if trials < tuning.trials and out_of_time:
        yield f"the search stopped after {tuning.max_seconds:g} s"
    elif trials < tuning.trials:
        why = "every space is exhausted"
        if tuning.max_trials_per_kernel is not None:
            why += f", or has had its {tuning.max_trials_per_kernel} trials"
        yield f"the search stopped before its budget: {why}"
