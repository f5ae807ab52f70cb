"""Runs a plan: stages go to worker processes as what they read becomes known.

One thread, one loop: settle what is decided, launch what is ready, wait, collect.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from . import disk, errors, events, host, locks, pools
from . import store as stores
from .audience import Audience, Part, RunRecipe, listed
from .errors import (
    CancelledError,
    EnvironmentalError,
    RecipeError,
    StageError,
    TapmlError,
    WorkerError,
)
from .events import Event, StageFinished, StageProgress, StageStarted, State
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
    owner = f"the run of {listed([part.recipe.name for part in parts])} (process {os.getpid()})"
    with ExitStack() as stack:
        running = stack.enter_context(ExitStack())
        pool = pools.make(plan, options, owner)
        running.callback(pool.close)
        audience = stack.enter_context(Audience(plan, parts, store, emit))
        signals = stack.enter_context(Signals())
        audience.begin()
        outbox = Outbox(store)
        outbox.resume()
        active = _Run(plan, audience, store, options, pool, owner, signals, outbox)
        active.run()
        running.close()
        results = audience.end(active.results, signals.exit_code)
        outbox.finish(until=lambda: bool(signals.exit_code))
    return results


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
        audience: Audience,
        store: Store,
        options: Options,
        pool: Pool,
        owner: str,
        signals: Signals,
        outbox: Outbox,
    ) -> None:
        self.results: dict[str, StepResult] = {}
        self._plan = plan
        self._steps = {step.name: step for step in plan}
        self._below: dict[str, list[str]] = {step.name: [] for step in plan}
        for step in plan:
            for above in step.needs:
                self._below[above].append(step.name)
        self._store, self._options, self._pool = store, options, pool
        self._past = Past(store)
        self._audience, self._signals, self._outbox = audience, signals, outbox
        self._owner = owner
        self._look = deque(self._steps)  # what may have become ready, in the plan's order
        self._ready: dict[str, Step] = {}
        self._failed = ""
        self._active: dict[Future[Done], _Active] = {}
        self._crashes: dict[str, int] = {}
        self._remakes: dict[str, int] = {}
        self._notes: dict[str, list[str]] = {}
        self._waits: dict[str, str] = {}
        self._cleaner = ThreadPoolExecutor(1)  # removes workdirs meanwhile: a disk takes its time
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
            self._cleaner.shutdown()
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
            log=self._audience.log(step.name),
            progress=workdir / "progress.jsonl",
            views=self._audience.views(step.name) if self._options.views else None,
            threads=self._options.threads,
            limit_s=step.stage.resources.timeout_s or self._options.timeout_s,
            replace=bool(step.forced),
            remote=None if self._store.remote is None else self._store.remote.offer(),
            recipes=step.recipes,
        )
        expected_s = None if step.expected is None else step.expected.seconds
        self._audience.tell(StageStarted(time.time(), step.name, step.reason, expected_s))
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
                self._audience.log(active.step.name).write_text(done.log, encoding="utf-8")
        if done.damaged:
            self._remake(active.step, done.damaged)
        elif done.error is not None:
            self._failed_with(errors.from_data(done.error), active.step, done)
        else:
            assert done.record is not None
            self._outbox.add(done.record)
            step = replace(active.step, outputs=done.record.outputs, record=done.record)
            self._steps[step.name] = step
            if not self._audience.log(step.name).exists():  # it lies on another machine
                self._bring_sides(step, done.record, far=False)
            self._finish(step, "ran", done.seconds, done.rss_mib)

    def _end(self, future: Future[Done], active: _Active) -> None:
        """Frees what a stage held."""
        del self._active[future]
        self._look.append(active.step.name)  # unless it ends now, it is to run again
        self._pool.place.leave(active.step.stage.resources)
        active.lock.release()
        self._cleaner.submit(disk.remove, active.job.workdir)

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
        import networkx as nx

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
        below = {node, *nx.descendants(self._plan.digraph(), node)}  # pyright: ignore[reportUnknownMemberType]  # stubs
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
        for log, views in self._audience.places(step.name):
            sides = [(record.log, log)]
            if self._options.views:
                sides.append((record.views, views))
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
        log = self._audience.log(step.name)
        record = step.record if state in ("hit", "ran") else None
        result = StepResult(
            name=step.name,
            state=state,
            seconds=round(seconds, 3),
            rss_mib=rss_mib,
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
        self._audience.share(step.name)
        self._audience.tell(
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
            return self._audience.locate(error, step.name)
        if isinstance(error, StageError):
            error.stage = step.name
            error.log = str(self._audience.log(step.name))
        return error

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
            self._audience.tell(
                StageProgress(
                    time.time(), active.step.name, last["done"], last["total"], last["note"]
                )
            )

    def _note(self, name: str, what: str, then: str) -> None:
        self._notes.setdefault(name, []).append(f"{what}; {then}")
        self._audience.tell(StageProgress(time.time(), name, 0, 0, f"{what}; {then}"))

    def _wait_note(self, step: Step, note: str) -> None:
        if self._waits.get(step.name) != note:
            self._waits[step.name] = note
            self._audience.tell(StageProgress(time.time(), step.name, 0, 0, note))


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
