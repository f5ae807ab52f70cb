"""What a plan will take on this machine, from what its stages took here before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import host
from .plan import Plan

_ROOM = 0.9  # share of what is free that a run may be expected to use before there is a warning


@dataclass(frozen=True)
class Estimate:
    """Seconds, MiB on the disk, and MiB of memory at once.

    unknown: steps that this machine has never run, which the figures leave out but for what can be
             counted of them
    counted: what that is, in words
    """

    seconds: float
    disk_mib: float
    memory_mib: float
    unknown: tuple[str, ...]
    counted: tuple[str, ...] = ()


def estimate(plan: Plan, slots: int) -> Estimate:
    """What the stages that will or may run take, `slots` of them at a time."""
    todo = [step for step in plan if step.state != "hit"]
    known = {step.name: step.expected for step in todo if step.expected is not None}
    seconds = {step.name: step.seconds for step in todo if step.seconds is not None}
    exclusive = {step.name for step in todo if step.stage.resources.exclusive}
    alone_s = sum(value for name, value in seconds.items() if name in exclusive)
    spread_s = sum(value for name, value in seconds.items() if name not in exclusive) / slots
    beside = sorted((one.rss_mib for name, one in known.items() if name not in exclusive))
    counted = [(step.name, step.counted) for step in todo if step.counted is not None]
    return Estimate(
        seconds=max(_longest(plan, seconds), alone_s + spread_s),
        disk_mib=sum(one.disk_mib for one in known.values()),
        memory_mib=max(
            sum(beside[-slots:]),
            max((one.rss_mib for name, one in known.items() if name in exclusive), default=0.0),
        ),
        unknown=tuple(step.name for step in todo if step.name not in known),
        counted=tuple(f"{name}: {one}" if len(counted) > 1 else str(one) for name, one in counted),
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


def _longest(plan: Plan, seconds: Mapping[str, float]) -> float:
    """Seconds of the longest chain of stages that need one another."""
    ends: dict[str, float] = {}
    for step in plan:
        own = seconds.get(step.name, 0.0)
        ends[step.name] = own + max((ends.get(name, 0.0) for name in step.needs), default=0.0)
    return max(ends.values(), default=0.0)
