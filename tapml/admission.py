"""Which stages may run beside which: cores, GPUs and memory of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from . import host
from .errors import EnvironmentalError
from .plan import Plan
from .results import Options
from .stage import Resources


@dataclass
class Room:
    """What is left of this machine for stages. With one slot more than cores, cores do not bind."""

    cpu: int
    gpu: int
    memory_mib: float

    @classmethod
    def of(cls, slots: int) -> Self:
        return cls(max(host.threads(), slots), host.gpus(), host.memory_mib())

    def has(self, need: Resources) -> bool:
        return need.cpu <= self.cpu and need.gpu <= self.gpu and need.memory_mib <= self.memory_mib

    def take(self, need: Resources) -> None:
        self.cpu -= need.cpu
        self.gpu -= need.gpu
        self.memory_mib -= need.memory_mib

    def give(self, need: Resources) -> None:
        self.cpu += need.cpu
        self.gpu += need.gpu
        self.memory_mib += need.memory_mib


def slots(plan: Plan, jobs: int | None) -> int:
    """Worker processes: as asked for, else one when a stage has to run alone, else one per core."""
    if jobs is not None:
        return max(1, jobs)
    alone = any(step.stage.resources.exclusive for step in plan if step.state != "hit")
    return 1 if alone else host.threads()


def check(plan: Plan, options: Options) -> None:
    """Raises: EnvironmentalError when a stage that is to run asks for more than there is at all."""
    if all(step.state == "hit" for step in plan):
        return
    whole = Room.of(options.jobs or 1)
    for step in plan:
        if step.state == "hit" or whole.has(need := step.stage.resources):
            continue
        lacks = [
            f"{wanted} {what}, this machine has {there:g}"
            for wanted, there, what in (
                (need.cpu, whole.cpu, "cores"),
                (need.gpu, whole.gpu, "GPUs"),
                (need.memory_mib, whole.memory_mib, "MiB of free memory"),
            )
            if wanted > there
        ]
        raise EnvironmentalError(
            message=f"stage {step.name} needs {'; '.join(lacks)}",
            hint="run it on a larger machine, or stop before it: --to STAGE",
        )
