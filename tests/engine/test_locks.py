"""Who waits is told for whom: never itself, never a run that has ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from tapml.locks import FileLock, MachineLock


@pytest.fixture
def dead(tmp_path: Path):
    """Leaves what a killed run leaves: the text of a lock that nobody holds."""

    def leave(path: Path) -> None:
        code = (
            "import os, sys; from pathlib import Path; from tapml.locks import FileLock; "
            "FileLock(Path(sys.argv[1]), 'run dead').acquire(); os._exit(9)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert done.returncode == 9
        assert "run dead" in path.read_text()

    return leave


def test_the_holder_of_a_lock_is_named(tmp_path):
    one, two = FileLock(tmp_path / "lock", "run one"), FileLock(tmp_path / "lock", "run two")
    assert one.acquire()
    assert not two.acquire()
    assert two.holder() == "run one"
    one.release()
    assert two.acquire()


def test_two_stages_of_one_run_do_not_call_each_other_a_run(tmp_path):
    one, two = FileLock(tmp_path / "lock", "run one"), FileLock(tmp_path / "lock", "run one")
    assert one.acquire()
    assert not two.acquire()
    assert two.holder() == "another stage of this run"


def test_a_text_that_a_killed_run_left_is_not_believed(tmp_path, dead):
    dead(tmp_path / "lock")
    assert FileLock(tmp_path / "lock", "run two").holder() == "another run"


def test_who_shares_the_machine_is_named_to_who_wants_it_alone(tmp_path):
    alone, one, two = (MachineLock(tmp_path, f"run {name}") for name in ("alone", "one", "two"))
    assert alone.acquire(alone=True)  # it was here itself before, which is no reason to name it
    alone.release()
    assert one.acquire(alone=False)
    assert two.acquire(alone=False)
    assert not alone.acquire(alone=True)
    assert alone.holder() == "run two"
    two.release()
    assert alone.holder() == "another run"
    one.release()
    assert alone.acquire(alone=True)


def test_who_waits_to_have_the_machine_alone_is_named_to_newcomers(tmp_path):
    shares, waits, comes = (MachineLock(tmp_path, f"run {name}") for name in "abc")
    assert shares.acquire(alone=False)
    assert not waits.acquire(alone=True)
    assert not comes.acquire(alone=False)
    assert comes.holder() == "run b"
    assert not comes.acquire(alone=True)
    assert comes.holder() == "run b"
    shares.release()
    assert waits.acquire(alone=True)
    assert not comes.acquire(alone=False)
    assert comes.holder() == "run b"
    waits.release()
    assert comes.acquire(alone=False)


def test_a_killed_run_is_not_named_while_others_share_the_machine(tmp_path, dead):
    dead(tmp_path / "tapml-machine.lock")
    (tmp_path / "tapml-machine.lock").chmod(0o666)
    shares, waits = MachineLock(tmp_path, "run a"), MachineLock(tmp_path, "run b")
    assert shares.acquire(alone=False)
    assert not waits.acquire(alone=True)
    assert waits.holder() == "run a"
