"""The command `tapml` in a process of its own, as a user types it, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from small_models import write_mlp

from tapml.store import Store


def limit_s() -> float:
    """Twice what the project promises; more where processes wait for a core, as many times as
    there are of them for each.
    """
    return 10.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@dataclass(frozen=True)
class Ended:
    """How a command ended. `events` are the journal of its run; none when it ran nothing."""

    code: int
    out: str
    err: str
    seconds: float
    events: tuple[dict[str, Any], ...]

    @property
    def states(self) -> dict[str, str]:
        finished = (one for one in self.events if one["event"] == "StageFinished")
        return {one["stage"]: one["state"] for one in finished}

    @property
    def notes(self) -> str:
        return "\n".join(note for one in self.events for note in one.get("notes", ()))

    def seconds_until_told(self, stage: str) -> float:
        """From the first start of a stage to the line that says how it ended."""
        times = {
            kind: [one["time"] for one in self.events if (one["event"], one.get("stage")) == kind]
            for kind in (("StageStarted", stage), ("StageFinished", stage))
        }
        return times["StageFinished", stage][-1] - times["StageStarted", stage][0]


def tapml(
    folder: Path, *arguments: str, store: Path, env: Mapping[str, str] | None = None
) -> Ended:
    """Runs `tapml …` in `folder`. It waits for no run outside the test, and tracks nothing."""
    before = set(_runs(store))
    started = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "tapml", *arguments],
        cwd=folder,
        env=environment(store) | dict(env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.time() - started
    (own,) = set(_runs(store)) - before or {None}
    events = journal(own) if own else ()
    return Ended(done.returncode, done.stdout, done.stderr, seconds, events)


def environment(store: Path) -> dict[str, str]:
    locks = store.parent / "locks"
    return {
        **os.environ,
        "TAPML_STORE": str(store),
        "TAPML_TRACK": "off",
        "TAPML_LOCKS": str(locks),
        "NO_COLOR": "1",
    }


def journal(folder: Path) -> tuple[dict[str, Any], ...]:
    path = folder / "events.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return tuple(json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n")


def finished(folder: Path) -> tuple[Path, Ended]:
    """A store that holds a good run of the little perceptron, and that run."""
    folder.mkdir(exist_ok=True)
    write_mlp(folder)
    done = tapml(folder, "run", "recipe.yaml", store=folder / "store")
    assert done.code == 0, done.err
    return folder / "store", done


def nothing_is_lost(store: Path, good: Ended) -> bool:
    """Whether every result of a good run would be a hit now."""
    kept = Store(store)
    results = [one for one in good.events if one["event"] == "StageFinished"]
    return all(kept.lookup(one["stage"], one["key"]) is not None for one in results)


def _runs(store: Path) -> list[Path]:
    return [path for path in (store / "runs").glob("*") if path.is_dir()]
