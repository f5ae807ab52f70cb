"""Runs a plan: stages go to worker processes as what they read becomes known.

One thread, one loop: settle what is decided, launch what is ready, wait, collect.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from . import admission, disk, errors, events, host, journal, locks
from . import store as stores
from .errors import (
    CancelledError,
    EnvironmentalError,
    RecipeError,
    StageError,
    TapmlError,
    WorkerError,
)
from .events import (
    Event,
    RunFinished,
    RunStarted,
    StageFinished,
    StageProgress,
    StageStarted,
    State,
)
from .explain import Past
from .plan import Plan, Step, resolve
from .pools import InlinePool, Pool, SlotPool
from .results import Options, Result, StepResult
from .signals import Signals
from .stage import Report
from .store import Store
from .worker import Done, Job, peak_mib

__all__ = ["Options", "Part", "Result", "RunRecipe", "StepResult", "run", "run_batch"]
_TICK_S = 0.2  # how often progress, time limits and signals are looked at
_START_S = 60.0  # longest that a worker process may take to start
_CRASHES = 2  # times that a stage may crash before it has failed
_REMAKES = 3  # times that a stage is made again within one run because its stored result is damaged


class RunRecipe(Protocol):
    """What the executor uses of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    def dotted(self) -> Mapping[str, Any]: ...
    def resolved_yaml(self) -> str: ...
    def locate(self, error: RecipeError) -> RecipeError: ...


@dataclass(frozen=True)
class Part:
    """One recipe's share of a plan: its own names of stages → steps."""

    recipe: RunRecipe
    steps: Mapping[str, str]
    label: str = ""


def run(
    plan: Plan,
    recipe: RunRecipe,
    store: Store,
    options: Options | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> Result:
    """Runs the plan of one recipe, as `run_batch`."""
    part = Part(recipe, {step.name: step.name for step in plan})
    return run_batch(plan, [part], store, options, emit)[0]


def run_batch(
    plan: Plan,
    parts: Sequence[Part],
    store: Store,
    options: Options | None = None,
    emit: Callable[[Event], None] = lambda event: None,
) -> tuple[Result, ...]:
    """Runs what `plan` says is not there: each step once, told to every recipe that it is part of.

    Each recipe has a run folder of its own, with its own names of stages. `emit` gets the plan's.
    A failure of a stage is in the results, not raised.

    Raises: EnvironmentalError, before any stage runs, when this machine lacks something or the
        store cannot be written.
    """
    options = options or Options()
    for step in plan:
        if step.state != "hit":
            step.stage.check()
    admission.check(plan, options)
    store.prepare()
    started = time.time()
    sweep = journal.new_id(f"{parts[0].recipe.name}-sweep") if len(parts) > 1 else ""
    with ExitStack() as stack:
        members: list[_Member] = []
        with disk.guarded(store.root):
            for part in parts:
                name = f"{part.recipe.name}-{part.label}" if part.label else part.recipe.name
                run_id, folder = journal.new_run(store, name)
                log = stack.enter_context(journal.Journal(folder))
                members.append(_Member(part, run_id, folder, log, sweep))
                _write_facts(folder, plan, part)
        signals = stack.enter_context(Signals())
        for member in members:
            with disk.guarded(member.folder):
                member.log.write(member.started(started))
        emit(_beginning(members, plan, started))
        active = _Run(plan, members, store, options, emit, signals)
        active.run()
        ended = time.time()
        seconds = ended - started
        results: list[Result] = []
        for member in members:
            steps = {name: active.result(step, name, member) for name, step in member.steps}
            code = signals.exit_code or _exit_code(steps.values())
            ran = sum(one.seconds for one in steps.values() if one.state == "ran")
            took = (
                seconds if len(members) == 1 else ran
            )  # of a batch, what it had itself to wait for
            event = RunFinished(ended, member.run_id, code, round(took, 3))
            with disk.guarded(member.folder):
                member.log.write(event)
            results.append(Result(member.run_id, member.folder, steps, code, took, started, sweep))
        code = max(result.exit_code for result in results)
        emit(RunFinished(ended, sweep or members[0].run_id, code, round(seconds, 3)))
    return tuple(results)


def _exit_code(results: Iterable[StepResult]) -> int:
    failed = (
        one.error.exit_code for one in results if one.state == "failed" and one.error is not None
    )
    return next(failed, 0)


def _write_facts(folder: Path, plan: Plan, part: Part) -> None:
    (folder / "recipe.yaml").write_text(part.recipe.resolved_yaml(), encoding="utf-8")
    rows = {row["name"]: row for row in plan.to_data()}
    own = [{**rows[step], "name": name} for name, step in part.steps.items()]
    (folder / "plan.json").write_text(json.dumps(own), encoding="utf-8")


def _beginning(members: Sequence[_Member], plan: Plan, started: float) -> RunStarted:
    """What whoever watches is told first: of a batch, all its steps at once."""
    first = members[0].started(started)
    if len(members) == 1:
        return first
    names = list(dict.fromkeys(member.part.recipe.name for member in members))
    return replace(
        first,
        run_id=first.sweep,
        recipe=f"{len(members)} of {', '.join(names[:3])}{' …' * (len(names) > 3)}",
        stages=tuple(step.name for step in plan),
    )


@dataclass(frozen=True, eq=False)
class _Member:
    """A recipe of the run, with the folder that keeps what it is told."""

    part: Part
    run_id: str
    folder: Path
    log: journal.Journal
    sweep: str

    @property
    def steps(self) -> Iterable[tuple[str, str]]:
        return self.part.steps.items()

    def started(self, moment: float) -> RunStarted:
        recipe = self.part.recipe
        return RunStarted(
            time=moment,
            run_id=self.run_id,
            recipe=recipe.name,
            path=str(recipe.path),
            pid=os.getpid(),
            stages=tuple(self.part.steps),
            fields=recipe.dotted(),
            host={**host.fingerprint(), "machine": host.machine()},
            label=self.part.label,
            sweep=self.sweep,
        )


@dataclass(eq=False)
class _Active:
    """A stage that a worker has."""

    step: Step
    job: Job
    lock: locks.FileLock
    started: float
    limit_s: float | None
    stale: bool = False
    begun: bool = False
    pid: int = 0
    peak_mib: float = 0.0
    read: int = 0


class _Run:
    """The state of one run: steps, resolved further as outputs become known, and results."""

    def __init__(
        self,
        plan: Plan,
        members: Sequence[_Member],
        store: Store,
        options: Options,
        emit: Callable[[Event], None],
        signals: Signals,
    ) -> None:
        self.results: dict[str, StepResult] = {}
        self._steps = {step.name: step for step in plan}
        self._members: dict[str, list[tuple[str, _Member]]] = {step.name: [] for step in plan}
        for member in members:
            for name, step in member.steps:
                self._members[step].append((name, member))
        self._below: dict[str, list[str]] = {step.name: [] for step in plan}
        for step in plan:
            for above in step.needs:
                self._below[above].append(step.name)
        self._store, self._options = store, options
        self._past = Past(store)
        self._emit, self._signals = emit, signals
        self._owner = f"run {members[0].run_id} (process {os.getpid()})"
        self._look = deque(self._steps)  # what may have become ready, in the plan's order
        self._ready: dict[str, Step] = {}
        self._failed = ""
        self._slots = admission.slots(plan, options.jobs)
        self._room = admission.Room.of(self._slots)
        self._active: dict[Future[Done], _Active] = {}
        self._machine = locks.MachineLock(locks.machine_folder(), self._owner)
        self._crashes: dict[str, int] = {}
        self._remakes: dict[str, int] = {}
        self._notes: dict[str, list[str]] = {}
        self._waits: dict[str, str] = {}
        self._litter: list[Path] = []  # workdirs, removed while workers are busy
        self._priority = _critical_paths(plan)
        self._pool: Pool | None = None

    # --- the loop

    def run(self) -> None:
        try:
            while True:
                ready = self._settle()
                if self._signals.exit_code:
                    self._stop()
                    return
                self._launch(ready)
                if not self._active and len(self.results) == len(self._steps):
                    return
                self._wait()
        finally:
            if self._pool is not None:
                self._pool.close()
            self._machine.release()
            self._tidy()
            if any(one.state == "ran" for one in self.results.values()):
                self._store.flush()

    def _settle(self) -> list[Step]:
        """Finishes hits and what cannot run any more; what can start, the most urgent first."""
        while self._look:
            name = self._look.popleft()
            if name in self.results or name in self._ready or self._is_active(name):
                continue
            step = self._steps[name]
            above = [self.results.get(one) for one in step.needs]
            if stopped := next(
                (one for one in above if one and one.state not in ("hit", "ran")), None
            ):
                self._cancel(step, _root(stopped))
            elif None not in above:
                if step.state == "pending":
                    step = self._steps[name] = resolve(step, self._steps, self._past)
                if step.state == "hit":
                    self._hit(step)
                else:
                    self._ready[name] = step
        if self._options.fail_fast and self._failed:
            for name, step in self._steps.items():
                if name not in self.results and not self._is_active(name):
                    self._cancel(step, self._failed)
        # what runs alone comes last, so that the others' errors do not wait for it
        return sorted(
            self._ready.values(),
            key=lambda step: (step.stage.resources.exclusive, -self._priority[step.name]),
        )

    def _is_active(self, name: str) -> bool:
        return any(active.step.name == name for active in self._active.values())

    def _launch(self, ready: list[Step]) -> None:
        if any(active.step.stage.resources.exclusive for active in self._active.values()):
            return
        for step in ready:
            pool = self._pool or self._open_pool()
            alone = step.stage.resources.exclusive
            if not pool.free or (alone and self._active):
                return  # what is urgent comes first, also when it has to wait until it is alone
            if not self._room.has(step.stage.resources):
                continue
            lock = self._claim(step)
            if lock is None:
                continue
            if self._steps[step.name].state == "hit":  # another run made it meanwhile
                lock.release()
                self._hit(self._steps[step.name])
                continue
            if not self._machine.acquire(alone=alone):
                lock.release()
                self._wait_note(step, f"waits for {self._machine.holder()}: the machine is in use")
                continue
            self._start(pool, step, lock)
            if alone:
                return

    def _wait(self) -> None:
        self._tidy()
        if self._pool is None or not self._active:
            time.sleep(_TICK_S / 2)  # for another run
            return
        finished, _ = wait(self._active, timeout=_TICK_S, return_when=FIRST_COMPLETED)
        for future, active in list(self._active.items()):
            self._watch(active)
            if future in finished:
                self._collect(future, active)
            elif active.pid and _has_ended(active.pid):
                self._pool.sweep(future)
            elif active.limit_s is not None and time.monotonic() - active.started > (
                active.limit_s if active.begun else active.limit_s + _START_S
            ):
                self._time_out(future, active)
        if not self._active:
            self._machine.release()

    def _stop(self) -> None:
        """After a signal: ends what runs, and says so of every step."""
        for future, active in list(self._active.items()):
            self._end(future, active, kill=True)
            self._finish(active.step, "interrupted", seconds=time.monotonic() - active.started)
        for name, step in self._steps.items():
            if name not in self.results:
                self._cancel(step, "the interruption")

    # --- one stage

    def _claim(self, step: Step) -> locks.FileLock | None:
        """The lock of the step's action, so that not two runs do it; None while it is taken."""
        assert step.key is not None
        with disk.guarded(self._store.root):
            lock = locks.FileLock(self._store.root / "locks" / step.key, self._owner)
            if not lock.acquire():
                self._wait_note(step, f"waits for {lock.holder()}, which is making it")
                return None
        if not step.forced and self._store.lookup(step.stage.name, step.key) is not None:
            self._steps[step.name] = resolve(step, self._steps, self._past)
        return lock

    def _start(self, pool: Pool, step: Step, lock: locks.FileLock) -> None:
        assert step.key is not None
        assert step.preimage is not None
        outputs = {node: self._steps[node].outputs or {} for node, _ in step.inputs.values()}
        resources = step.stage.resources
        workdir = self._store.temporary(step.stage.name)
        del self._ready[step.name]
        self._room.take(resources)
        job = Job(
            step=step.name,
            stage=step.stage,
            key=step.key,
            preimage=step.preimage,
            inputs={name: outputs[node][output] for name, (node, output) in step.inputs.items()},
            root=self._store.root,
            durability=self._store.durability,
            workdir=workdir,
            log=self._log(step.name),
            progress=workdir / "progress.jsonl",
            views=self._views(step.name) if self._options.views else None,
            replace=bool(step.forced),
        )
        cores = host.threads()
        threads = self._options.threads or (
            cores if resources.exclusive else max(1, cores // self._slots)
        )
        expected_s = None if step.expected is None else step.expected.seconds
        self._tell(StageStarted(time.time(), step.name, step.reason, expected_s))
        future = pool.submit(job, threads=threads, fresh=resources.fresh_process)
        limit = resources.timeout_s or self._options.timeout_s
        self._active[future] = _Active(step, job, lock, time.monotonic(), limit)

    def _collect(self, future: Future[Done], active: _Active) -> None:
        self._end(future, active, kill=isinstance(future.exception(), BrokenProcessPool))
        if active.stale:
            return  # what it read was made again meanwhile; settled anew
        try:
            done = future.result()
        except BrokenProcessPool as error:
            self._crashed(active, error)
            return
        if done.damaged:
            self._remake(active.step, done.damaged)
        elif done.error is not None:
            error = self._located(errors.from_data(done.error), active.step)
            self._finish(active.step, "failed", done.seconds, done.rss_mib, error)
        else:
            assert done.record is not None
            step = replace(active.step, outputs=done.record.outputs, record=done.record)
            self._steps[step.name] = step
            self._finish(step, "ran", done.seconds, done.rss_mib)

    def _end(self, future: Future[Done], active: _Active, *, kill: bool) -> None:
        """Frees what a stage held."""
        assert self._pool is not None
        del self._active[future]
        self._room.give(active.step.stage.resources)
        self._look.append(active.step.name)  # unless it ends now, it is to run again
        if kill:
            self._pool.kill(future)
        else:
            self._pool.release(future)
        active.lock.release()
        self._litter.append(active.job.workdir)

    def _crashed(self, active: _Active, error: BrokenProcessPool) -> None:
        step, name = active.step, active.step.name
        seconds = time.monotonic() - active.started
        if error.__cause__ is not None:  # loky's account of what went wrong before our code ran
            last = str(error.__cause__).strip('" \n').splitlines()[-1]
            told = StageError(message=f"its worker could not load it: {last}")
            self._finish(step, "failed", seconds, 0.0, self._located(told, step))
            return
        killed = re.search(r"(SIG[A-Z0-9]+)\(", str(error))  # loky gives exit codes in prose only
        signal_name = killed[1] if killed else ""
        what = f"its worker was killed by {signal_name}" if killed else "its worker ended by itself"
        self._crashes[name] = self._crashes.get(name, 0) + 1
        if self._crashes[name] < _CRASHES:
            self._note(name, what, "run again")
            return
        guess = ": probably out of memory" if signal_name == "SIGKILL" else ""
        peak = f"peak {active.peak_mib:.0f} MiB"
        died = WorkerError(
            message=f"{what}{guess} ({self._crashes[name]} times; {peak})", signal=signal_name
        )
        self._finish(step, "failed", seconds, active.peak_mib, self._located(died, step))

    def _time_out(self, future: Future[Done], active: _Active) -> None:
        self._end(future, active, kill=True)
        if not active.stale:
            error = WorkerError(
                message=f"took longer than {active.limit_s:g} s; its worker was ended",
                signal="timeout",
            )
            self._finish(
                active.step,
                "failed",
                time.monotonic() - active.started,
                active.peak_mib,
                self._located(error, active.step),
            )

    def _remake(self, step: Step, damaged: str) -> None:
        """An input is damaged: what made it runs again, and all below is decided anew."""
        node, output = step.inputs[damaged]
        self._remakes[node] = self._remakes.get(node, 0) + 1
        if self._remakes[node] > _REMAKES:
            error = EnvironmentalError(
                message=f"what {node} gives is damaged each time it is stored",
                hint=f"check the disk below {self._store.root}",
            )
            self._finish(step, "failed", error=error)
            return
        self._note(node, f"its stored {output} was damaged", "made again")
        below = {node}
        for name, one in self._steps.items():  # in topological order
            if below.intersection(one.needs):
                below.add(name)
        for name in below:
            self.results.pop(name, None)
            self._steps[name] = replace(
                self._steps[name], state="pending", outputs=None, record=None
            )
            self._ready.pop(name, None)
        self._look.extend(name for name in self._steps if name in below)
        for active in self._active.values():
            active.stale = active.stale or active.step.name in below

    # --- how a step ended

    def _hit(self, step: Step) -> None:
        record = step.record
        assert record is not None
        for name, member in self._members[step.name]:
            sides = [(record.log, member.folder / "logs" / f"{name}.log")]
            if self._options.views:
                sides.append((record.views, member.folder / "views" / name))
            for digest, path in sides:  # side outputs: they may be lost
                with suppress(stores.DamagedError, FileExistsError):
                    if digest:
                        self._store.materialise(digest, path)
        self._finish(step, "hit", record.seconds, record.rss_mib)

    def _cancel(self, step: Step, because: str) -> None:
        error = CancelledError(
            message=f"not run, because of {because}", stage=step.name, because=because
        )
        self._finish(step, "cancelled", error=error)

    def _finish(
        self,
        step: Step,
        state: State,
        seconds: float = 0.0,
        rss_mib: float = 0.0,
        error: TapmlError | None = None,
    ) -> None:
        log = self._log(step.name)
        record = step.record if state in ("hit", "ran") else None
        result = StepResult(
            name=step.name,
            state=state,
            seconds=round(seconds, 3),
            rss_mib=round(rss_mib, 1),
            key=step.key or "",
            outputs={} if record is None else record.outputs,
            report=Report() if record is None else events.report_from_data(record.report),
            error=error,
            log=log if log.exists() else None,
            notes=(*step.notes, *self._notes.get(step.name, ())),
            made_at="" if record is None else record.made_at,
            made_on={} if record is None else record.made_on,
            foreign=record is not None and record.made_on.get("machine") != host.machine(),
        )
        self.results[step.name] = result
        self._ready.pop(step.name, None)
        self._look.extend(self._below[step.name])
        if state == "failed":
            self._failed = self._failed or step.name
        self._share(step.name)
        self._tell(
            StageFinished(
                time=time.time(),
                stage=step.name,
                state=state,
                seconds=result.seconds,
                rss_mib=result.rss_mib,
                key=result.key,
                outputs=result.outputs,
                report=result.report,
                error=None if error is None else errors.to_data(error),
                log="" if result.log is None else str(result.log),
                notes=result.notes,
                made_at=result.made_at,
                made_on=result.made_on,
            )
        )

    def _located(self, error: TapmlError, step: Step) -> TapmlError:
        """The error with what only this side knows: the place in the recipe, or stage and log."""
        if isinstance(error, RecipeError):
            return self._members[step.name][0][1].part.recipe.locate(error)
        if isinstance(error, StageError):
            error.stage = step.name
            error.log = str(self._log(step.name))
        return error

    # --- what each recipe is told

    def result(self, step: str, name: str, member: _Member) -> StepResult:
        """How a step ended, in the words of one of its recipes."""
        log = member.folder / "logs" / f"{name}.log"
        return replace(self.results[step], name=name, log=log if log.exists() else None)

    def _tell(self, event: StageStarted | StageProgress | StageFinished) -> None:
        """Writes an event to the journal of each recipe of its step, and passes it on."""
        for name, member in self._members[event.stage]:
            own = replace(event, stage=name)
            if isinstance(own, StageFinished) and own.log:
                own = replace(own, log=str(member.folder / "logs" / f"{name}.log"))
            with disk.guarded(member.folder):
                member.log.write(own)
        self._emit(event)

    def _share(self, step: str) -> None:
        """The log and the views of a step in the folder of each of its recipes."""
        (first, owner), *others = self._members[step]
        for name, member in others:
            log = owner.folder / "logs" / f"{first}.log"
            with suppress(FileExistsError, FileNotFoundError), disk.guarded(member.folder):
                disk.link(log, member.folder / "logs" / f"{name}.log")
            views = owner.folder / "views" / first
            if views.is_dir() and not (target := member.folder / "views" / name).exists():
                with disk.guarded(member.folder):
                    shutil.copytree(views, target, copy_function=os.link)

    def _log(self, step: str) -> Path:
        name, member = self._members[step][0]
        return member.folder / "logs" / f"{name}.log"

    def _views(self, step: str) -> Path:
        name, member = self._members[step][0]
        return member.folder / "views" / name

    # --- small things

    def _watch(self, active: _Active) -> None:
        """Passes progress on, and remembers the worker's peak memory in case that it dies."""
        with suppress(FileNotFoundError):
            os.utime(active.job.workdir)  # else it passes, after a day, for what a killed run left
        try:
            with active.job.progress.open("rb") as source:
                source.seek(active.read)
                text = source.read()
        except FileNotFoundError:  # not begun
            return
        whole = text[: text.rfind(b"\n") + 1]
        active.read += len(whole)
        rows = [json.loads(line) for line in whole.splitlines()]
        for row in rows:
            active.pid = row.get("pid", active.pid)
        if active.pid and not active.begun:
            active.begun, active.started = True, time.monotonic()
        if active.pid:
            active.peak_mib = max(active.peak_mib, peak_mib(active.pid))
        if rows and "done" in (last := rows[-1]):
            self._tell(
                StageProgress(
                    time.time(), active.step.name, last["done"], last["total"], last["note"]
                )
            )

    def _note(self, name: str, what: str, then: str) -> None:
        self._notes.setdefault(name, []).append(f"{what}; {then}")
        self._tell(StageProgress(time.time(), name, 0, 0, f"{what}; {then}"))

    def _wait_note(self, step: Step, note: str) -> None:
        if self._waits.get(step.name) != note:
            self._waits[step.name] = note
            self._tell(StageProgress(time.time(), step.name, 0, 0, note))

    def _tidy(self) -> None:
        while self._litter:
            disk.remove(self._litter.pop())

    def _open_pool(self) -> Pool:
        self._pool = InlinePool() if self._options.jobs == 0 else SlotPool(self._slots)
        return self._pool


def _root(result: StepResult) -> str:
    """The step that is at the root of a step's not having run."""
    return result.error.because if isinstance(result.error, CancelledError) else result.name


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays to be waited for."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # waited for already
        return True


def _critical_paths(plan: Plan) -> dict[str, float]:
    """Step → seconds from its start to the end of the run, as far as earlier runs tell."""
    lengths = dict.fromkeys((step.name for step in plan), 0.0)
    for step in reversed(plan.steps):
        if step.state != "hit":
            lengths[step.name] += step.expected.seconds if step.expected else 1.0
        for name in step.needs:
            lengths[name] = max(lengths[name], lengths[step.name])
    return lengths
