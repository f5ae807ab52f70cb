"""Which stages may run beside which on this machine: cores, GPUs, memory, and being alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from . import host, locks
from .errors import EnvironmentalError
from .plan import Plan, Step
from .stage import Resources


class Place(Protocol):
    """Where stages run, as it is shared out between them."""

    @property
    def obstacle(self) -> str:
        """Who stood in the way of the last `enter`, in words."""
        ...

    def check(self, steps: Iterable[Step]) -> None:
        """Raises: EnvironmentalError when a step lacks something here, or asks for more than there
        is at all.
        """
        ...

    def lacks(self, need: Resources) -> str:
        """What has to become free before a stage can start, in words; nothing when it can."""
        ...

    def enter(self, need: Resources) -> bool:
        """Takes what a stage needs and does not lack, unless another run stands in the way."""
        ...

    def leave(self, need: Resources) -> None:
        """Gives it back."""
        ...


@dataclass
class Room:
    """Cores, GPUs and memory: of a machine, or what is left of them."""

    cpu: int
    gpu: int
    memory_mib: float

    def lacks(self, need: Resources) -> list[str]:
        """What is not there of what a stage needs: how much, of what, how much there is."""
        return [
            f"{wanted} {what} ({there:.0f} there)"
            for wanted, there, what in (
                (0 if need.exclusive else need.cpu, self.cpu, "cores"),  # alone it has them all
                (need.gpu, self.gpu, "GPUs"),
                (need.memory_mib, self.memory_mib, "MiB of memory"),
            )
            if wanted > there
        ]

    def add(self, need: Resources, sign: int) -> None:
        self.cpu += sign * need.cpu
        self.gpu += sign * need.gpu
        self.memory_mib += sign * need.memory_mib


class Machine:
    """This machine: what it has, less what is promised to stages that run.

    With more slots than cores, cores do not bind. Free memory is read again whenever a stage asks
    for some: other programs use it too.
    """

    def __init__(self, slots: int, owner: str, memory_mib: float | None = None) -> None:
        self.slots = slots
        self.whole = Room(
            max(host.threads(), slots), host.gpus(), memory_mib or host.memory_mib("MemTotal")
        )
        self._left = Room(self.whole.cpu, self.whole.gpu, self.whole.memory_mib)
        self._running: list[Resources] = []
        self._lock = locks.MachineLock(locks.machine_folder(), owner)

    @property
    def obstacle(self) -> str:
        return self._lock.holder()

    def threads(self, need: Resources) -> int:
        """Of a stage's numerical libraries: all when it is alone, else its share of the cores."""
        return host.threads() if need.exclusive else max(1, host.threads() // self.slots)

    def check(self, steps: Iterable[Step]) -> None:
        for step in steps:
            step.stage.check()
            check(step, [self.whole], "this machine has")

    def lacks(self, need: Resources) -> str:
        if any(one.exclusive for one in self._running) or (need.exclusive and self._running):
            return "the end of what runs"
        left = self._left
        if need.memory_mib:
            now = min(self.whole.memory_mib, host.memory_mib("MemAvailable"))
            if not self._running:
                left.memory_mib = now
            # what is promised counts in full, though it may not be used yet
            left = Room(left.cpu, left.gpu, min(left.memory_mib, now))
        return " and ".join(left.lacks(need))

    def enter(self, need: Resources) -> bool:
        if not self._lock.acquire(alone=need.exclusive):
            return False
        self._running.append(need)
        self._left.add(need, -1)
        return True

    def leave(self, need: Resources) -> None:
        self._running.remove(need)
        self._left.add(need, 1)
        if not self._running:
            self._lock.release()

    def close(self) -> None:
        """Lets others have the machine, also when this side only waited for it."""
        self._lock.release()


def check(step: Step, rooms: Iterable[Room], there: str) -> None:
    """Raises: EnvironmentalError when none of the rooms has what a step asks for."""
    need = step.stage.resources
    lacking = [room.lacks(need) for room in rooms]
    if lacking and all(lacking):
        raise EnvironmentalError(
            message=f"stage {step.name} needs {' and '.join(min(lacking, key=len))}: {there} less",
            hint="run it on a larger machine, or stop before it: --to STAGE",
        )


def slots(plan: Plan, jobs: int | None) -> int:
    """Worker processes: as asked for, else one when a stage has to run alone, else one per core."""
    if jobs is not None:
        return max(1, jobs)
    alone = any(step.stage.resources.exclusive for step in plan if step.state != "hit")
    return 1 if alone else host.threads()
