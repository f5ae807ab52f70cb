"""tapml against pytask, DVC, Snakemake and redun: graphs of 300 trivial steps; a plan of 10 000.

    python benchmarks/engine/run.py [--cache DIR] [--work DIR] [--rounds N] [--again]

Commands alternate (ours, peer, peer, …, ours again) and are timed whole, from outside. Every result
is compared with what the graph has to give. Writes benchmarks/results/engine.json and the tables
of docs/benchmarks.md.
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
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import tables
from graphs import SIZE, Shape, chain, shapes
from tools import TOOLS, Tool

from tapml import host

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "tapml-benchmarks"
SCENARIOS = ("cold", "warm", "leaf", "root")
SLOW_S = 8.0  # an engine that takes longer for a cold run does it once
MARK = "TAPML_BENCHMARK"
LIMIT_S = 240.0  # of one command
Sample = dict[str, Any]


class Project:
    """A folder in which one engine works on one graph."""

    def __init__(self, tool: Tool, shape: Shape, slots: int, home: Path, folder: Path) -> None:
        self.tool, self.shape, self.slots, self.home, self.folder = tool, shape, slots, home, folder
        self.salts: dict[str, int] = {}

    def begin(self, scenario: str) -> None:
        """What is changed before the command is timed."""
        match scenario:
            case "cold":
                self._empty()
            case "leaf":
                self._change(self.shape.leaf)
            case "root":
                self._change(self.shape.root)
            case _:
                pass

    def _empty(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.salts = {name: number for number, name in enumerate(self.shape.needs)}
        self.tool.begin(self.home, self.folder)
        self.tool.write(self.folder, self.shape, self.salts)

    def _change(self, step: str) -> None:
        self.salts[step] += 1000
        self.tool.write(self.folder, self.shape, self.salts)

    def run(self, scenario: str) -> Sample:
        """Times one command. Raises: SystemExit when it fails or gives another result."""
        command = self.tool.command(self.home, self.slots)
        env = environment() | self.tool.environment(self.folder)
        found = timed(command, self.folder, env)
        if wrong := self.tool.given(self.folder, self.shape, self.salts):
            raise SystemExit(
                f"{' '.join(command)} in {self.folder}: {wrong} is wrong after {scenario}"
            )
        return {"tool": self.tool.name, "scenario": scenario, **found}


def environment() -> dict[str, str]:
    """Ours without what changes how Python starts, so that compiled modules are kept as usual."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


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


def samples(projects: list[Project], rounds: int, scenarios: Sequence[str]) -> Iterator[Sample]:
    """Cold, warm, one leaf changed, the root changed; the engines take turns."""
    once: set[str] = {"tapml, tracked"}  # these run cold and with another root once
    for number in range(rounds):
        for scenario in scenarios:
            for project in projects:
                tool = project.tool
                if scenario in ("cold", "root"):
                    if number > 1 or (number == 1 and tool.name in once):
                        continue
                elif scenario not in tool.scenarios:
                    continue
                project.begin(scenario)
                found = project.run(scenario)
                if found["s"] > SLOW_S and scenario == "cold":
                    once.add(tool.name)
                yield found


def blocks(steps: int, rounds: int) -> Iterator[tuple[Shape, int, list[Tool], int, Sequence[str]]]:
    """Graph, slots, engines, rounds and scenarios, of what is measured."""
    graphs = shapes(steps)
    for shape in graphs.values():
        tools = [tool for tool in TOOLS if tool.name != "tapml, tracked" or shape.name == "diamond"]
        yield shape, 1, [tool for tool in tools if 1 in tool.slots], rounds, SCENARIOS
    two = [tool for tool in TOOLS if 2 in tool.slots]
    for name in ("wide", "diamond"):
        yield graphs[name], 2, two, min(2, rounds), ("cold", "root")


def large_plans(work: Path, steps: int = 10_000) -> list[Sample]:
    """A plan of a chain of many steps: nothing stored, all stored, the root changed since."""
    store, folder = work / "large" / "store", work / "large"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    script = str(Path(__file__).with_name("large_plan.py"))
    found: list[Sample] = []
    for what in ("plan", "fill", "plan", "changed"):
        state = {"plan": "cached" if found else "nothing stored", "changed": "root changed"}
        command = [sys.executable, script, str(store), str(steps), what]
        for _ in range(1 if what == "fill" else 3):
            sample = timed(command, folder, environment())
            if what != "fill":
                found.append({"tool": "tapml", "scenario": state[what], **sample})
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


def facts(homes: Mapping[str, Path], steps: int, rounds: int) -> dict[str, Any]:
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
        "steps": steps,
        "rounds": rounds,
    }


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), default=CACHE, help="Where peers are installed."
)
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where projects are made. [default: CACHE/work]"
)
@click.option("--only", multiple=True, help="Engines to run; writes no JSON.")
@click.option("--rounds", default=5, show_default=True, help="Repeats of warm and one leaf.")
@click.option("--steps", default=300, show_default=True, help="Of each graph.")
@click.option("--again", is_flag=True, help="Keep nothing of a run that was stopped.")
def main(
    cache: Path, work: Path | None, only: tuple[str, ...], rounds: int, steps: int, again: bool
) -> None:
    cache, work = cache.resolve(), (work or cache / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    homes = {tool.name: tool.install(cache) for tool in TOOLS if not only or tool.name in only}
    kept = work / "partial.json"
    with_what = facts(homes, steps, rounds) if not only else {}
    parts: dict[str, list[Sample]] = {}
    if kept.is_file() and not (again or only):
        before = json.loads(kept.read_text())
        if before["facts"] == with_what:
            parts = before["parts"]
    for tool in TOOLS:  # so that no timed run compiles modules for the first time
        if tool.name in homes:
            first = Project(tool, chain(3), tool.slots[0], homes[tool.name], work / "first")
            first.begin("cold")
            first.run("cold")
    for shape, slots, tools, repeats, scenarios in blocks(steps, rounds):
        name = f"{shape.name} {slots}"
        if name in parts:
            continue
        projects = [
            Project(tool, shape, slots, homes[tool.name], work / f"{number}")
            for number, tool in enumerate(tools)
            if tool.name in homes
        ]
        parts[name] = []
        for sample in samples(projects, repeats, scenarios):
            parts[name].append(sample)
            print(name, sample, file=sys.stderr, flush=True)
        if not only:
            kept.write_text(json.dumps({"facts": with_what, "parts": parts}))
    cells: list[dict[str, Any]] = []
    for name, found in parts.items():
        shape_name, count = name.split()
        cells += summary(shape_name, int(count), found)
    if not only:
        cells += summary("plan of 10 000", 0, large_plans(work))
    data = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **with_what, "cells": cells}
    print("\n".join(tables.figures({"rounds": rounds, **data})))
    if not only:
        tables.FIGURES.write_text(json.dumps(data, indent=1) + "\n")
        tables.place("figures", tables.figures(data))
        kept.unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
