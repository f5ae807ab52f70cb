"""Where the stages of a run run: worker processes here, a backend of joblib, a dask cluster.

A pool runs jobs and says how each ended; of the graph, the store's keys and the run it knows
nothing.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from .. import admission
from ..admission import Machine, Place
from ..errors import EnvironmentalError
from ..plan import Plan
from ..results import Options
from ..settings import Dask, Joblib, Local
from ..worker import Done, Job


class LostError(EnvironmentalError):
    """The pool itself is gone, and with it whatever it ran."""


class Pool(Protocol):
    """Runs jobs; `free` more may be submitted now. All is called from one thread.

    apart: some run on a store of their own, and have inputs from the shared cache
    """

    @property
    def apart(self) -> bool: ...

    @property
    def free(self) -> int: ...

    @property
    def place(self) -> Place: ...

    def submit(self, job: Job) -> Future[Done]:
        """Starts a job. What ends it, its process's death or its time limit, is told in `Done`."""
        ...

    def watch(self) -> None:
        """Looks after what runs; called several times a second. Raises: LostError."""
        ...

    def collect(self, future: Future[Done]) -> Done:
        """How a finished job ended; frees its slot."""
        ...

    def kill(self, future: Future[Done]) -> None:
        """Ends a running job, with all that it started, and frees its slot."""
        ...

    def close(self) -> None:
        """Ends every process."""
        ...


def make(plan: Plan, options: Options, owner: str) -> Pool:
    """The pool for what a plan has to run, with room for each of its stages.

    Raises: EnvironmentalError when a stage asks for more than there is, or the cluster is not
            there.
    """
    steps = [step for step in plan if step.state != "hit"]
    pool = _make(options, admission.slots(plan, options.jobs) if steps else 0, owner)
    try:
        pool.place.check(steps)
    except EnvironmentalError:
        pool.close()
        raise
    return pool


def _make(options: Options, wanted: int, owner: str) -> Pool:
    """In: wanted: slots, 0 when nothing is to run."""
    if options.jobs == 0 or not wanted:
        from .inline import InlinePool

        return InlinePool(Machine(1, owner))
    match options.executor:
        case Local():
            from .slots import SlotPool

            return SlotPool(Machine(wanted, owner))
        case Joblib() as settings:
            from .joblib import JoblibPool

            return JoblibPool(settings, Machine(wanted, owner))
        case Dask() as settings:
            from .dask import DaskPool

            return DaskPool(settings, options.jobs)
