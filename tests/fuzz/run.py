"""Feeds hostile recipes to `validate` and `plan`: nothing may crash, hang, swell or run.

Seconds are the processor's, so that a busy machine finds what a quiet one does; who waits for
something without working is stopped by the clock on the wall.

python tests/fuzz/run.py --count 20000                 writes benchmarks/results/fuzz.json
python tests/fuzz/run.py --first 4711 --count 1 --show   one seed, with its recipe and messages
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import multiprocessing.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import mutations

from tapml import host

LIMIT_S, LIMIT_MIB = 5.0, 350.0
WAIT_S = 60.0  # on the wall
EXCERPT_COLUMNS, LINE, MESSAGE = 160, 4000, 40_000  # the largest that a message may be
COMMANDS = ("validate", "plan")
RESULTS = mutations.ROOT / "benchmarks" / "results" / "fuzz.json"


@dataclass(frozen=True)
class Outcome:
    """What became of one seed. `problems` is empty when all is well."""

    seed: int
    codes: tuple[int, ...]
    seconds: float
    mib: float
    problems: tuple[str, ...]


class TooSlow(BaseException):
    """The alarm."""


@contextlib.contextmanager
def house() -> Iterator[Path]:
    """A project to work in, for as long as it is needed; the process stands in it."""
    before = Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix="tapml-fuzz-"))
    mutations.project(folder / "project")
    os.chdir(folder / "project")
    try:
        yield folder / "project"
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def examine(seed: int, *, show: bool = False) -> Outcome:
    """Runs the commands on a seed's case in the working folder, which `house` made."""
    case = mutations.case(seed)
    for name, content in case.files.items():
        Path(name).write_bytes(content)
    if show:
        print(case.arguments)
        print(case.files["recipe.yaml"].decode("utf-8", "backslashreplace")[:6000])
    codes, problems = list[int](), list[str]()
    forget_peak()
    held = peak_mib()  # what this process needed before, such as libraries of other tests
    slowest = 0.0
    for command in COMMANDS:
        start = time.process_time()
        code, out, err = call(command, "recipe.yaml", *case.arguments)
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        codes.append(code)
        problems += [f"{command}: {one}" for one in judged(code, out, err, seconds)]
        if show:
            print(f"-- {command}: {code}, {seconds:.2f} s\n{out}{err}"[:6000])
    if (peak := peak_mib()) - held > LIMIT_MIB:
        problems.append(f"{peak:.0f} MiB")
    if Path(mutations.PWNED).exists():
        problems.append("something of the recipe ran")
        Path(mutations.PWNED).unlink()
    return Outcome(seed, tuple(codes), round(slowest, 3), round(peak, 1), tuple(problems))


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit code and output of a command of tapml in this process; -1 for one without an end."""
    from tapml.cli import main

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["tapml", *arguments]
    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, LIMIT_S),
        (signal.ITIMER_REAL, signal.SIGALRM, WAIT_S),
    )
    for timer, raised, limit in timers:
        signal.signal(raised, _alarm)
        signal.setitimer(timer, limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except TooSlow:
        code = -1
    finally:
        for timer, *_ in timers:
            signal.setitimer(timer, 0)
    return code, out.getvalue(), err.getvalue()


def judged(
    code: int, out: str, err: str, seconds: float, codes: Sequence[int] = (0, 2, 3)
) -> Iterator[str]:
    """What is wrong with how a command ended."""
    if code not in codes:
        told = err.strip().rpartition("\n")[2]
        yield f"no end after {seconds:.1f} s" if code == -1 else f"exit code {code}: {told[:200]}"
        return
    if seconds > LIMIT_S:
        yield f"{seconds:.1f} s"
    if code and not err.strip().removeprefix("error:").strip():
        yield "no message"
    if len(err) > MESSAGE:
        yield f"a message of {len(err)} characters"
    from tapml.mask import is_secret
    from tapml.terminal import columns

    for line in (out + err).split("\n"):
        if not line.isprintable():
            yield f"a line that is not printable: {line[:200]!r}"
        elif is_secret(line):
            yield f"a secret is repeated: {line[:200]}"
        elif len(line) > LINE:
            yield f"a line of {len(line)} characters: {line[:80]!r}"
        elif " | " in line[:12] and columns(line) > EXCERPT_COLUMNS:
            yield f"an excerpt of {columns(line)} columns"


def sweep(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    """The outcomes of many seeds, from warm processes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, _start) as pool:
        yield from pool.imap_unordered(examine, seeds, chunksize=20)
        pool.close()  # leaving by itself, a process takes its house with it
        pool.join()


def _start() -> None:
    """Makes a house for this process, and bounds what it can take of the machine."""
    os.environ |= {"TAPML_STORE": "store", "NO_COLOR": "1", "TAPML_VAR_WHO": "fuzz"}
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    stack = contextlib.ExitStack()
    stack.enter_context(house())
    multiprocessing.util.Finalize(stack, stack.close, exitpriority=1)
    call("plan", "operator_sparse.yaml")  # warm: what is imported is imported


def _alarm(*_: object) -> None:
    raise TooSlow


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(one for one in status.splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="in this process, with all it says")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    if options.show:
        with house():
            for seed in seeds:
                print(examine(seed, show=True))
        return 0
    start = time.perf_counter()
    done: list[Outcome] = []
    for outcome in sweep(seeds, options.jobs):
        done.append(outcome)
        for problem in outcome.problems:
            print(f"seed {outcome.seed}: {problem}", flush=True)
    failed = [one for one in done if one.problems]
    slowest = max(done, key=lambda one: one.seconds)
    largest = max(done, key=lambda one: one.mib)
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host.fingerprint(),
        "command": f"python tests/fuzz/run.py --first {options.first} --count {options.count}",
        "recipes": len(done),
        "commands": list(COMMANDS),
        "first_seed": options.first,
        "failed": len(failed),
        "exit_codes": dict(sorted(Counter(str(c) for one in done for c in one.codes).items())),
        "worst_s": slowest.seconds,
        "worst_s_seed": slowest.seed,
        "worst_mib": largest.mib,
        "worst_mib_seed": largest.seed,
        "limits": {"s": LIMIT_S, "mib": LIMIT_MIB},
        "seconds": round(time.perf_counter() - start, 1),
        "failures": [asdict(one) for one in failed],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k != "failures"}, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
