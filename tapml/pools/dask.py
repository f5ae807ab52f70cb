"""A dask cluster as a pool: each job goes to a worker that `tapml worker` started.

Which worker has room is the scheduler's to say: a worker offers slots, cores, GPUs and memory as
dask's abstract resources, and a job asks for its own. Being alone, the time limit and the end of a
job's processes are seen to on the worker (`tapml.pools.cluster`).
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from uuid import uuid4

from .. import admission, errors, host, keys
from ..admission import Room
from ..errors import EnvironmentalError, WorkerError
from ..plan import Step
from ..settings import Dask, Security
from ..stage import Resources, Stage
from ..worker import Done, Job
from . import LostError

SLOTS, CPU, GPU, MEMORY = "tapml-slots", "tapml-cpu", "tapml-gpu", "tapml-memory-mib"
APART = "tapml-apart"  # a worker with a store of its own
_CONNECT_S = 10.0  # longest to wait for the scheduler
_PATIENCE_S = 20.0  # longest that there may be no worker
_EVERY_S = 1.0  # between two looks at the workers


class DaskPool:
    """The workers of a scheduler. `place` is the cluster, shared out by the scheduler."""

    def __init__(self, settings: Dask, jobs: int | None) -> None:
        self._address, self._jobs = settings.address, jobs
        self._busy: dict[Future[Done], Any] = {}
        self._client = _connect(settings)
        self._looked = self._seen = time.monotonic()
        self._workers: dict[str, Mapping[str, float]] = {}
        try:
            while not self._workers:
                self._look()
            self._refuse_others()
        except EnvironmentalError:
            self.close()
            raise
        self.place = Cluster(list(self._workers.values()))

    @property
    def free(self) -> int:
        self._look()
        slots = int(sum(one[SLOTS] for one in self._workers.values()))
        return max(0, min(slots, self._jobs or slots) - len(self._busy))

    @property
    def apart(self) -> bool:
        return any(APART in one for one in self._workers.values())

    def submit(self, job: Job) -> Future[Done]:
        from .cluster import run_job

        key = f"{job.step}-{uuid4().hex}"
        future: Future[Done] = Future()

        def ended(inner: Any) -> None:  # in a thread of the client
            done = _account(inner)
            if done is not None and future in self._busy:
                future.set_result(done)

        inner = self._client.submit(
            run_job, _bytes(job), key, key=key, pure=False, resources=_needs(job.stage)
        )
        self._busy[future] = inner
        inner.add_done_callback(ended)
        return future

    def watch(self) -> None:
        self._look()

    def collect(self, future: Future[Done]) -> Done:
        del self._busy[future]
        return future.result()

    def kill(self, future: Future[Done]) -> None:
        """Its worker notices that it is not wanted any more, and ends its slot."""
        self._client.cancel([self._busy.pop(future)], force=True)

    def close(self) -> None:
        self._client.close(timeout=_EVERY_S)

    def _look(self) -> None:
        """Which workers there are now. Raises: LostError when there is no way to go on."""
        if self._client.status != "running":
            raise self._lost("the connection to the dask scheduler was lost")
        if self._workers and time.monotonic() - self._looked < _EVERY_S:
            return
        try:
            found = self._client.scheduler_info()["workers"]
        except OSError as error:
            raise self._lost(f"the dask scheduler does not answer: {error}") from error
        self._looked = time.monotonic()
        self._workers = {
            address: facts["resources"]
            for address, facts in found.items()
            if SLOTS in facts["resources"]
        }
        if self._workers:
            self._seen = self._looked
        elif self._looked - self._seen > _PATIENCE_S:
            plain = f" ({len(found)} others)" if found else ""
            raise self._lost(f"the dask scheduler has no worker that runs stages{plain}")
        else:
            time.sleep(0.2)

    def _lost(self, message: str) -> LostError:
        return LostError(
            message=f"{message} ({self._address})",
            hint=f"start the scheduler, and a worker on each machine: tapml worker {self._address}",
        )

    def _refuse_others(self) -> None:
        """Raises: EnvironmentalError when a worker has another tapml or Python than we."""
        from .cluster import versions

        ours = versions()
        for address, theirs in self._client.run(versions, workers=list(self._workers)).items():
            for name, version in ours.items():
                if theirs[name] != version:
                    raise EnvironmentalError(
                        message=f"worker {address} has {name} {theirs[name]}, this side {version}",
                        hint="install the same version on both",
                    )


class Cluster:
    """The workers' machines: dask shares them out, so that there is always room to ask for some."""

    obstacle = ""

    def __init__(self, workers: list[Mapping[str, float]]) -> None:
        self._workers = workers

    def check(self, steps: Iterable[Step]) -> None:
        rooms = [Room(int(one[CPU]), int(one[GPU]), one[MEMORY]) for one in self._workers]
        for step in steps:
            admission.check(step, rooms, "each worker has")
            if step.stage.measures and not any(host_tag() in one for one in self._workers):
                raise EnvironmentalError(
                    message=f"stage {step.name} times something for this machine's CPU and threads "
                    f"({host.fingerprint()['cpu']}), and no worker has the same",
                    hint="start the run on a machine that is like the workers",
                )

    def lacks(self, need: Resources) -> str:
        return ""

    def enter(self, need: Resources) -> bool:
        return True

    def leave(self, need: Resources) -> None: ...


def host_tag() -> str:
    """The resource of workers on machines whose timings are as good as this one's."""
    return f"tapml-host-{keys.digest(host.fingerprint())[:12]}"


def distributed() -> Any:
    """The package. Raises: EnvironmentalError when it is not installed."""
    try:
        import distributed
    except ImportError as error:
        raise EnvironmentalError(
            message=f"dask is not installed: {error}", hint="pip install 'tapml[dask]'"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is told by us
    return distributed


def security(settings: Security | None, role: str) -> Any:
    """TLS as dask wants it, for the role `client` or `worker`."""
    if settings is None:
        return None
    return distributed().Security(
        require_encryption=True,
        tls_ca_file=settings.ca_file,
        **{f"tls_{role}_cert": settings.cert, f"tls_{role}_key": settings.key},
    )


def _connect(settings: Dask) -> Any:
    # A client that never connected closes itself when it is collected; inside another's start,
    # which holds the same lock, that never ends. So such ones go before, and none goes meanwhile.
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        return distributed().Client(
            settings.address,
            security=security(settings.security, "client"),
            timeout=_CONNECT_S,
            set_as_default=False,
            name="tapml",
        )
    except (OSError, ValueError, TypeError) as error:
        raise EnvironmentalError(
            message=f"no dask scheduler answers at {settings.address}: {error}",
            hint="start one: dask scheduler --host 127.0.0.1",
        ) from error
    finally:
        if collects:
            gc.enable()


def _needs(stage: Stage) -> Mapping[str, float]:
    need = stage.resources
    cores = 0 if need.exclusive else need.cpu  # alone it has them all
    asked = {SLOTS: 1, CPU: cores, GPU: need.gpu, MEMORY: need.memory_mib}
    return asked | ({host_tag(): 1} if stage.measures else {})


def _account(inner: Any) -> Done | None:
    """How a job ended, in our terms; None when the connection ended instead."""
    if inner.status not in ("finished", "error"):
        return None
    try:
        return inner.result()
    except BaseException as caught:  # dask's own, as the result cannot be had: its boundary
        error: Any = caught
    if isinstance(error, distributed().KilledWorker):
        message = f"its dask worker {error.last_worker.address} was lost"
    else:
        message = f"its dask worker failed: {type(error).__name__}: {error}"
    return Done(error=errors.to_data(WorkerError(message=message)))


def _bytes(job: Job) -> bytes:
    """A job for the worker to unpack: one that dask cannot read costs it the worker."""
    return distributed().protocol.pickle.dumps(job)  # between two ends that trust each other
