"""Runs on a real dask scheduler and real workers, each a process that `tapml worker` started."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import distributed
import pytest
from processes import alive, wait_for

from tapml import remote
from tapml.errors import EnvironmentalError, WorkerError
from tapml.settings import Dask, RemoteCache, Security
from tapml.store import Store

pytestmark = pytest.mark.faults


@dataclass
class Cluster:
    """A scheduler on loopback, and the workers that a test starts."""

    folder: Path
    env: dict[str, str]
    tls: tuple[str, ...] = ()
    processes: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: str, env: dict[str, str] | None = None) -> tuple[str, str]:
        """Starts a program; its first line that names an address, and that address."""
        log = self.folder / f"process{len(self.processes)}.log"
        with log.open("wb") as out:
            self.processes.append(
                subprocess.Popen(
                    command, env=env or self.env, cwd=self.folder, stdout=out, stderr=out
                )
            )

        def told() -> re.Match | None:
            assert self.processes[-1].poll() is None, log.read_text()
            return re.search(r"^.*?((tcp|tls)://[\d.]+:\d+).*$", log.read_text(), re.MULTILINE)

        found = wait_for(told, 60)
        return found[0], found[1]

    def scheduler(self) -> "Cluster":
        place = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        command = (sys.executable, "-m", "distributed.cli.dask_scheduler", *place)
        _, self.address = self.start(*command, *self.tls)
        return self

    def worker(self, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        command = (sys.executable, "-m", "tapml", "worker", self.address)
        self.told, _ = self.start(*command, *options, *self.tls, env=env)
        return self.processes[-1]

    @property
    def executor(self) -> Dask:
        return Dask(address=self.address)


@pytest.fixture
def cluster(tmp_path, stage_folder):
    path = os.pathsep.join((str(stage_folder), os.environ.get("PYTHONPATH", "")))
    made = Cluster(tmp_path, {**os.environ, "PYTHONPATH": path})
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def states(result):
    return {name: step.state for name, step in result.steps.items()}


def nothing_left(mark: Path) -> bool:
    return not alive(str(mark))


def test_a_cluster_gives_what_this_process_gives(bench, chain, cluster):
    cluster.scheduler().worker("--jobs", "2")
    assert re.search(r"2 slots, \d+ cores, \d+ GPUs, \d+ MiB", cluster.told)
    result = bench.run(chain(), executor=cluster.executor, jobs=None)
    assert set(states(result).values()) == {"ran"}, [s.error for s in result.steps.values()]
    assert bench.text(result, "join") == "helloother!"
    assert "joined helloother!" in result.steps["join"].log.read_text()
    assert any(getattr(event, "note", "") == "half" for event in bench.events)
    assert set(states(bench.run(chain(), jobs=0)).values()) == {"hit"}


def test_crashes_time_limits_and_failures_touch_one_stage(bench, stages, graph, cluster, tmp_path):
    cluster.scheduler().worker("--jobs", "2")
    mark, slow = tmp_path / "mark", tmp_path / "slow"
    result = bench.run(
        graph(
            bad=(stages.Act(act="raise"), {}),
            killed=(stages.Act(act="kill", mark=str(mark)), {}),
            slow=(stages.Hasty(act="sleep", arg=str(slow)), {}),
            below=(stages.Constant(), {"a": ("slow", "out")}),
            good=(stages.Text(), {}),
        ),
        executor=cluster.executor,
        jobs=None,
    )
    assert states(result) == {
        "bad": "failed",
        "killed": "failed",
        "slow": "failed",
        "below": "cancelled",
        "good": "ran",
    }
    assert result.steps["bad"].error.message == "ValueError: the sky fell"
    assert "killed by SIGKILL" in result.steps["killed"].error.message
    assert mark.read_text() == "xx"
    assert "took longer than 0.5 s" in result.steps["slow"].error.message
    assert not Path(f"/proc/{slow.read_text()}").exists()


def test_a_worker_that_is_killed_costs_one_stage_a_second_try(
    bench, stages, graph, cluster, tmp_path
):
    first = cluster.scheduler().worker("--jobs", "1")
    mark, count = tmp_path / "mark", tmp_path / "count"
    done: list = []
    made = graph(
        a=(stages.Act(act="litter", arg=str(mark), times=1, mark=str(count)), {}),
        b=(stages.Constant(), {"a": ("a", "out")}),
        c=(stages.Text(), {}),
    )
    run = threading.Thread(
        target=lambda: done.append(bench.run(made, executor=cluster.executor, jobs=None))
    )
    run.start()
    wait_for(mark.exists, 60)
    assert len(alive(str(mark))) >= 4
    cluster.worker("--jobs", "1")
    first.kill()
    wait_for(lambda: nothing_left(mark), 5)
    run.join(60)
    (result,) = done
    assert set(states(result).values()) == {"ran"}, [s.error for s in result.steps.values()]
    assert count.read_text() == "xx"
    assert result.steps["a"].notes == ("its dask worker was lost; run again",)
    assert result.steps["b"].notes == result.steps["c"].notes == ()


def test_two_workers_share_the_stages_and_what_times_something_is_alone(
    bench, stages, graph, cluster, tmp_path
):
    cluster.scheduler().worker("--jobs", "2")
    cluster.worker("--jobs", "2")
    spans = tmp_path / "spans"
    nodes = {
        f"s{n}": (stages.Act(act="span", arg=str(spans), mark=str(tmp_path / f"m{n}")), {})
        for n in range(4)
    }
    nodes["alone"] = (stages.Alone(act="span", arg=str(spans)), {})
    result = bench.run(graph(**nodes), executor=cluster.executor, jobs=None)
    assert set(states(result).values()) == {"ran"}, [s.error for s in result.steps.values()]
    rows = [line.split() for line in spans.read_text().splitlines()]
    ((begin, end),) = [(float(a), float(b)) for name, a, b in rows if name == "alone"]
    others = sorted((float(a), float(b)) for name, a, b in rows if name != "alone")
    assert len(others) == 4
    assert all(b <= begin or a >= end for a, b in others)
    assert any(one[1] > two[0] for one, two in pairwise(others))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_process_on_a_worker_outlives_a_run_that_is_stopped(
    script, cluster, tmp_path, number, code
):
    cluster.scheduler().worker()
    mark = tmp_path / "mark"
    process = script(
        f"a=(S.Act(act='litter', arg={str(mark)!r}), {{}})",
        tmp_path / "store",
        executor=cluster.executor,
    )
    wait_for(mark.exists, 60)
    process.send_signal(number)
    stopped = time.monotonic()
    assert process.wait(10) == code
    wait_for(lambda: nothing_left(mark), 5)
    print(f"{time.monotonic() - stopped:.1f} s until nothing was left")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_worker_that_is_asked_to_end_takes_its_slots_along(
    script, cluster, tmp_path, number, code
):
    worker = cluster.scheduler().worker()
    mark = tmp_path / "mark"
    script(
        f"a=(S.Act(act='litter', arg={str(mark)!r}), {{}})",
        tmp_path / "store",
        executor=cluster.executor,
    )
    wait_for(mark.exists, 60)
    worker.send_signal(number)
    assert worker.wait(15) == code
    wait_for(lambda: nothing_left(mark), 5)
    assert "Traceback" not in (tmp_path / "process1.log").read_text()


def test_a_scheduler_that_is_not_there_is_told_with_what_to_do(bench, chain, monkeypatch):
    monkeypatch.setattr("tapml.pools.dask._CONNECT_S", 1.0)
    with pytest.raises(
        EnvironmentalError, match="no dask scheduler answers at tcp://127"
    ) as caught:
        bench.run(chain(), executor=Dask(address="tcp://127.0.0.1:9"), jobs=None)
    assert "dask scheduler --host" in caught.value.hint


def test_a_scheduler_without_workers_is_told_with_what_to_do(bench, chain, cluster, monkeypatch):
    monkeypatch.setattr("tapml.pools.dask._PATIENCE_S", 1.0)
    cluster.scheduler()
    with pytest.raises(EnvironmentalError, match="has no worker that runs stages") as caught:
        bench.run(chain(), executor=cluster.executor, jobs=None)
    assert f"tapml worker {cluster.address}" in caught.value.hint


@pytest.mark.parametrize("which", ["scheduler", "workers"])
def test_a_cluster_that_is_lost_is_one_error_and_exit_3(
    bench, stages, graph, cluster, tmp_path, which, monkeypatch
):
    monkeypatch.setattr("tapml.pools.dask._PATIENCE_S", 3.0)
    worker = cluster.scheduler().worker("--jobs", "2")
    mark = tmp_path / "mark"
    made = graph(
        a=(stages.Act(act="sleep", arg=str(mark)), {}),
        other=(stages.Act(act="sleep", arg=str(mark) + "2"), {}),
        b=(stages.Constant(), {"a": ("a", "out")}),
    )

    def lose() -> None:
        wait_for(mark.exists, 60)
        (cluster.processes[0] if which == "scheduler" else worker).kill()

    killer = threading.Thread(target=lose)
    killer.start()
    started = time.monotonic()
    result = bench.run(made, executor=cluster.executor, jobs=None)
    killer.join()
    assert time.monotonic() - started < 60
    assert result.exit_code == 3
    assert sorted(states(result).values()) == ["cancelled", "cancelled", "failed"]
    (failed,) = [step for step in result.steps.values() if step.state == "failed"]
    assert isinstance(failed.error, EnvironmentalError)
    assert cluster.address in failed.error.message


def test_a_worker_with_another_version_is_refused_before_anything_runs(
    bench, stages, graph, cluster, tmp_path
):
    site = tmp_path / "site" / "tapml-9.9.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: tapml\nVersion: 9.9\n")
    env = {**cluster.env, "PYTHONPATH": f"{site.parent}{os.pathsep}{cluster.env['PYTHONPATH']}"}
    cluster.scheduler().worker(env=env)
    counter = tmp_path / "count"
    with pytest.raises(EnvironmentalError, match=r"has tapml 9\.9, this side 0"):
        bench.run(
            graph(text=(stages.Text(counter=str(counter)), {})),
            executor=cluster.executor,
            jobs=None,
        )
    assert not counter.exists()


def test_a_worker_whose_stage_has_another_version_says_so(
    bench, stages, graph, cluster, tmp_path, stage_folder
):
    other = tmp_path / "other"
    other.mkdir()
    text = (
        (stage_folder / "engine_stages.py")
        .read_text()
        .replace("version: ClassVar[int] = 1", "version: ClassVar[int] = 2")
    )
    (other / "engine_stages.py").write_text(text)
    cluster.scheduler().worker(env={**cluster.env, "PYTHONPATH": str(other)})
    result = bench.run(graph(a=(stages.Text(), {})), executor=cluster.executor, jobs=None)
    assert result.exit_code == 3
    assert "text's version 1 → 2" in result.steps["a"].error.message
    assert bench.plan(graph(a=(stages.Text(), {})))["a"].state == "run"


def test_a_stage_that_a_worker_cannot_import_fails_with_the_reason(bench, chain, cluster):
    cluster.scheduler().worker(env={**cluster.env, "PYTHONPATH": ""})
    result = bench.run(chain(), executor=cluster.executor, jobs=None)
    assert result.exit_code == 1
    assert "could not load it: ModuleNotFoundError" in result.steps["text"].error.message
    assert "engine_stages" in result.steps["text"].error.message


def test_a_stage_on_a_worker_waits_for_who_has_its_machine(bench, stages, graph, cluster):
    from tapml.admission import Machine

    cluster.scheduler().worker()
    other = Machine(1, "somebody else")
    assert other.enter(stages.Alone.resources)
    threading.Timer(3, lambda: other.leave(stages.Alone.resources)).start()
    result = bench.run(graph(a=(stages.Text(), {})), executor=cluster.executor, jobs=None)
    assert result.exit_code == 0
    notes = [getattr(event, "note", "") for event in bench.events]
    assert "waits for somebody else: the machine is in use" in notes


def test_workers_with_stores_of_their_own_work_through_the_shared_cache(
    bench, chain, stages, graph, cluster, tmp_path
):
    def connect() -> None:
        settings, root = RemoteCache(url=str(tmp_path / "shared")), tmp_path / "store"
        bench.store = Store(root, remote=remote.connect(settings, root))

    connect()
    cluster.scheduler().worker("--jobs", "1", "--store", str(tmp_path / "one"))
    cluster.worker("--jobs", "1", "--store", str(tmp_path / "two"))
    assert f"store {tmp_path / 'two'}" in cluster.told
    bench.run(graph(text=(stages.Text(), {})))  # what is here already goes there for them
    result = bench.run(chain(), executor=cluster.executor, jobs=None)
    assert states(result) == {"text": "hit", "other": "ran", "join": "ran", "last": "ran"}
    assert bench.text(result, "join") == "helloother!"
    assert "joined helloother!" in result.steps["join"].log.read_text()
    assert not list((tmp_path / "store" / "ac").glob("join/*"))
    connect()  # as the next run does
    assert set(states(bench.run(chain())).values()) == {"hit"}
    bad = bench.run(graph(a=(stages.Act(act="raise"), {})), executor=cluster.executor, jobs=None)
    assert bad.steps["a"].error.message == "ValueError: the sky fell"
    assert "Traceback" in bad.steps["a"].log.read_text()
    assert not [path for name in ("one", "two") for path in (tmp_path / name / "tmp").glob("act*")]


def test_a_worker_with_a_store_of_its_own_needs_a_shared_cache(bench, chain, cluster, tmp_path):
    cluster.scheduler().worker("--store", str(tmp_path / "own"))
    result = bench.run(chain(), executor=cluster.executor, jobs=None)
    assert result.exit_code == 3
    assert "no shared cache" in result.steps["text"].error.message


def test_a_timing_stage_goes_to_a_machine_like_ours_or_is_refused(
    bench, stages, graph, cluster, monkeypatch
):
    cluster.scheduler().worker()
    made = graph(a=(stages.Alone(act="nothing"), {}))
    assert bench.run(made, executor=cluster.executor, jobs=None).exit_code == 0
    ours = {"cpu": "another CPU", "cores": 1, "threads": 1}
    monkeypatch.setattr("tapml.host.fingerprint", lambda: ours)
    with pytest.raises(EnvironmentalError, match=r"\(another CPU\), and no worker has the same"):
        bench.run(made, executor=cluster.executor, jobs=None)


def test_a_stage_that_no_worker_has_room_for_is_refused_before_anything_runs(
    bench, stages, graph, cluster, tmp_path
):
    cluster.scheduler().worker("--memory", "100")
    counter = tmp_path / "count"
    made = graph(text=(stages.Text(counter=str(counter)), {}), big=(stages.Big(act="nothing"), {}))
    with pytest.raises(EnvironmentalError, match=r"stage big needs 300 MiB of memory \(100 there"):
        bench.run(made, executor=cluster.executor, jobs=None)
    assert not counter.exists()


def test_a_cluster_with_tls_works_and_refuses_who_has_none(bench, chain, cluster, tmp_path):
    made = distributed.Security.temporary()
    (tmp_path / "ca.pem").write_text(made.tls_ca_file)
    (tmp_path / "key.pem").write_text(made.tls_client_key)
    ca, key = str(tmp_path / "ca.pem"), str(tmp_path / "key.pem")
    cluster.tls = ("--tls-ca-file", ca, "--tls-cert", ca, "--tls-key", key)
    cluster.scheduler().worker()
    assert cluster.address.startswith("tls://")
    safe = Dask(address=cluster.address, security=Security(ca_file=ca, cert=ca, key=key))
    assert bench.run(chain(), executor=safe, jobs=None).exit_code == 0
    with pytest.raises(EnvironmentalError, match="no dask scheduler answers"):
        bench.run(chain(text="new"), executor=cluster.executor, jobs=None)


def test_a_crash_of_a_worker_process_twice_is_a_worker_error(bench, stages, graph, cluster):
    cluster.scheduler().worker()
    result = bench.run(
        graph(bad=(stages.Act(act="segfault"), {})), executor=cluster.executor, jobs=None
    )
    assert isinstance(result.steps["bad"].error, WorkerError)
    assert result.steps["bad"].error.signal == "SIGSEGV"
    assert "do_segfault" in result.steps["bad"].log.read_text()
