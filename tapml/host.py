"""This machine: what a timing depends on, and how much of it a run may use."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal


@cache
def fingerprint() -> dict[str, str | int]:
    """What a cached timing is good for: CPU model, physical cores, usable threads. No names."""
    model, cores = _cpuinfo()
    return {"cpu": model, "cores": cores, "threads": threads()}


@cache
def machine() -> str:
    """A short opaque id of this very machine, to tell its timings from those of an equal one."""
    try:
        identity = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        identity = ""
    return hashlib.sha256(f"tapml.machine\0{identity or platform.node()}".encode()).hexdigest()[:12]


def threads() -> int:
    """Hardware threads that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """NVIDIA GPUs that the kernel lists."""
    return sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))


def memory_mib(which: Literal["MemTotal", "MemAvailable"] = "MemAvailable") -> float:
    """Memory that there is, or that can be had without swapping, within the limit of this process's
    control group; infinite when the kernel does not say.
    """
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return math.inf
    lines = (line.split() for line in text.splitlines())
    found = next((int(one[1]) / 1024 for one in lines if one[0] == f"{which}:"), math.inf)
    limit, used = _group_mib()
    return min(found, limit - used if which == "MemAvailable" else limit)


def oom_kills() -> int:
    """Processes that the kernel has ended for want of memory since it started; 0 if unknown."""
    try:
        rows = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("oom_kill ")), 0)


def _group_mib() -> tuple[float, float]:
    """Limit and use of memory of the control group (version 2) that a container runs in."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))  # "max": no limit
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.inf, 0.0
    return limit / 2**20, used / 2**20


def _cpuinfo() -> tuple[str, int]:
    """CPU model and number of physical cores; falls back on what Python knows."""
    model, package, cores = "", "", set[tuple[str, str]]()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        match name:
            case "model name":
                model = value
            case "physical id":
                package = value
            case "core id":
                cores.add((package, value))
            case _:
                pass
    return model or platform.processor() or platform.machine(), len(cores) or threads()
