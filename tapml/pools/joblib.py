"""Any backend that is registered with joblib, driven through joblib's own interface for backends.

That interface can start a call and tell how it ended, no more. So on such a backend
- a time limit is not enforced, which is said, and a stage has the threads that the backend gives;
- a process that dies may take its neighbours with it: each of them counts as a crash;
- stages of a backend that uses threads print to the terminal, not into their logs.
"""

from __future__ import annotations

import importlib
import os
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from .. import errors, guard
from ..admission import Machine
from ..errors import EnvironmentalError, WorkerError
from ..settings import Joblib
from ..worker import Done, Job, run_stage, tell


class JoblibPool:
    """A backend of joblib, and the guard that ends what it leaves on this machine."""

    apart = False

    def __init__(self, settings: Joblib, place: Machine) -> None:
        from multiprocessing import resource_tracker

        from joblib.externals.loky.backend import (  # pyright: ignore[reportMissingTypeStubs]
            resource_tracker as loky_tracker,
        )

        self.place = place
        self._busy: set[Future[Done]] = set()
        resource_tracker.ensure_running()  # before the mark: they outlive this pool
        cast(Any, loky_tracker).ensure_running()
        self._marked = os.environ.get(guard.VARIABLE)
        mark = f"{self._marked or ''}{uuid4().hex}."
        os.environ[guard.VARIABLE] = mark  # workers inherit it
        self._guard = guard.Guard(mark)
        self._broken = False
        try:
            self._backend: Any = _backend(settings, place.slots)
        except EnvironmentalError:
            self._end_guard()
            raise

    @property
    def free(self) -> int:
        return 0 if self._broken else self.place.slots - len(self._busy)

    def submit(self, job: Job) -> Future[Done]:
        from joblib.parallel import BatchedCalls  # pyright: ignore[reportMissingTypeStubs]

        if job.limit_s is not None:
            tell(job, f"its limit of {job.limit_s:g} s is not enforced on a backend of joblib")
        capture = not getattr(self._backend, "uses_threads", False)
        call = (run_stage, (replace(job, capture=capture),), dict[str, Any]())
        batch: Any = cast(Any, BatchedCalls)([call], self._backend.get_nested_backend())
        future: Future[Done] = Future()
        self._busy.add(future)

        def lost(error: BaseException) -> Done:
            self._broken = True
            told = WorkerError(message=f"the backend lost it: {type(error).__name__}: {error}")
            return Done(error=errors.to_data(told))

        def ended(out: object) -> None:
            try:
                (done,) = self._backend.retrieve_result_callback(out)
            except BaseException as error:  # the boundary to code of others
                done = lost(error)
            if future in self._busy:
                future.set_result(done)

        try:
            self._backend.submit(batch, ended)
        except Exception as error:  # the same
            future.set_result(lost(error))
        return future

    def watch(self) -> None: ...

    def collect(self, future: Future[Done]) -> Done:
        self._busy.remove(future)
        if self._broken and not self._busy:
            self._backend.abort_everything(ensure_ready=True)
            self._broken = False
        return future.result()

    def kill(self, future: Future[Done]) -> None:
        """It may run on: the backend can only end all. `close` does."""
        self._busy.remove(future)

    def close(self) -> None:
        self._backend.abort_everything(ensure_ready=False)
        self._end_guard()
        self.place.close()

    def _end_guard(self) -> None:
        if self._marked is None:
            del os.environ[guard.VARIABLE]
        else:
            os.environ[guard.VARIABLE] = self._marked
        self._guard.close()


def _backend(settings: Joblib, slots: int) -> Any:
    """The backend of that name, ready for calls. Raises: EnvironmentalError when there is none."""
    from joblib import Parallel  # pyright: ignore[reportMissingTypeStubs]

    jobs = max(2, slots)  # for one, joblib's own backends fall back to no backend at all
    try:
        if settings.register_with:
            module, _, function = settings.register_with.partition(":")
            getattr(importlib.import_module(module), function)()
        parallel: Any = cast(Any, Parallel)(n_jobs=jobs, backend=settings.backend)
        parallel.__enter__()  # configures the backend for many calls; we end it ourselves
    except (ImportError, AttributeError, ValueError) as error:
        raise EnvironmentalError(
            message=f"joblib has no backend {settings.backend!r}: {error}",
            hint="install the package that brings it, and name the function that registers it: "
            "`register_with: module:function`",
        ) from error
    backend = parallel._backend
    if not backend.supports_retrieve_callback:
        raise EnvironmentalError(
            message=f"joblib's backend {settings.backend!r} cannot say when a call has ended",
            hint="use a backend for joblib 1.4 or later",
        )
    return backend
