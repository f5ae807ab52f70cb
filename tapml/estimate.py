"""What a plan will take on this machine, from what its stages took here before."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from . import host
from .explain import Expected
from .plan import Plan

_ROOM = 0.9  # share of what is free that a run may be expected to use before there is a warning


@dataclass(frozen=True)
class Estimate:
    """Seconds, MiB on the disk, and MiB of memory at once.

    unknown: steps that this machine has never run, which the figures leave out
    """

    seconds: float
    disk_mib: float
    memory_mib: float
    unknown: tuple[str, ...]


def estimate(plan: Plan, slots: int) -> Estimate:
    """What the stages that will or may run take, `slots` of them at a time."""
    todo = [step for step in plan if step.state != "hit"]
    known = {step.name: step.expected for step in todo if step.expected is not None}
    alone = [step.name for step in todo if step.stage.resources.exclusive and step.name in known]
    rest = [name for name in known if name not in alone]
    spread = sum(known[name].seconds for name in rest) / slots
    alone_s = sum(known[name].seconds for name in alone)
    return Estimate(
        seconds=max(_longest(plan, known), alone_s + spread),
        disk_mib=sum(one.disk_mib for one in known.values()),
        memory_mib=max(
            sum(sorted((known[name].rss_mib for name in rest), reverse=True)[:slots]),
            max((known[name].rss_mib for name in alone), default=0.0),
        ),
        unknown=tuple(step.name for step in todo if step.name not in known),
    )


def warnings(found: Estimate, store: Path) -> list[str]:
    """What of an estimate does not fit this machine, each with what to do."""
    told: list[str] = []
    there = next(folder for folder in (store, *store.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 2**20
    if found.disk_mib > _ROOM * free:
        told.append(
            f"needs about {found.disk_mib:.0f} MiB of disk; {there} has {free:.0f} MiB free: "
            "free some there (`tapml cache gc`), or choose another store: --store DIR"
        )
    if found.memory_mib > _ROOM * (memory := host.memory_mib()):
        told.append(
            f"needs about {found.memory_mib:.0f} MiB of memory at once; {memory:.0f} MiB are free: "
            "fewer stages at a time need less: --jobs 1"
        )
    return told


def _longest(plan: Plan, known: dict[str, Expected]) -> float:
    """Seconds of the longest chain of stages that need one another."""
    ends: dict[str, float] = {}
    for step in plan:
        own = known[step.name].seconds if step.name in known else 0.0
        ends[step.name] = own + max((ends.get(name, 0.0) for name in step.needs), default=0.0)
    return max(ends.values(), default=0.0)
