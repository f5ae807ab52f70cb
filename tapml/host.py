"""This machine: what a timing depends on, and how much of it a run may use."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from functools import cache
from pathlib import Path


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


def memory_mib() -> float:
    """Memory that can be had without swapping; infinite when the kernel does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return math.inf
    lines = (line.split() for line in text.splitlines())
    return next((int(one[1]) / 1024 for one in lines if one[0] == "MemAvailable:"), math.inf)


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
