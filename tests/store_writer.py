"""A writer of results in processes of its own, killed or failed at chosen points.

    python store_writer.py kill|torn FOLDER DURABILITY SCENE EVERY

Prints the points, one a line; `FOLDER/<n>` is the store in which the writer was killed at the
n-th of them. Each writer is forked from this process, which has no threads, and runs a whole stage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tapml import disk, keys
from tapml.stage import Context, Inputs, Outputs, Stage
from tapml.store import Durability, Record, Store
from tapml.store.verification import verify
from tapml.worker import Done, Job, run_stage

Point = tuple[str, str]
TEXT = b"what it gives\n" * 100
LOG = b"what it said\n"
FILES = {"one": b"1" * 3000, "deep/two": b"2", "empty": b""}


class Parts(Stage):
    """A file and a folder, and a log."""

    name: ClassVar[str] = "parts"
    version: ClassVar[int] = 1
    outputs: ClassVar[dict[str, str]] = {"out": "text", "folder": "folder"}
    number: int = 0

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        (ctx.workdir / "out").write_bytes(TEXT)
        for name, data in FILES.items():
            path = ctx.workdir / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return Outputs({"out": ctx.workdir / "out", "folder": ctx.workdir / "folder"})


def run_parts(root: Path, durability: Durability = "group", number: int = 0) -> Done:
    """Runs the stage as a worker does."""
    stage = Parts(number=number)
    preimage = keys.preimage(stage, {})
    store = Store(root, durability)
    store.prepare()
    workdir = store.temporary("parts")
    log = root.parent / f"{root.name}-{os.getpid()}.log"
    log.write_bytes(LOG)  # without times, so that every writer comes by the same points
    job = Job(
        "parts", stage, keys.digest(preimage), preimage, {}, root, durability, workdir, log,
        workdir / "progress", capture=False,
    )  # fmt: skip
    try:
        return run_stage(job)
    finally:
        disk.remove(workdir)


def key(number: int = 0) -> str:
    return keys.action_key(Parts(number=number), {})


def is_right(store: Store, record: Record, folder: Path) -> bool:
    """Whether what a record names is what the stage gives. Raises: DamagedError."""
    tree = store.materialise(record.outputs["folder"], folder)
    found = {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file()
    }
    return store.read(record.outputs["out"]) == TEXT and found == FILES


@dataclass
class Scene:
    """How the store is before: `fresh`, or `used`: with another result of the stage, of which a
    blob that this one shares is cut short.
    """

    name: str
    durability: Durability

    def set_up(self, root: Path) -> None:
        if self.name == "fresh":
            return
        record = run_parts(root, self.durability, number=1).record
        assert record is not None
        blob = Store(root).blob(record.outputs["out"])
        facts = blob.stat()
        blob.chmod(0o644)
        blob.write_bytes(TEXT[:70])
        os.utime(blob, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        blob.chmod(0o444)


def points(root: Path, scene: Scene) -> list[Point]:
    """The points at which a writer that nobody disturbs comes by."""
    passed: list[Point] = []
    scene.set_up(root)
    with at_each(lambda number, point: passed.append(point)):
        done = run_parts(root, scene.durability)
    assert done.error is None, done.error
    return passed


class at_each:
    """Calls `act(n, point)` at the n-th point."""

    def __init__(self, act: Callable[[int, Point], Any]) -> None:
        self._act, self._count = act, -1

    def __enter__(self) -> None:
        self._step = disk.step
        disk.step = self._passed

    def __exit__(self, *_: object) -> None:
        disk.step = self._step

    def _passed(self, what: disk.What, name: disk.Step) -> None:
        self._count += 1
        self._act(self._count, (what, name))


def killed(act: Callable[[], Any]) -> None:
    """Runs `act` in a process of its own, which has to be killed."""
    if (pid := os.fork()) == 0:
        act()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), status
    assert os.WTERMSIG(status) == signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def kill_at_each(folder: Path, scene: Scene, every: int) -> list[Point]:
    found = points(folder / "whole", scene)
    for number in range(0, len(found), every):
        root = folder / str(number // every)
        scene.set_up(root)

        def act(root: Path = root, number: int = number) -> None:
            with at_each(lambda n, _: die() if n == number else None):
                run_parts(root, scene.durability)

        killed(act)
    return found[::every]


def tear_each_write(folder: Path, scene: Scene, every: int) -> list[Point]:
    """As `kill_at_each`, half-way through each write."""
    found = [point for point in points(folder / "whole", scene) if point[1] in ("write", "append")]
    for number in range(0, len(found), every):
        root = folder / str(number // every)
        scene.set_up(root)

        def act(root: Path = root, number: int = number) -> None:
            count = -1

            def torn(descriptor: int, data: bytes) -> None:
                nonlocal count
                count += 1
                if count == number:
                    os.write(descriptor, data[: len(data) // 2])
                    die()
                os.write(descriptor, data)

            disk.write_all = torn
            run_parts(root, scene.durability)

        killed(act)
    return found[::every]


def writers(how: str, folder: Path, scene: Scene, every: int = 1) -> list[Point]:
    """The points at which writers were killed, each (or every so many) in a store of its own."""
    command = [sys.executable, __file__, how, str(folder), scene.durability, scene.name]
    done = subprocess.run([*command, str(every)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(line.split(" ", 1)) for line in done.stdout.splitlines()]  # pyright: ignore[reportReturnType]


def survives(root: Path, scene: Scene, scratch: Path) -> None:
    """Nothing wrong is served; damage is told and repaired; a later run succeeds."""
    store, later = Store(root, scene.durability), time.time() + 2 * 3600
    told = verify(store, now=later)
    if scene.name == "fresh":
        assert not [one for one in told if one.is_damage]
    assert len([one for one in told if one.kind == "leftover"]) == len(_temporary(root))
    served = store.lookup("parts", key())
    assert served is None or is_right(store, served, scratch / "served")
    verify(store, repair=True, now=later)
    assert not verify(store, now=later)
    assert not _temporary(root)
    done = run_parts(root, scene.durability)
    assert done.error is None, done.error
    again = Store(root).lookup("parts", key())
    assert again is not None
    assert again == done.record
    assert is_right(Store(root), again, scratch / "again")
    assert not verify(store, now=later)


def _temporary(root: Path) -> list[Path]:
    return [path for path in (root / "tmp").iterdir() if path.is_file()]


if __name__ == "__main__":
    how, folder, durability, name, every = sys.argv[1:]
    act = {"kill": kill_at_each, "torn": tear_each_write}[how]
    for what, step in act(Path(folder), Scene(name, durability), int(every)):  # pyright: ignore[reportArgumentType]
        print(what, step)
