"""Processes that tests look for, and waiting for what they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def alive(*needles: str) -> list[str]:
    """Processes, zombies left out, whose command line or environment has one of the texts."""
    found: list[str] = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
            text += b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if any(needle.encode() in text for needle in needles):
            found.append(f"{pid} {text[:200]!r}")
    return found


def everything_ended(mark: Path) -> bool:
    """Whether nothing is left of the runs of this test, which has locks of its own."""
    return not alive(str(mark), f"TAPML_LOCKS={os.environ['TAPML_LOCKS']}")


def wait_for(condition: Callable[[], T], limit_s: float = 30.0) -> T:
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found
