"""What each engine does and does not do, found out by running it.

    python benchmarks/engine/peers_features.py [--cache DIR] [--only NAME]

Four steps: a → b → c, and d. A step writes its salt, without its last three digits, folded with
what it reads, waits for $DELAY seconds and tells ran.txt when it begins and ends. Every cell comes
from commands that are run here and stand beside it in benchmarks/results/engine_features.json.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import tables
from feature_projects import ENGINES, Engine, number
from run import CACHE
from tools import TOOLS


def explains(engine: Engine) -> str:
    """A changed parameter of c: does it say which, and old and new?"""
    engine.call(engine.run)
    engine.change(c=7777)
    told = engine.call(engine.explain)[1]
    values = "3000" in told and "7777" in told
    names = bool(re.search(r"\bsalt\b|\bparam(eter)?s?\b|depend|argument", told, re.IGNORECASE))
    return "field, old → new" if values else "what changed, no values" if names else "no"


def plans(engine: Engine) -> str:
    """Does it say what it would run, and run nothing?"""
    code, told = engine.call(engine.dry)
    named = all(re.search(rf"\b{name}\b", told) for name in "abcd")
    return "no" if engine.ran() else "yes" if code == 0 and named else f"partly (exit {code})"


def cuts_off(engine: Engine) -> str:
    """The root runs again and gives equal bytes: what runs below it?"""
    engine.call(engine.run)
    engine.ran()
    engine.change(a=1001)
    engine.call(engine.run)
    ran = engine.ran()
    return "yes" if ran == ["a"] else f"no: ran {', '.join(ran) or 'nothing'}"


def one_field(engine: Engine) -> str:
    """One field of the file that all steps are configured by: what runs?"""
    engine.call(engine.run)
    engine.ran()
    engine.change(d=9000)
    engine.call(engine.run)
    return f"{len(engine.ran())} of 4 steps"


def is_parallel(engine: Engine) -> str:
    """Does a step begin before another one has ended?"""
    engine.call(engine.parallel or engine.run, delay=2.0)
    order = engine.order()
    return "yes" if any(a[0] == b[0] == "+" for a, b in itertools.pairwise(order)) else "no"


def survives_kill(engine: Engine) -> str:
    """Killed with all its children while c runs: is the next run right, without more ado?"""
    command = [str(engine.home / "bin" / engine.run[0]), *engine.run[1:]]
    process = subprocess.Popen(
        command,
        cwd=engine.folder,
        env=engine.environment(1.5),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    ran = engine.folder / "ran.txt"
    while time.monotonic() < deadline and not (ran.is_file() and "+b" in ran.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)
    engine.told.append(f"{' '.join(engine.run)}, killed while b runs")
    before = set(engine.ran()) - {"b"}
    code, told = engine.call(engine.run)
    again = before & set(engine.ran())
    if code != 0:
        asks = "; ".join(re.findall(r"--unlock|--rerun-incomplete", told)[:1])
        return f"no: the next run ends with {code}" + (f", wants {asks}" if asks else "")
    kept = f", {', '.join(sorted(again))} again" if again else ", nothing again"
    return ("yes" if engine.is_right() else "no: wrong result") + kept


def notices_a_flip(engine: Engine) -> str:
    """A bit of b's stored result flips, sizes and times kept, then c has to run: is it right?"""
    engine.call(engine.run)
    for path in {engine.output("b"), *_cached(engine)}:
        facts = path.stat()
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.chmod(0o644)
        path.write_bytes(bytes(data))
        path.chmod(facts.st_mode & 0o777)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    engine.change(c=5000)
    code, _ = engine.call(engine.run)
    right = engine.output("c").read_text().strip() == str(number("c", engine.salts))
    return "yes: made again" if right else "stops" if code else "no: c is wrong"


def _cached(engine: Engine) -> list[Path]:
    """Where an engine keeps another copy of b's result."""
    data = engine.output("b").read_bytes()
    roots = (engine.folder / ".dvc" / "cache",)
    files = (path for root in roots for path in root.rglob("*") if path.is_file())
    return [path for path in files if path.read_bytes() == data]


def has_remote(engine: Engine) -> str:
    """Results from a cache elsewhere, after all that is here is lost: what runs?"""
    if not engine.push:
        return "no"
    engine.shares = True
    engine.call(engine.run)
    engine.must(*engine.push)
    engine.forget_outputs()
    engine.ran()
    engine.must(*engine.pull)
    ran = engine.ran()
    if ran:
        return f"no: ran {', '.join(ran)}"
    engine.change(c=5000)  # which reads what came from there
    engine.call(engine.run)
    right = engine.output("c").read_text().strip() == str(number("c", engine.salts))
    return "yes" if right else "no: c is wrong"


QUESTIONS: dict[str, Callable[[Engine], str]] = {
    "explains a stale step by field, old → new": explains,
    "plans without running": plans,
    "equal outputs stop propagation": cuts_off,
    "runs after one field of a shared file changed": one_field,
    "steps in parallel": is_parallel,
    "right after kill -9": survives_kill,
    "notices a flipped bit in a stored result": notices_a_flip,
    "cache that machines share": has_remote,
}


def answers(cls: type[Engine], home: Path, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number_, (question, ask) in enumerate(QUESTIONS.items()):
        folder = work / cls.name / str(number_) / "project"
        engine = cls(home, folder)
        try:
            answer = ask(engine)
        except (subprocess.TimeoutExpired, OSError, StopIteration, ValueError) as error:
            answer = f"? {type(error).__name__}: {error}"
        yield question, {"answer": answer, "commands": list(dict.fromkeys(engine.told))}


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), default=CACHE)
@click.option("--only", multiple=True, help="Engines to run; writes no JSON.")
def main(cache: Path, only: tuple[str, ...]) -> None:
    tools = {tool.name: tool for tool in TOOLS}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="tapml-features-") as work:
        for cls in ENGINES:
            if only and cls.name not in only:
                continue
            home = tools[cls.name].install(cache.resolve())
            found[cls.name] = {}
            for question, row in answers(cls, home, Path(work)):
                found[cls.name][question] = row
                print(f"{cls.name}: {question}: {row['answer']}", file=sys.stderr, flush=True)
    print("\n".join(tables.features(found)))
    if not only:
        versions = {tool.name: list(tool.packages) for tool in TOOLS if tool.packages}
        data = {"versions": versions, "features": found}
        text = json.dumps(data, indent=1, ensure_ascii=False)
        tables.FEATURES.write_text(text + "\n")
        tables.place("features", tables.features(found))


if __name__ == "__main__":
    main()
