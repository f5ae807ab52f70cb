"""tapml against pytask, DVC, Snakemake and redun: graphs of 300 trivial steps; a plan of 10 000.

    python benchmarks/engine/run.py [--cache DIR] [--work DIR] [--quick] [--again]

Commands alternate (ours, peer, peer, …, ours again) and are timed whole, from outside. Every result
is compared with what the graph has to give. Prints tables, writes benchmarks/results/engine.json.
A run that was stopped goes on where it was: pairs of graph and slots that are there are kept while
commit and versions are the same.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import tables
from graphs import SIZE, Shape, chain, shapes
from tools import TOOLS, Tapml, Tool

from tapml import host

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "engine.json"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tapml-benchmarks"
ROUNDS = 5  # of warm and one leaf
COLD_S = 8.0  # an engine that takes longer for a cold run does it once
MARK = "TAPML_BENCHMARK"
LIMIT_S = 240.0  # of one command
Sample = dict[str, Any]


class Project:
    """A folder in which one engine works on one graph."""

    def __init__(self, tool: Tool, shape: Shape, slots: int, home: Path, folder: Path) -> None:
        self.tool, self.shape, self.slots, self.home, self.folder = tool, shape, slots, home, folder
        self.salts: dict[str, int] = {}

    def empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.salts = {name: number for number, name in enumerate(self.shape.needs)}
        self.tool.begin(self.home, self.folder)
        self.tool.write(self.folder, self.shape, self.salts)

    def change(self, step: str) -> None:
        self.salts[step] += 1000
        self.tool.write(self.folder, self.shape, self.salts)

    def run(self, scenario: str) -> Sample:
        """Times one command. Raises: SystemExit when it fails or gives another result."""
        command = self.tool.command(self.home, self.slots)
        env = {**os.environ, **self.tool.environment(self.folder)}
        found = timed(command, self.folder, env)
        if wrong := self.tool.given(self.folder, self.shape, self.salts):
            raise SystemExit(
                f"{' '.join(command)} in {self.folder}: {wrong} is wrong after {scenario}"
            )
        return {"tool": self.tool.name, "scenario": scenario, **found}


def timed(command: list[str], folder: Path, env: Mapping[str, str]) -> Sample:
    """Seconds, CPU seconds and peak memory of a command, its children included."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    with (folder / "log.txt").open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, MARK: mark},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        told = (folder / "log.txt").read_text(errors="replace")[-2000:]
        raise SystemExit(
            f"{' '.join(command)} in {folder} ended with {process.returncode}:\n{told}"
        )
    _await_detached(mark)
    return {
        "s": round(seconds, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "rss_mib": round(usage.ru_maxrss / 1024, 1),
    }


def _await_detached(mark: str) -> None:
    """Waits for what the command left running (our tracking): it must not slow the next one."""
    needle = f"{MARK}={mark}".encode()
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if needle in path.read_bytes():
                    break
            except OSError:
                continue
        else:
            return
        time.sleep(0.1)
    raise SystemExit("what a command left running does not end")


def samples(projects: list[Project], rounds: int) -> Iterator[Sample]:
    """Cold, warm, one leaf changed, the root changed; the engines take turns."""
    slow: set[str] = set()
    for number in range(rounds):
        for project in projects:
            name = project.tool.name
            if number == 0 or (number == 1 and name not in slow):
                project.empty()
                found = project.run("cold")
                if found["s"] > COLD_S:
                    slow.add(name)
                yield found
        for project in projects:
            yield project.run("warm")
        for project in projects:
            project.change(project.shape.leaf)
            yield project.run("leaf")
        for project in projects:
            if number == 0 or (number == 1 and project.tool.name not in slow):
                project.change(project.shape.root)
                yield project.run("root")


def blocks() -> Iterator[tuple[Shape, int, list[Tool], int]]:
    """Graph, slots, engines and rounds, of what is measured."""
    one, two = [t for t in TOOLS if 1 in t.slots], [t for t in TOOLS if 2 in t.slots]
    for shape in shapes().values():
        tracked = shape.name == "diamond"
        yield shape, 1, [t for t in one if tracked or t.name != "tapml, tracked"], ROUNDS
    plain = [t for t in two if t.name not in ("tapml, tracked", "tapml, fsync each")]
    for name in ("wide", "diamond"):
        yield shapes()[name], 2, plain, 2


def large_plan(work: Path, steps: int = 10_000) -> list[Sample]:
    """`tapml plan` of a chain of many steps, with an empty store."""
    tool, found = Tapml("off"), []
    project = Project(tool, chain(steps), 1, tool.install(work), work / "large")
    project.empty()
    rows = (
        f"    {name}: {{stage: fold, needs: [{', '.join(above)}]}}"
        for name, above in project.shape.needs.items()
    )
    (project.folder / "workflows.yaml").write_text(
        "workflows:\n  chain:\n" + "\n".join(rows) + "\n"
    )
    command = [str(project.home / "bin" / "tapml"), "plan", "bench.yaml"]
    env = {**os.environ, **tool.environment(project.folder)}
    for _ in range(3):
        found.append(
            {"tool": tool.name, "scenario": f"plan {steps}", **timed(command, project.folder, env)}
        )
    return found


def summary(shape: str, slots: int, found: list[Sample]) -> Iterator[dict[str, Any]]:
    """One cell for each engine and scenario: medians, with the lowest and the highest."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for one in found:
        groups.setdefault((one["tool"], one["scenario"]), []).append(one)
    for (tool, scenario), rows in groups.items():
        seconds = [row["s"] for row in rows]
        yield {
            "shape": shape,
            "slots": slots,
            "tool": tool,
            "scenario": scenario,
            "s": statistics.median(seconds),
            "low_high_s": [min(seconds), max(seconds)],
            "cpu_s": statistics.median(row["cpu_s"] for row in rows),
            "rss_mib": max(row["rss_mib"] for row in rows),
            "samples_s": seconds,
        }


def facts(homes: Mapping[str, Path]) -> dict[str, Any]:
    """What the figures were taken with."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "-C", str(ROOT), "status", "--porcelain", "tapml"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {
        "commit": commit + (" +dirty" if changed else ""),
        "machine": {**host.fingerprint(), "system": f"{platform.system()} {platform.release()}"},
        "python": platform.python_version(),
        "versions": {tool.name: list(tool.packages) for tool in TOOLS if tool.packages},
        "bodies": {tool.name: tool.body for tool in TOOLS},
        "commands": {
            f"{tool.name}, {slots}": [
                Path(part).name if part.startswith(str(homes[tool.name])) else part
                for part in tool.command(homes[tool.name], slots)
            ]
            for tool in TOOLS
            for slots in tool.slots
        },
        "output_bytes": SIZE,
    }


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), default=CACHE, help="Where peers are installed."
)
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where projects are made. [default: CACHE/work]"
)
@click.option("--only", multiple=True, help="Engines to run; writes no JSON.")
@click.option("--quick", is_flag=True, help="One round; writes no JSON.")
@click.option("--again", is_flag=True, help="Keep nothing of a run that was stopped.")
def main(cache: Path, work: Path | None, only: tuple[str, ...], quick: bool, again: bool) -> None:
    cache, work = cache.resolve(), (work or cache / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    homes = {tool.name: tool.install(cache) for tool in TOOLS if not only or tool.name in only}
    kept = work / "partial.json"
    with_what = facts(homes) if not only else {}
    parts: dict[str, list[Sample]] = {}
    if kept.is_file() and not (again or quick or only):
        before = json.loads(kept.read_text())
        if before["facts"] == with_what:
            parts = before["parts"]
    for shape, slots, tools, rounds in blocks():
        name = f"{shape.name} {slots}"
        if name in parts:
            continue
        projects = [
            Project(tool, shape, slots, homes[tool.name], work / f"{number}")
            for number, tool in enumerate(tools)
            if tool.name in homes
        ]
        parts[name] = []
        for sample in samples(projects, 1 if quick else rounds):
            parts[name].append(sample)
            print(name, sample, file=sys.stderr, flush=True)
        if not (quick or only):
            kept.write_text(json.dumps({"facts": with_what, "parts": parts}))
    cells = [
        cell
        for name, found in parts.items()
        for cell in summary(*name.split(), found)  # pyright: ignore[reportArgumentType]
    ]
    plans = large_plan(work)
    cells += list(summary("chain of 10 000", 0, plans))
    data = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **with_what, "cells": cells}
    print(tables.text(data))
    if not (quick or only):
        RESULT.write_text(json.dumps(data, indent=1) + "\n")
        kept.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
