"""Whether the machine did anything else while something was measured, by the kernel's own count."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_IDLE = (3, 4)  # idle, iowait: fields of /proc/stat
_GUEST = 8  # fields from here on are counted in others
TOLERATED = 0.15  # cores: timers and the like
_TICKS = 2  # of each core: the kernel counts in whole ones, here and there


@dataclass
class Meter:
    """Cores that others kept busy since it was made. `own`: processes that do not count."""

    own: Sequence[int]
    _since: float = field(default_factory=time.monotonic)
    _busy: float = 0.0
    _used: float = 0.0

    def __post_init__(self) -> None:
        self._busy, self._used = _busy_s(), self._own_s()

    def elsewhere(self) -> float:
        """Cores, on average; what a hypervisor took away counts too."""
        seconds, cores = max(time.monotonic() - self._since, 1e-3), os.cpu_count() or 1
        others = (_busy_s() - self._busy) - (self._own_s() - self._used)
        surely = max(others - _TICKS * cores / os.sysconf("SC_CLK_TCK"), 0.0)
        return min(surely / seconds, float(cores))

    def _own_s(self) -> float:
        return sum(map(_process_s, (os.getpid(), *self.own)))


def _busy_s() -> float:
    """CPU seconds of the machine since it started, stolen ones included."""
    first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    fields = [int(one) for one in first.split()[1 : _GUEST + 1]]
    return sum(v for i, v in enumerate(fields) if i not in _IDLE) / os.sysconf("SC_CLK_TCK")


def _process_s(pid: int) -> float:
    """CPU seconds of a process and its threads; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()  # its name may hold anything
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
