"""Kills, full disks and flipped bits under the whole line, through the command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from command_line import (
    Ended,
    environment,
    finished,
    journal,
    limit_s,
    nothing_is_lost,
    tapml,
)
from processes import alive, wait_for
from small_models import RECIPE, write_mlp

from tapml import guard
from tapml.stage import Context, Inputs, Outputs, Stage
from tapml.store import Store
from tapml.store.verification import verify
from tapml.worker import Job, run_stage

pytestmark = pytest.mark.faults

# Python runs this at the start of every process of the command, workers too
FULL_DISK = """\
import errno, os
whole, store = os.write, os.environ["TAPML_STORE"]
def write(descriptor, data):
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if path.startswith(store) and os.path.exists(f"{store}/{os.environ['FULL_ONCE']}"):
        raise OSError(int(os.environ["NUMBER"]), os.strerror(int(os.environ["NUMBER"])))
    return whole(descriptor, data)
os.write = write
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    return finished(tmp_path_factory.mktemp("good"))


@pytest.fixture
def good(made: tuple[Path, Ended], tmp_path: Path) -> tuple[Path, Ended]:
    """A copy of a store with a good run, seals kept, and that run; its recipe is in `tmp_path`."""
    write_mlp(tmp_path)
    return shutil.copytree(made[0], tmp_path / "store", copy_function=shutil.copy2), made[1]


def failed(done: Ended, code: int, *parts: str) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.out + done.err
    assert done.err.count("error: ") == 1
    for part in parts:
        assert part in done.err


# --- disks


@pytest.fixture
def disk(tmp_path: Path) -> Callable[[str, int], dict[str, str]]:
    """Environment in which writes to the store fail once it has a file of the given name."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FULL_DISK)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))

    def environment(once: str, number: int) -> dict[str, str]:
        return {"PYTHONPATH": path, "FULL_ONCE": once, "NUMBER": str(number)}

    return environment


@pytest.mark.parametrize(("number", "advice"), [(28, "free some space"), (30, "writable")])
def test_a_disk_that_fills_up_is_3_and_keeps_what_was_done(
    tmp_path: Path, disk: Callable, number: int, advice: str
) -> None:
    write_mlp(tmp_path)
    store = tmp_path / "store"
    done = tapml(tmp_path, "run", "recipe.yaml", store=store, env=disk("ac/import", number))
    print(f"{done.seconds:.1f} s in all")
    failed(done, 3, str(store), os.strerror(number), advice, "--store")
    assert list(store.glob("ac/import/*/0"))
    assert not [one for one in verify(Store(store)) if one.is_damage]
    again = tapml(tmp_path, "run", "recipe.yaml", "--to", "relax", store=store)
    assert again.code == 0, again.err
    assert again.states == {"import": "hit", "relax": "ran"}


def test_a_full_disk_at_the_start_is_3_before_any_stage_runs(
    good: tuple[Path, Ended], tmp_path: Path, disk: Callable
) -> None:
    store, before = good
    env = disk("ac", 28)
    done = tapml(tmp_path, "run", "recipe.yaml", "--force", "import", store=store, env=env)
    failed(done, 3, str(store), "No space left", "--store")
    assert done.seconds < limit_s()
    assert "ran" not in done.states.values()
    assert nothing_is_lost(store, before)


class Nothing(Stage):
    name: ClassVar[str] = "nothing"
    version: ClassVar[int] = 1

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        return Outputs({})


@pytest.mark.parametrize("side", ["log", "progress"])
def test_a_worker_that_cannot_write_its_side_outputs_tells_of_the_disk(
    tmp_path: Path, side: str
) -> None:
    paths = {"log": tmp_path / "log", "progress": tmp_path / "progress"}
    paths[side] = Path("/dev/full") if side == "progress" else tmp_path / "log" / "none"
    (tmp_path / "log").touch()
    store = Store(tmp_path / "store")
    store.prepare()
    workdir = store.temporary("nothing")
    job = Job("nothing", Nothing(), "0" * 64, {}, {}, store.root, "group", workdir, **paths)
    done = run_stage(job)
    assert done.record is None
    assert done.error is not None
    assert "EnvironmentalError" in done.error["bases"]
    assert "--store DIR" in done.error["facts"]["hint"]


@pytest.mark.parametrize("root", ["mlp.onnx/store", "/proc/store", "/sys/store"])
def test_a_store_that_cannot_be_made_is_3_before_any_stage_runs(tmp_path: Path, root: str) -> None:
    write_mlp(tmp_path)
    done = tapml(tmp_path, "run", "recipe.yaml", "--store", root, store=tmp_path / "unused")
    failed(done, 3, "store", "--store DIR")
    assert done.seconds < limit_s()


# --- flipped bits


def flip(path: Path, *, seen: bool) -> None:
    """Changes one bit; unless `seen`, the file keeps its time, as when a disk rots."""
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    if not seen:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def blob(store: Path, run: Ended, stage: str, output: str, file: str = "") -> Path:
    (digest,) = (
        one["outputs"][output]
        for one in run.events
        if one["event"] == "StageFinished" and one["stage"] == stage
    )
    kept = Store(store)
    return kept.blob((kept.tree(digest) or {})[file] if file else digest)


@pytest.mark.parametrize("seen", [True, False], ids=["written to", "rotted"])
@pytest.mark.parametrize(
    ("stage", "output", "file"),
    [
        ("import", "program", "mod.json"),
        ("codegen", "bundle", "lib.so"),
        ("validation", "facts", ""),
    ],
)
def test_a_flipped_bit_in_the_store_is_made_good_with_a_note(
    good: tuple[Path, Ended], tmp_path: Path, stage: str, output: str, file: str, seen: bool
) -> None:
    store, before = good
    flip(blob(store, before, stage, output, file), seen=seen)
    # what import gave is read, not only looked up, when relax runs
    changed = ("--set", "relax.reciprocal=false") if stage == "import" else ()
    done = tapml(tmp_path, "run", "recipe.yaml", *changed, store=store)
    assert done.code == 0, done.err
    assert "damaged" in done.err
    assert "made again" in done.err
    assert done.states[stage] == "ran"
    assert not [one for one in verify(Store(store)) if one.is_damage]
    again = tapml(tmp_path, "run", "recipe.yaml", *changed, store=store)
    assert set(again.states.values()) == {"hit"}


# --- kills

KILLED = """\
import os
import numpy as np
def inputs():
    with open({counter!r}, "a+") as counter:
        counter.write("x")
        counter.seek(0)
        if len(counter.read()) <= {times}:
            os.kill(os.getpid(), 9)
    return {{"x": np.ones((4, 16), "float32")}}
"""


@pytest.mark.parametrize("times", [1, 9])
def test_a_killed_worker_is_tried_again_once(
    good: tuple[Path, Ended], tmp_path: Path, times: int
) -> None:
    store, before = good
    counter = tmp_path / "counter"
    recipe = RECIPE.replace("repeats", "inputs: {python: 'own.py:inputs'}, repeats")
    write_mlp(tmp_path, recipe)
    (tmp_path / "own.py").write_text(KILLED.format(counter=str(counter), times=times))
    done = tapml(tmp_path, "run", "recipe.yaml", store=store)
    assert counter.read_text() == "xx"
    assert "killed by SIGKILL" in done.err
    if times == 1:
        assert done.code == 0, done.err
        assert "run again" in done.err
    else:
        failed(done, 1, "error: reference: ", "probably out of memory", "2 times", "peak")
        print(f"{done.seconds_until_told('reference'):.1f} s from the start of reference")
        assert done.seconds_until_told("reference") < limit_s()
    assert nothing_is_lost(store, before)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_search_that_is_stopped_leaves_no_process_and_going_on_repeats_nothing(
    tmp_path: Path, number: int, code: int
) -> None:
    write_mlp(tmp_path)
    store = tmp_path / "store"
    process = started(tmp_path, "recipe.yaml", "--set", "tuning.trials=64", store=store)

    def is_tuning() -> bool:
        assert process.poll() is None, process.communicate()
        return any(
            one["event"] == "StageProgress" and one["stage"] == "metaschedule" and one["done"] > 0
            for folder in (store / "runs").glob("*")
            for one in journal(folder)
        )

    wait_for(is_tuning, 120)
    own = mark(process.pid)
    count = len(guard.marked(own))
    assert count > 2  # the worker, and its builders and runners
    pressed = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all of the foreground
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert time.monotonic() - pressed < limit_s()
    wait_for(lambda: not guard.marked(own) and not alive(str(store)), limit_s())
    print(f"{count} processes gone {time.monotonic() - pressed:.1f} s after {number!r}")
    assert "Traceback" not in out + err
    assert not [one for one in verify(Store(store)) if one.is_damage]

    (folder,) = (store / "runs").glob("*")
    ended = [one for one in journal(folder) if one["event"] == "StageFinished"]
    states = {one["stage"]: one["state"] for one in ended}
    if number != signal.SIGKILL:
        assert states["metaschedule"] == "interrupted"
        assert "to go on" in err
        assert "tapml run recipe.yaml --set tuning.trials=64" in err
    done = {stage for stage, state in states.items() if state == "ran"}
    assert {"import", "relax", "tensorir"} <= done
    again = tapml(tmp_path, "run", "recipe.yaml", "--to", "metaschedule", store=store)
    assert again.code == 0, again.err
    assert {stage for stage, state in again.states.items() if state == "hit"} == done & set(
        again.states
    )


def mark(pid: int) -> str:
    """What all that a run starts has in its environment: told by its guard's command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid and guard.__file__ in words:
            return words[words.index(guard.__file__) + 1]
    raise AssertionError("the run has no guard")


# --- two commands at once

OWN = """\
import os, time
import numpy as np
def inputs():
    with open({counter!r}, "a+") as counter:
        counter.write("x")
        counter.seek(0)
        first = len(counter.read()) == 1
    if first:
        while not os.path.exists({go!r}):
            time.sleep(0.05)
        {then}
    return {{"x": np.ones((4, 16), "float32")}}
"""


def started(folder: Path, *arguments: str, store: Path) -> subprocess.Popen[str]:
    """`tapml run …`, not waited for, in the foreground of a terminal of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tapml", "run", *arguments],
        cwd=folder,
        env=environment(store),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@dataclass
class Race:
    """Two commands on one recipe: the second waits for the first, which is within `reference` and
    stays there until it may go on.
    """

    counter: Path
    go: Path
    first: subprocess.Popen[str]
    second: subprocess.Popen[str]

    def end(self) -> tuple[str, str]:
        """What they said, in the end."""
        self.go.touch()
        return self.first.communicate(timeout=120)[1], self.second.communicate(timeout=120)[1]


@pytest.fixture
def race(tmp_path: Path) -> Generator[Callable[..., Race]]:
    races: list[Race] = []

    def make(*options: str, then: str = "pass") -> Race:
        counter, go, store = tmp_path / "counter", tmp_path / "go", tmp_path / "store"
        write_mlp(tmp_path, RECIPE.replace("repeats", "inputs: {python: 'own.py:inputs'}, repeats"))
        code = OWN.format(counter=str(counter), go=str(go), then=then)
        (tmp_path / "own.py").write_text(code)
        words = ("recipe.yaml", "--to", "reference", *options)
        first = started(tmp_path, *words, store=store)
        wait_for(counter.exists, 60)
        races.append(Race(counter, go, first, started(tmp_path, *words, store=store)))
        wait_for(lambda: told("which is making it", store), 60)
        return races[-1]

    yield make
    for one in races:
        for process in (one.first, one.second):
            process.kill()
            process.communicate()


def told(words: str, store: Path) -> bool:
    """Whether a run on the store has said so."""
    events = (one for folder in (store / "runs").glob("*") for one in journal(folder))
    return any(words in one.get("note", "") for one in events)


def test_of_two_commands_at_once_one_does_the_work_and_the_other_says_whom_it_waits_for(
    race: Callable[..., Race],
) -> None:
    both = race()
    words = both.end()
    assert (both.first.returncode, both.second.returncode) == (0, 0), words
    assert both.counter.read_text() == "x"
    assert "which is making it" in words[1]
    assert f"(process {both.first.pid})" in words[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_hands_its_work_to_the_one_that_waits(
    race: Callable[..., Race], number: int
) -> None:
    both = race()
    both.first.send_signal(number)
    words = both.end()
    assert both.first.returncode == (130 if number == signal.SIGINT else -9)
    assert both.second.returncode == 0, words
    assert both.counter.read_text() == "xx"


def test_a_command_whose_stage_fails_leaves_it_to_the_one_that_waits(
    race: Callable[..., Race],
) -> None:
    both = race(then="raise ValueError('only once')")
    words = both.end()
    assert (both.first.returncode, both.second.returncode) == (1, 0), words
    assert "only once" in words[0]
    assert both.counter.read_text() == "xx"


def test_two_commands_that_force_a_stage_each_run_it_one_after_the_other(
    race: Callable[..., Race],
) -> None:
    both = race("--force", "reference")
    words = both.end()
    assert (both.first.returncode, both.second.returncode) == (0, 0), words
    assert both.counter.read_text() == "xx"
    assert "which is making it" in words[1]
