"""A shared cache that is dead or dies, and uploads that are killed at every step."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from object_store import ObjectStore, free_port
from shared_cache import Machines, files, objects, place_of

from tapml import remote
from tapml.remote import transfer

pytestmark = pytest.mark.faults
LIMIT_S = 5.0
PATIENCE_S = remote.Link.patience_s
URL = f"s3://{ObjectStore.bucket}/prefix"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    made = ObjectStore(tmp_path / "moto")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.stop()


def states(result) -> dict[str, str]:
    return {name: step.state for name, step in result.steps.items()}


@contextmanager
def timed() -> Iterator[list[float]]:
    spent = [time.monotonic()]
    yield spent
    spent[0] = time.monotonic() - spent[0]


def impatient(machine) -> None:
    """As users have it, once it needs nothing more of a server that shares a busy machine."""
    place = machine.store.remote
    place.link = dataclasses.replace(place.link, patience_s=PATIENCE_S)


def wide(stages, graph, text: str):
    """Stages that read what others gave, several at a time."""
    nodes = {f"a{i}": (stages.Text(text=f"{i}"), {}) for i in range(4)}
    nodes |= {f"b{i}": (stages.Reader(text=text), {"a": (f"a{i}", "out")}) for i in range(4)}
    return graph(**nodes)


# --- dead remotes


@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest.mark.parametrize("jobs", [0, 2])
def test_a_dead_remote_costs_one_warning_and_five_seconds_once(
    machines: Machines, server, stages, graph, monkeypatch, how: str, jobs: int
) -> None:
    made = wide(stages, graph, "!")
    with timed() as without:
        machines("alone", None).run(made, jobs=jobs)
    if how == "silent":
        server.freeze()
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with timed() as spent:
        one = machines("one", URL, patience_s=PATIENCE_S)
        result = one.run(made, jobs=jobs)
    assert set(states(result).values()) == {"ran"}
    assert len(one.warnings) == 1
    assert URL in one.warnings[0]
    assert spent[0] < without[0] + LIMIT_S
    assert len(list(one.store.root.glob("remote/*/*"))) == 8
    with timed() as again:
        assert set(wheres(one.plan(made))) == {"local"}
    assert again[0] < 1


def wheres(plan) -> list[str | None]:
    return [step.where for step in plan]


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_a_remote_that_dies_between_plan_and_run_costs_one_warning_over_all_processes(
    machines: Machines, server, stages, graph, how: str
) -> None:
    one = machines("one", URL)
    one.run(wide(stages, graph, "!"))
    assert one.warnings == []
    with timed() as without:
        machines("alone", None).run(wide(stages, graph, "?"), jobs=2)
    two = machines("two", URL)
    plan = two.plan(wide(stages, graph, "?"))
    assert two.warnings == []
    assert wheres(plan)[:4] == ["remote"] * 4
    impatient(two)
    server.freeze() if how == "frozen" else server.stop()
    with timed() as spent:
        result = two.execute(plan, jobs=2)
    assert set(states(result).values()) == {"ran"}
    assert two.text(result, "b3") == "3?"
    assert len(two.warnings) == 1
    assert spent[0] < without[0] + LIMIT_S + 3  # workers start a second time for what they read


def test_what_a_silent_remote_did_not_take_goes_up_with_the_next_run(
    machines: Machines, server, chain
) -> None:
    one = machines("one", URL)
    plan = one.plan(chain())
    impatient(one)
    server.freeze()
    with timed() as spent:
        assert one.execute(plan).exit_code == 0
    assert spent[0] < LIMIT_S + 2
    assert len(one.warnings) == 1
    assert len(list(one.store.root.glob("remote/*/*"))) == 4
    server.thaw()
    again = machines("one", URL)
    again.run(chain())
    assert again.warnings == []
    assert list(one.store.root.glob("remote/*/*")) == []
    assert wheres(machines("two", URL).plan(chain())) == ["remote"] * 4


def test_a_command_ends_although_its_remote_never_answers(
    server, stage_folder: Path, tmp_path: Path
) -> None:
    server.freeze()
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "import engine_stages as S\n"
        "from conftest import FakeRecipe, make_graph\n"
        "from tapml import executor, plan, remote\n"
        "from tapml.settings import RemoteCache\n"
        "from tapml.store import Store\n"
        "if __name__ == '__main__':\n"
        f"    root = Path({str(tmp_path / 'store')!r})\n"
        f"    store = Store(root, remote=remote.connect(RemoteCache(url={URL!r}), root))\n"
        "    graph = make_graph(a=(S.Text(), {}), b=(S.Constant(), {'a': ('a', 'out')}))\n"
        "    planned = plan.make(graph, store)\n"
        "    result = executor.run(planned, FakeRecipe(), store, executor.Options(jobs=1))\n"
        "    raise SystemExit(result.exit_code)\n"
    )
    (tmp_path / "script.py").write_text(code)
    path = os.pathsep.join((str(stage_folder), str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "script.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning:") == 1
    assert len(done.stderr.splitlines()) == 1


# --- uploads that are killed

UPLOAD = """
import os, signal, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from tapml import remote
from tapml.remote import outbox, transfer
from tapml.settings import RemoteCache
from tapml.store import Store

root, url, point = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
outbox._THREADS = 1
count = 0

def step(name):
    global count
    count += 1
    if count == point:
        print(name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

def around(name, torn):
    do = getattr(LocalFileSystem, name)
    def call(self, *args, **options):
        step(f"before {name}")
        torn(self, *args)
        do(self, *args, **options)
        step(f"after {name}")
    setattr(LocalFileSystem, name, call)

def half_a_file(self, source, path, *_):
    data = Path(source).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    step("half of put_file")

def half_of_bytes(self, path, data, *_):
    Path(path).write_bytes(data[: len(data) // 2])
    step("half of pipe_file")

around("put_file", half_a_file)
around("pipe_file", half_of_bytes)
around("mv", lambda *_: None)
unlink = Path.unlink
def forget(self, *args, **options):
    if "@" in self.name:
        step("before the entry goes")
    unlink(self, *args, **options)
Path.unlink = forget
store = Store(root, remote=remote.connect(RemoteCache(url=url), root))
transfer.push(store, transfer.chosen(store, ()))
print("whole")
"""


def test_an_upload_that_is_killed_at_any_step_leaves_nothing_wrong_and_is_taken_up(
    machines: Machines, stages, graph, tmp_path: Path
) -> None:
    made = graph(a=(stages.Text(), {}), b=(stages.Join(suffix="!"), {"a": ("a", "out")}))
    machines("one", None).run(made)
    script = tmp_path / "upload.py"
    script.write_text(UPLOAD)
    points: list[str] = []
    while not points or points[-1] != "whole":
        place = tmp_path / f"place{len(points)}"
        command = [sys.executable, str(script), str(tmp_path / "one"), str(place)]
        done = subprocess.run(
            [*command, str(len(points) + 1)], capture_output=True, text=True, check=False
        )
        points.append(done.stdout.strip())
        assert done.returncode == (0 if points[-1] == "whole" else -signal.SIGKILL), done.stderr
        for name, data in objects(place).items() if place.exists() else ():
            assert name.startswith("tmp/") or place_of(name, data), points[-1]
        reader = machines(f"reader{len(points)}", str(place), "read-only")
        if (place / "tapml.json").exists():
            result = reader.run(made)  # hits or misses, never anything wrong
            assert reader.warnings == []
            assert reader.text(result, "b") == "hello!"
        pusher = machines("one", str(place))
        pusher.run(made)  # all hits: what is left in the outbox goes up
        assert list(pusher.store.root.glob(f"remote/{pusher.store.remote.identity}/*")) == []
        transfer.push(pusher.store, transfer.chosen(pusher.store, ()))
        again = machines(f"again{len(points)}", str(place))
        assert wheres(again.plan(made)) == ["remote", "remote"]
    assert len(points) > 30
    print(f"{len(points) - 1} points killed, {len(set(points)) - 1} kinds, all survived")
    assert files(place)
