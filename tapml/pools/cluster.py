"""A worker of a dask cluster, as `tapml worker` starts it: slots on its machine, as a run has here.

A job is a coroutine on the worker's event loop, in its main thread: a worker process dies with the
thread that started it, and a coroutine can look after a job while it waits.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
import signal
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from distributed import Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from .. import disk, errors
from ..admission import Machine
from ..errors import EnvironmentalError, StageError, WorkerError
from ..settings import Security
from ..store import Store
from ..worker import Done, Job, tell
from .dask import APART, CPU, GPU, MEMORY, SLOTS, distributed, host_tag, security
from .slots import SlotPool

_TICK_S = 0.2
_CONNECT_S = 20.0
_LOG_BYTES = 64 << 10  # of a failed stage's log that go back, at most


@dataclass(frozen=True)
class Offer:
    """What a worker has for stages, and how it is reached.

    host:   the address that it binds
    store:  a store of its own, where the runs' is not to be seen
    """

    scheduler: str
    slots: int
    host: str = "127.0.0.1"
    memory_mib: float | None = None
    store: Path | None = None
    security: Security | None = None


_UNWANTED = Done(error=errors.to_data(WorkerError(message="dask had taken it back")))


def versions() -> dict[str, str]:
    """What has to be the same on both sides before a job can be understood."""
    return {
        "tapml": importlib.metadata.version("tapml"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


async def run_job(packed: bytes, key: str) -> Done:
    """Runs a job in a slot of the dask worker that this is called on."""
    try:
        job: Job = distributed().protocol.pickle.loads(packed)
    except Exception as error:  # importing the stage's module may raise anything
        told = StageError(message=f"its worker could not load it: {type(error).__name__}: {error}")
        return Done(error=errors.to_data(told))
    slots = get_worker().plugins[Slots.name]
    assert isinstance(slots, Slots)
    return await slots.run(job, key)


class Slots(WorkerPlugin):
    """The plug-in that makes a dask worker one for stages."""

    name = "tapml"

    def __init__(self, pool: SlotPool, store: Path | None) -> None:
        self._pool, self._store = pool, store
        self._worker: Any = None
        self._door = asyncio.Lock()  # in the order in which they came, so that nobody starves

    def setup(self, worker: Any) -> None:
        self._worker = worker

    async def run(self, job: Job, key: str) -> Done:
        if (error := self._refusal(job)) is not None:
            return Done(error=errors.to_data(error))
        if self._store is None:
            return await self._run(job, key)
        own = _moved(job, Store(self._store))
        try:
            done = await self._run(own, key)
            return replace(done, log="" if done.record else _end_of(own.log))
        finally:
            disk.remove(own.workdir)

    async def _run(self, job: Job, key: str) -> Done:
        need, place = job.stage.resources, self._pool.place
        async with self._door:
            told = ""
            while (lacking := place.lacks(need)) or not place.enter(need):
                if not self._is_wanted(key):
                    return _UNWANTED
                if not lacking and told != (told := place.obstacle):
                    tell(job, f"waits for {told}: the machine is in use")
                await asyncio.sleep(_TICK_S)
        future = self._pool.submit(replace(job, elsewhere=self._worker.address))
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
        try:
            while not future.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _TICK_S)
                self._pool.watch()
                if not self._is_wanted(key):
                    break
            if future.done():
                return self._pool.collect(future)
            self._pool.kill(future)
            return _UNWANTED
        except asyncio.CancelledError:  # the worker is about to end
            self._pool.kill(future)
            raise
        finally:
            place.leave(need)

    def _refusal(self, job: Job) -> errors.TapmlError | None:
        """Why a job cannot run here; an earlier worker that had it and is lost counts as a crash"""
        if self._store is not None:
            if job.remote is not None and job.remote.settings.mode == "read-write":
                return None
            return EnvironmentalError(
                message=f"worker {self._worker.address} has a store of its own, and the run no "
                "shared cache to reach it through",
                hint="name one that both can write: TAPML_REMOTE=URL",
            )
        if not job.workdir.parent.is_dir():
            return EnvironmentalError(
                message=f"worker {self._worker.address} does not see the store {job.root}",
                hint="share that folder with the worker's machine, or give the worker its own: "
                "tapml worker --store DIR",
            )
        try:
            job.workdir.mkdir(exist_ok=True)
            job.progress.open("x").close()
        except FileExistsError:
            return WorkerError(message="its dask worker was lost")
        return None

    def _is_wanted(self, key: str) -> bool:
        """Whether anybody still waits for it: not once the client cancelled it, or is gone."""
        task = self._worker.state.tasks.get(key)
        return task is not None and task.state == "executing"


def _moved(job: Job, store: Store) -> Job:
    """The job in a store of this machine, through the shared cache."""
    assert job.remote is not None
    store.prepare()
    workdir = store.temporary(job.stage.name)
    return replace(
        job,
        root=store.root,
        workdir=workdir,
        log=workdir / "stage.log",
        progress=workdir / "progress.jsonl",
        views=job.views and workdir / "views",
        remote=replace(job.remote, mark=store.root / "tmp" / f"remote-{uuid4().hex}"),
        apart=True,
    )


def _end_of(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return source.read().decode(errors="replace")


def serve(offer: Offer, say: Callable[[str], None]) -> int:
    """Works for a scheduler until a signal; the exit code.

    Raises: EnvironmentalError when the scheduler is not there, or goes away.
    """
    return asyncio.run(_serve(offer, say))


async def _serve(offer: Offer, say: Callable[[str], None]) -> int:
    place = Machine(offer.slots, f"a dask worker of {offer.scheduler}", offer.memory_mib)
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    resources = {
        SLOTS: place.slots,
        CPU: place.whole.cpu,
        GPU: place.whole.gpu,
        MEMORY: place.whole.memory_mib,
        host_tag(): place.slots,
    } | ({APART: 1} if offer.store else {})
    with (
        tempfile.TemporaryDirectory(prefix="tapml-worker-") as folder,
        closing(SlotPool(place)) as pool,
    ):
        try:
            worker = await Worker(
                offer.scheduler,
                nthreads=place.slots,
                resources=resources,
                memory_limit=0,
                host=offer.host,
                security=security(offer.security, "worker"),
                plugins=(Slots(pool, offer.store),),
                dashboard=False,
                death_timeout=_CONNECT_S,
                local_directory=folder,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise EnvironmentalError(
                message=f"no dask scheduler answers at {offer.scheduler}: {error}",
                hint="start one: dask scheduler --host 127.0.0.1",
            ) from error
        say(
            f"worker {worker.address} of {offer.scheduler}: {place.slots} slots, "
            f"{place.whole.cpu} cores, {place.whole.gpu} GPUs, "
            f"{place.whole.memory_mib:.0f} MiB; "
            f"{f'store {offer.store}' if offer.store else 'the store of each run'}; Ctrl-C ends it"
        )
        stopped = asyncio.create_task(signals.get())
        gone = asyncio.create_task(worker.finished())
        await asyncio.wait([stopped, gone], return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            raise EnvironmentalError(
                message=f"the dask scheduler {offer.scheduler} went away",
                hint="start it again, then this worker",
            )
        await worker.close()
        await gone
        return 128 + stopped.result()
