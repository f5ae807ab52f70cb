"""Runs a plan: stages go to worker processes as what they read becomes known.

One thread, one loop: settle what is decided, launch what is ready, wait, collect.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from . import disk, errors, events, host, journal, locks, pools
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
from .plan import Plan, Step, look_ahead, resolve
from .pools import Pool
from .remote.outbox import Outbox
from .results import Options, Result, StepResult
from .signals import Signals
from .stage import Report
from .store import Store
from .worker import Done, Job

__all__ = ["Options", "Part", "Result", "RunRecipe", "StepResult", "run", "run_batch"]
_TICK_S = 0.2  # how often progress, time limits and signals are looked at
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

    Raises: EnvironmentalError, before any stage runs, when this machine lacks something, a stage
        asks for more than there is, the cluster is not there, or the store cannot be written.
    """
    options = options or Options()
    store.prepare()
    started = time.time()
    sweep = journal.new_id(f"{parts[0].recipe.name}-sweep") if len(parts) > 1 else ""
    names = list(dict.fromkeys(part.recipe.name for part in parts))
    owner = f"the run of {_listed(names)} (process {os.getpid()})"
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        pool = pools.make(plan, options, owner)
        running.callback(pool.close)
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
        outbox = Outbox(store)
        outbox.resume()
        active = _Run(plan, members, store, options, pool, owner, emit, signals, outbox)
        active.run()
        running.close()
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
        outbox.finish(until=lambda: bool(signals.exit_code))
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
        recipe=f"{len(members)} of {_listed(names)}",
        stages=tuple(step.name for step in plan),
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + " …" * (len(names) > 3)


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
    """A stage that a worker has.

    stale: what it read is made again meanwhile
    read:  bytes of its progress that were passed on
    """

    step: Step
    job: Job
    lock: locks.FileLock
    started: float
    stale: bool = False
    read: int = 0


class _Run:
    """The state of one run: steps, resolved further as outputs become known, and results."""

    def __init__(
        self,
        plan: Plan,
        members: Sequence[_Member],
        store: Store,
        options: Options,
        pool: Pool,
        owner: str,
        emit: Callable[[Event], None],
        signals: Signals,
        outbox: Outbox,
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
        self._store, self._options, self._pool = store, options, pool
        self._past = Past(store)
        self._emit, self._signals, self._outbox = emit, signals, outbox
        self._owner = owner
        self._look = deque(self._steps)  # what may have become ready, in the plan's order
        self._ready: dict[str, Step] = {}
        self._failed = ""
        self._active: dict[Future[Done], _Active] = {}
        self._crashes: dict[str, int] = {}
        self._remakes: dict[str, int] = {}
        self._notes: dict[str, list[str]] = {}
        self._waits: dict[str, str] = {}
        self._litter: list[Path] = []  # workdirs, removed while workers are busy
        self._priority = _critical_paths(plan)

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
        except pools.LostError as error:
            self._lose(error)
        finally:
            self._tidy()
            if any(one.state == "ran" for one in self.results.values()):
                self._store.flush()

    def _settle(self) -> list[Step]:
        """Finishes hits and what cannot run any more; what can start, the most urgent first."""
        pending = [self._steps[name] for name in self._look if self._steps[name].state == "pending"]
        look_ahead(pending, self._steps, self._past)
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
        place = self._pool.place
        for step in ready:
            if not self._pool.free:
                return
            need = step.stage.resources
            if lacking := place.lacks(need):
                if not self._active:  # else it waits for stages of this run
                    self._wait_note(step, f"waits for {lacking}")
                continue
            lock = self._claim(step)
            if lock is None:
                continue
            if self._steps[step.name].state == "hit":  # another run made it meanwhile
                lock.release()
                self._hit(self._steps[step.name])
            elif place.enter(need):
                self._start(step, lock)
            else:
                lock.release()
                self._wait_note(step, f"waits for {place.obstacle}: the machine is in use")

    def _wait(self) -> None:
        self._tidy()
        if not self._active:
            time.sleep(_TICK_S / 2)  # for another run
            return
        finished, _ = wait(self._active, timeout=_TICK_S, return_when=FIRST_COMPLETED)
        self._pool.watch()
        for future, active in list(self._active.items()):
            self._pass_on_progress(active)
            if future in finished:
                self._collect(future, active)

    def _stop(self) -> None:
        """After a signal: ends what runs, and says so of every step."""
        for future, active in list(self._active.items()):
            self._pool.kill(future)
            self._end(future, active)
            self._finish(active.step, "interrupted", seconds=time.monotonic() - active.started)
        for name, step in self._steps.items():
            if name not in self.results:
                self._cancel(step, "the interruption")

    def _lose(self, error: pools.LostError) -> None:
        """The pool is gone: told once, by a stage that it ran; the others are not run for it."""
        left = [name for name in self._steps if name not in self.results]
        first = next((active.step.name for active in self._active.values()), left[0])
        for future, active in list(self._active.items()):
            self._end(future, active)
        self._finish(self._steps[first], "failed", error=error)
        for name in left:
            if name != first:
                self._cancel(self._steps[name], first)

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

    def _start(self, step: Step, lock: locks.FileLock) -> None:
        assert step.key is not None
        assert step.preimage is not None
        outputs = {node: self._steps[node].outputs or {} for node, _ in step.inputs.values()}
        workdir = self._store.temporary(step.stage.name)
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
            threads=self._options.threads,
            limit_s=step.stage.resources.timeout_s or self._options.timeout_s,
            replace=bool(step.forced),
            remote=None if self._store.remote is None else self._store.remote.offer(),
        )
        expected_s = None if step.expected is None else step.expected.seconds
        self._tell(StageStarted(time.time(), step.name, step.reason, expected_s))
        del self._ready[step.name]
        if self._pool.apart:
            self._store.lend(job.inputs.values())
        future = self._pool.submit(job)
        self._active[future] = _Active(step, job, lock, time.monotonic())

    def _collect(self, future: Future[Done], active: _Active) -> None:
        done = self._pool.collect(future)
        self._end(future, active)
        if active.stale:
            return  # what it read was made again meanwhile; settled anew
        if done.log:
            with disk.guarded(self._store.root):
                self._log(active.step.name).write_text(done.log, encoding="utf-8")
        if done.damaged:
            self._remake(active.step, done.damaged)
        elif done.error is not None:
            self._failed_with(errors.from_data(done.error), active.step, done)
        else:
            assert done.record is not None
            self._outbox.add(done.record)
            step = replace(active.step, outputs=done.record.outputs, record=done.record)
            self._steps[step.name] = step
            if not self._log(step.name).exists():  # it lies on another machine
                self._bring_sides(step, done.record, far=False)
            self._finish(step, "ran", done.seconds, done.rss_mib)

    def _end(self, future: Future[Done], active: _Active) -> None:
        """Frees what a stage held."""
        del self._active[future]
        self._look.append(active.step.name)  # unless it ends now, it is to run again
        self._pool.place.leave(active.step.stage.resources)
        active.lock.release()
        self._litter.append(active.job.workdir)

    def _failed_with(self, error: TapmlError, step: Step, done: Done) -> None:
        """A crash is tried again; an error of the stage itself would only come again."""
        if isinstance(error, WorkerError) and error.signal != "timeout":
            crashes = self._crashes[step.name] = self._crashes.get(step.name, 0) + 1
            if crashes < _CRASHES:
                self._note(step.name, error.message, "run again")
                return
            error.message += f", {crashes} times"
        self._finish(step, "failed", done.seconds, done.rss_mib, self._located(error, step))

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
        if self._store.remote is not None:  # not to fall for its record again
            self._store.remote.lose([(self._steps[node].outputs or {})[output]])
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
        self._bring_sides(step, record, far=step.where != "local")
        self._finish(step, "hit", record.seconds, record.rss_mib)

    def _bring_sides(self, step: Step, record: stores.Record, *, far: bool) -> None:
        """Log and views out of the store; of a far one, what is here. They may be lost."""
        for name, member in self._members[step.name]:
            sides = [(record.log, member.folder / "logs" / f"{name}.log")]
            if self._options.views:
                sides.append((record.views, member.folder / "views" / name))
            for digest, path in sides:
                with suppress(stores.DamagedError, FileExistsError):
                    if digest and not (far and not self._store.intact(digest)):
                        self._store.materialise(digest, path)

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

    def _pass_on_progress(self, active: _Active) -> None:
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
        if news := [row for row in rows if "done" in row]:
            last = news[-1]
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


def _root(result: StepResult) -> str:
    """The step that is at the root of a step's not having run."""
    return result.error.because if isinstance(result.error, CancelledError) else result.name


def _critical_paths(plan: Plan) -> dict[str, float]:
    """Step → seconds from its start to the end of the run, as far as earlier runs tell."""
    lengths = dict.fromkeys((step.name for step in plan), 0.0)
    for step in reversed(plan.steps):
        if step.state != "hit":
            lengths[step.name] += step.expected.seconds if step.expected else 1.0
        for name in step.needs:
            lengths[name] = max(lengths[name], lengths[step.name])
    return lengths
