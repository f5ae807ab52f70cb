"""What every backend of joblib has to do for the engine, on two of joblib's own and a stranger."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from joblib import parallel
from joblib.parallel import ParallelBackendBase
from processes import alive, everything_ended, wait_for

from tapml.errors import EnvironmentalError, WorkerError
from tapml.settings import Joblib


class Stranger(ParallelBackendBase):
    """A backend as a package would bring it: futures of the standard library, threads."""

    supports_retrieve_callback = True
    uses_threads = True

    def effective_n_jobs(self, n_jobs):
        return n_jobs

    def configure(self, n_jobs=1, parallel=None, **_):
        self.parallel, self._pool = parallel, ThreadPoolExecutor(n_jobs)
        return n_jobs

    def submit(self, func, callback=None):
        future = self._pool.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out):
        return out.result()

    def abort_everything(self, ensure_ready=True):
        self._pool.shutdown(cancel_futures=True)
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)


@pytest.fixture
def stranger(monkeypatch):
    """A module that registers it, as `register_with` names one."""
    import sys
    import types

    module = types.ModuleType("stranger_backend")
    module.register = lambda: parallel.register_parallel_backend("stranger", Stranger)
    monkeypatch.setitem(sys.modules, "stranger_backend", module)
    yield "stranger_backend:register"
    parallel.BACKENDS.pop("stranger", None)


@pytest.fixture(params=["loky", "threading", "stranger"])
def settings(request, stranger):
    register = stranger if request.param == "stranger" else None
    return Joblib(backend=request.param, register_with=register)


def states(result):
    return {name: step.state for name, step in result.steps.items()}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_backend_gives_what_workers_of_our_own_give(bench, chain, settings, jobs):
    result = bench.run(chain(), executor=settings, jobs=jobs)
    assert states(result) == dict.fromkeys(("text", "other", "join", "last"), "ran")
    assert bench.text(result, "join") == "helloother!"
    assert set(states(bench.run(chain(), executor=settings, jobs=jobs)).values()) == {"hit"}


@pytest.mark.slow
def test_a_failure_on_a_backend_touches_what_is_below_alone(bench, stages, graph, settings):
    result = bench.run(
        graph(
            bad=(stages.Act(act="raise"), {}),
            below=(stages.Constant(), {"a": ("bad", "out")}),
            good=(stages.Text(), {}),
        ),
        executor=settings,
        jobs=2,
    )
    assert states(result) == {"bad": "failed", "below": "cancelled", "good": "ran"}
    assert result.steps["bad"].error.message == "ValueError: the sky fell"


@pytest.mark.slow
def test_no_more_than_jobs_run_at_once_on_a_backend(bench, stages, graph, settings, tmp_path):
    spans = tmp_path / "spans"
    nodes = {
        f"s{n}": (stages.Act(act="span", arg=str(spans), mark=str(tmp_path / f"m{n}")), {})
        for n in range(3)
    }
    assert bench.run(graph(**nodes), executor=settings, jobs=1).exit_code == 0
    rows = sorted(tuple(map(float, line.split()[1:])) for line in spans.read_text().splitlines())
    assert len(rows) == 3
    assert all(one[1] <= two[0] for one, two in pairwise(rows))


@pytest.mark.slow
def test_the_log_of_a_backend_with_processes_has_what_the_stage_printed(bench, chain):
    result = bench.run(chain(), executor=Joblib(backend="loky"), jobs=2)
    assert "joined helloother!" in result.steps["join"].log.read_text()


def test_a_time_limit_that_a_backend_does_not_keep_is_said(bench, stages, graph):
    made = graph(late=(stages.Hasty(act="nap"), {}))
    result = bench.run(made, executor=Joblib(backend="threading"), jobs=1)
    assert result.exit_code == 0
    notes = [getattr(event, "note", "") for event in bench.events]
    assert "its limit of 0.5 s is not enforced on a backend of joblib" in notes


@pytest.mark.slow
def test_a_worker_of_a_backend_that_dies_is_a_crash_and_the_backend_goes_on(
    bench, stages, graph, tmp_path
):
    mark = tmp_path / "mark"
    made = graph(
        bad=(stages.Act(act="kill", mark=str(mark)), {}),
        good=(stages.Text(), {}),
        late=(stages.Constant(), {"a": ("good", "out")}),
    )
    result = bench.run(made, executor=Joblib(backend="loky"), jobs=1)
    assert states(result) == {"bad": "failed", "good": "ran", "late": "ran"}
    assert isinstance(result.steps["bad"].error, WorkerError)
    assert mark.read_text() == "xx"


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_of_a_backend_outlives_the_run(script, tmp_path, number):
    mark = tmp_path / "mark"
    process = script(
        f"a=(S.Act(act='litter', arg={str(mark)!r}), {{}})",
        tmp_path / "store",
        executor=Joblib(backend="loky"),
        jobs=2,
    )
    wait_for(mark.exists)
    assert len(alive(str(mark))) >= 4
    os.kill(process.pid, number)
    process.wait(15)
    wait_for(lambda: everything_ended(mark), 5)


def test_a_backend_that_is_not_there_is_told_with_what_to_do(bench, chain):
    with pytest.raises(EnvironmentalError, match="no backend 'no_such'") as caught:
        bench.run(chain(), executor=Joblib(backend="no_such"), jobs=2)
    assert "register_with" in caught.value.hint
    executor = Joblib(backend="x", register_with="no_such.module:register")
    with pytest.raises(EnvironmentalError, match=re.escape("No module named 'no_such'")):
        bench.run(chain(), executor=executor, jobs=2)
