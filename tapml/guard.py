"""Ends every process of a run, whoever its parent is by now.

Workers carry a mark in their environment, and whatever they start inherits it: builders, runners,
compilers, grandchildren in sessions of their own. The guard is a process that waits for its run to
close a pipe, which the kernel does too when the run is killed, and then ends all that has the mark.
Standard library only: it starts in 20 ms as `python -I -S guard.py MARK`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

VARIABLE = "TAPML_MARK"


def marked(mark: str) -> list[int]:
    """Processes whose environment at their start had a mark that begins with `mark`; no zombies."""
    needle = f"{VARIABLE}={mark}".encode()
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as source:
                    entries = source.read().split(b"\0")
            except OSError:  # gone meanwhile, or another user's
                continue
            if any(entry.startswith(needle) for entry in entries):
                found.append(int(name))
    return found


def end(mark: str, *, limit_s: float = 5.0) -> None:
    """Kills what has the mark until nothing does: a process may start another meanwhile."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and (pids := marked(mark)):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.002)


class Guard:
    """The guard of what has the mark; `close` has it do its work, and so does our own death."""

    def __init__(self, mark: str) -> None:
        import subprocess  # not in the guard itself, which starts in a third of the time without

        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.read(0, 64):
        pass
    end(sys.argv[1])


if __name__ == "__main__":
    main()
