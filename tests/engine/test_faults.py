"""Kills, crashes, full disks and flipped bits, in real processes."""

import errno
import importlib
import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from processes import alive, everything_ended, wait_for

from tapml.errors import EnvironmentalError, WorkerError
from tapml.store import Store
from tapml.store.verification import verify

pytestmark = pytest.mark.faults


def states(result):
    return {name: step.state for name, step in result.steps.items()}


def flip(path: Path, *, keep_time: bool = False) -> None:
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


# --- crashes touch one stage


@pytest.mark.parametrize(
    ("act", "signal_name", "told"),
    [("kill", "SIGKILL", "probably out of memory"), ("segfault", "SIGSEGV", "killed by SIGSEGV")],
)
def test_a_crash_is_tried_again_once_then_fails_that_stage_alone(
    bench, stages, graph, tmp_path, act, signal_name, told
):
    mark = tmp_path / "mark"
    result = bench.run(
        graph(
            bad=(stages.Act(act=act, mark=str(mark)), {}),
            below=(stages.Constant(), {"a": ("bad", "out")}),
            good=(stages.Text(), {}),
        ),
        jobs=2,
    )
    assert states(result) == {"bad": "failed", "below": "cancelled", "good": "ran"}
    error = result.steps["bad"].error
    assert isinstance(error, WorkerError)
    assert error.signal == signal_name
    assert told in error.message
    assert mark.read_text() == "xx"
    assert result.exit_code == 1
    assert any("run again" in note for note in result.steps["bad"].notes)


def test_the_message_of_a_killed_worker_names_its_peak_memory(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="kill"), {})), jobs=1)
    assert result.steps["bad"].rss_mib > 10
    assert f"peak {result.steps['bad'].rss_mib:.0f} MiB" in result.steps["bad"].error.message


def test_a_crash_leaves_the_python_stack_in_the_log(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="segfault"), {})), jobs=1)
    text = result.steps["bad"].log.read_text()
    assert "before the fault" in text
    assert "do_segfault" in text


def test_a_crash_leaves_what_the_c_library_said_in_the_log(bench, stages, graph):
    result = bench.run(graph(bad=(stages.Act(act="abort"), {})), jobs=1)
    text = result.steps["bad"].log.read_text()
    assert "free(): invalid pointer" in text
    assert "do_abort" in text
    assert result.steps["bad"].error.signal == "SIGABRT"


@pytest.fixture
def memory_group():
    """A control group with 100 MiB, or nothing where this user may make none."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup", root, f"tapml-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(100 << 20))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        yield group
        wait_for(lambda group=group: not (group / "cgroup.procs").read_text())
        group.rmdir()
        return
    yield None


def test_a_stage_that_takes_too_much_memory_is_named_with_its_peak(
    bench, stages, graph, memory_group
):
    """By the kernel's own hand where control groups can be made, else by ours."""
    made = graph(greedy=(stages.Act(act="hoard", arg=str(memory_group or "")), {}))
    planned = bench.plan(made)
    if memory_group is None:
        killed = threading.Thread(target=kill_when_large, args=(bench.store.root, 96))
        killed.start()
    result = bench.execute(planned, jobs=1)
    error = result.steps["greedy"].error
    assert isinstance(error, WorkerError)
    assert error.signal == "SIGKILL"
    certain = ": out of memory (peak" if memory_group else ": probably out of memory (peak"
    assert certain in error.message
    assert result.steps["greedy"].rss_mib > 60
    assert any("killed by SIGKILL" in note for note in result.steps["greedy"].notes)


def kill_when_large(root: Path, mib: int) -> None:
    """Kills the stage's process twice, as the kernel would."""
    for _ in range(2):
        (path,) = wait_for(lambda: [*root.glob("tmp/*/progress.jsonl")])
        wait_for(lambda path=path: f'"done": {mib}' in path.read_text())
        os.kill(json.loads(path.read_text().splitlines()[0])["pid"], signal.SIGKILL)
        wait_for(lambda path=path: not path.exists())


def test_running_out_of_address_space_is_the_stages_own_error(bench, stages, graph):
    result = bench.run(graph(greedy=(stages.Act(act="limit"), {})), jobs=1)
    error = result.steps["greedy"].error
    assert error.message.startswith("out of memory (peak ")
    assert "in do_limit" in error.hint
    assert not isinstance(error, WorkerError)


def test_the_limit_of_a_run_ends_a_stage_that_sets_none(bench, stages, graph, tmp_path):
    slow = stages.Act(act="sleep", arg=str(tmp_path / "pid"))
    result = bench.run(graph(slow=(slow, {})), jobs=1, timeout_s=0.5)
    assert "took longer than 0.5 s" in result.steps["slow"].error.message
    assert not result.steps["slow"].notes  # not tried again


def test_a_stage_that_crashes_once_succeeds(bench, stages, graph, tmp_path):
    made = graph(bad=(stages.Act(act="kill", times=1, mark=str(tmp_path / "mark")), {}))
    assert states(bench.run(made, jobs=1)) == {"bad": "ran"}


def test_a_stage_over_its_time_limit_is_ended_and_the_next_runs(bench, stages, graph, tmp_path):
    started = tmp_path / "started"
    result = bench.run(
        graph(slow=(stages.Hasty(act="sleep", arg=str(started)), {}), good=(stages.Text(), {})),
        jobs=1,
    )
    assert states(result) == {"slow": "failed", "good": "ran"}
    assert "took longer than 0.5 s" in result.steps["slow"].error.message
    assert not Path(f"/proc/{started.read_text()}").exists()


def test_a_stage_that_a_worker_cannot_import_fails_with_the_reason(
    bench, stages, graph, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "gone_stages.py"
    path.write_text("from engine_stages import Text\nclass Gone(Text): ...\n")
    made = graph(bad=(importlib.import_module("gone_stages").Gone(), {}))
    planned = bench.plan(made)
    path.unlink()
    result = bench.execute(planned, jobs=1)
    assert states(result) == {"bad": "failed"}
    assert "No module named 'gone_stages'" in str(result.steps["bad"].error)


# --- the end of a run


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_no_process_outlives_a_run_that_is_stopped(script, tmp_path, number, code):
    mark = tmp_path / "mark"
    process = script(f"a=(S.Act(act='litter', arg={str(mark)!r}), {{}})", tmp_path / "store")
    wait_for(mark.exists)
    assert len(alive(str(mark))) >= 4
    process.send_signal(number)
    assert process.wait(10) == code
    wait_for(lambda: everything_ended(mark), 5)


def test_no_process_outlives_a_worker_that_is_killed(bench, stages, graph, tmp_path):
    mark = tmp_path / "mark"

    def kill() -> None:
        for _ in range(2):
            wait_for(mark.exists)
            pid = int(mark.read_text())
            mark.unlink()
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = bench.run(graph(bad=(stages.Act(act="litter", arg=str(mark)), {})), jobs=1)
    killer.join()
    assert states(result) == {"bad": "failed"}
    assert not alive(str(mark))


def test_no_process_is_left_after_a_run_that_ends_well(script, tmp_path):
    process = script("a=(S.Text(), {})", tmp_path / "store", jobs=2)
    assert process.wait(30) == 0
    wait_for(lambda: everything_ended(tmp_path / "mark"), 5)


def test_an_interrupted_run_says_what_was_running_and_what_never_ran(script, tmp_path):
    mark = tmp_path / "mark"
    code = (
        f"a=(S.Act(act='sleep', arg={str(mark)!r}), {{}}), b=(S.Constant(), {{'a': ('a', 'out')}})"
    )
    process = script(code, tmp_path / "store")
    wait_for(mark.exists)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "{'a': 'interrupted', 'b': 'cancelled'}" in output


def test_a_second_interrupt_ends_the_run_at_once(script, tmp_path):
    mark = tmp_path / "mark"
    process = script(f"a=(S.Act(act='sleep', arg={str(mark)!r}), {{}})", tmp_path / "store")
    wait_for(mark.exists)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    wait_for(lambda: everything_ended(mark), 5)


def test_a_killed_run_is_taken_up_where_it_was(script, tmp_path, stages, graph, bench):
    mark = tmp_path / "mark"

    def code(name: str) -> str:
        act = (
            f"{name}.Act(act='sleep', arg={str(mark)!r}, times=1, mark={str(tmp_path / 'count')!r})"
        )
        return f"a=({name}.Text(), {{}}), b=({act}, {{'a': ('a', 'out')}})"

    process = script(code("S"), bench.store.root)
    wait_for(mark.exists)
    process.kill()
    process.wait(5)
    act = stages.Act(act="sleep", arg=str(mark), times=1, mark=str(tmp_path / "count"))
    made = graph(a=(stages.Text(), {}), b=(act, {"a": ("a", "out")}))
    assert states(bench.run(made, jobs=1)) == {"a": "hit", "b": "ran"}
    assert not verify(bench.store)


# --- two runs at once


def test_two_runs_of_one_recipe_do_the_work_once(script, tmp_path):
    counter, store = tmp_path / "count", tmp_path / "store"
    act = f"S.Act(act='nap', mark={str(counter)!r})"
    both = [script(f"a=({act}, {{}})", store, jobs=1) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert counter.read_text() == "x"
    assert sorted("'ran'" in output.splitlines()[-1] for output in outputs) == [False, True]
    assert sum("which is making it" in output for output in outputs) == 1


def test_a_stage_that_times_something_is_alone_on_the_machine(script, tmp_path):
    spans = tmp_path / "spans"
    runs = [
        script(
            f"a=(S.{kind}(act='span', arg={str(spans)!r}), {{}})",
            tmp_path / kind,
        )
        for kind in ("Alone", "Act", "Fresh")
    ]
    outputs = [process.communicate(timeout=60)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 0]
    rows = [line.split() for line in spans.read_text().splitlines()]
    ((begin, end),) = [(float(a), float(b)) for name, a, b in rows if name == "alone"]
    assert all(float(b) <= begin or float(a) >= end for name, a, b in rows if name != "alone")
    assert any("the machine is in use" in output for output in outputs)


# --- disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_no_more_is_exit_3_and_says_where_and_what_to_do(
    bench, stages, graph, number
):
    made = graph(
        text=(stages.Text(), {}),
        full=(stages.Act(act="full_disk", arg=str(number)), {"a": ("text", "out")}),
    )
    result = bench.run(made, jobs=1)
    assert states(result) == {"text": "ran", "full": "failed"}
    error = result.steps["full"].error
    assert isinstance(error, EnvironmentalError)
    assert result.exit_code == 3
    assert str(bench.store.root) in error.message
    assert os.strerror(number) in error.message
    assert "--store" in error.hint
    assert not verify(bench.store)
    assert not list((bench.store.root / "tmp").iterdir())


def test_a_store_that_cannot_be_made_is_exit_3(bench, stages, graph, tmp_path):
    (tmp_path / "file").write_text("")
    bench.store = Store(tmp_path / "file" / "store")
    with pytest.raises(EnvironmentalError, match=r"cannot write .*file"):
        bench.run(graph(text=(stages.Text(), {})))


def test_a_disk_that_fills_up_under_the_journal_is_exit_3(bench, stages, graph, monkeypatch):
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tapml.disk.write_all", full)
    with pytest.raises(EnvironmentalError, match="No space left"):
        bench.run(graph(text=(stages.Text(), {})))


# --- damage in the store


def test_a_flipped_bit_is_noticed_by_the_plan_and_made_again(bench, chain):
    first = bench.run(chain())
    flip(bench.store.blob(first.steps["text"].outputs["out"]))
    result = bench.run(chain())
    assert result.exit_code == 0
    assert states(result) == {"text": "ran", "other": "hit", "join": "hit", "last": "hit"}
    assert "its stored out was damaged or lost; made again" in result.steps["text"].notes
    assert bench.text(result, "text") == "hello"
    assert not verify(bench.store)


@pytest.mark.parametrize("where", ["out", "folder"])
def test_a_bit_that_rotted_unseen_is_noticed_when_it_is_read_and_made_again(
    bench, stages, graph, where
):
    def make(text: str):
        kind = stages.Join(suffix=text)
        return graph(
            text=(stages.Text(), {}),
            join=(stages.Join(suffix="!"), {"a": ("text", "out")}),
            below=(kind, {"a": ("join", "out"), "b": ("join", "out")}),
            reader=(stages.Reader(text=text), {"a": ("join", where)}),
        )

    first = bench.run(make("one"))
    digest = first.steps["join"].outputs[where]
    files = bench.store.tree(digest)
    flip(bench.store.blob(digest if files is None else files["deep/out"]), keep_time=True)
    bench.store._verified.clear()
    result = bench.run(make("two"), jobs=1)
    assert result.exit_code == 0
    assert states(result) == {"text": "hit", "join": "ran", "below": "ran", "reader": "ran"}
    assert any("made again" in note for note in result.steps["join"].notes)
    assert not verify(bench.store)


def test_a_torn_record_is_a_miss_with_a_note(bench, chain):
    first = bench.run(chain())
    folder = bench.store.root / "ac" / "text" / first.steps["text"].key
    (record,) = folder.iterdir()
    data = record.read_bytes()
    record.unlink()
    record.write_bytes(data[: len(data) // 2])
    result = bench.run(chain())
    assert states(result) == {"text": "ran", "other": "hit", "join": "hit", "last": "hit"}
    assert any("was damaged; made again" in note for note in result.steps["text"].notes)


def test_a_lost_blob_is_a_miss(bench, chain):
    first = bench.run(chain())
    bench.store.blob(first.steps["join"].outputs["out"]).unlink()
    assert states(bench.run(chain()))["join"] == "ran"
