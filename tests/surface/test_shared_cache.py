"""The cache that machines share, as commands show it."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_cache import files

from tapml import host, runs

Cli = Callable[..., Any]
FAST = ("--set", "validation.gates.latency_vs={run: peer, max_ratio: 1e9}")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared cache in a folder, set by the environment."""
    monkeypatch.setenv("TAPML_REMOTE", str(tmp_path / "shared"))
    return tmp_path / "shared"


@pytest.fixture
def made_elsewhere(cli: Cli, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`little.yaml` was built by another machine that shares the cache; nothing of it is here."""
    with monkeypatch.context() as patched:
        patched.setattr(host, "machine", lambda: "another")
        assert cli("run", "little.yaml", *FAST).code == 0
    shutil.rmtree("artifacts")


def test_a_plan_tells_remote_from_local(cli: Cli, made_elsewhere: None) -> None:
    done = cli("plan", "little.yaml")
    assert done.code == 0
    assert done.out.count("  remote  ") == 3
    stages = json.loads(cli("plan", "little.yaml", "--json").out)["stages"]
    assert {row["where"] for row in stages} == {"remote"}
    assert {row["state"] for row in stages} == {"hit"}
    assert not list(Path().glob("artifacts/cas/*"))
    assert (
        cli("cache", "pull", "little.yaml").out
        == "3 results fetched, 0 were here, 0 are not there\n"
    )
    assert cli("plan", "little.yaml").out.count("  cached  ") == 3


def test_timings_of_another_machine_come_through_the_remote_and_satisfy_no_gate(
    cli: Cli, made_elsewhere: None
) -> None:
    done = cli("run", "little.yaml", *FAST)
    assert done.code == 4
    assert "timed on another machine" in done.out + done.err
    run = runs.find("last", Path("artifacts").resolve())
    assert run.foreign
    assert {step.state for step in run.steps} == {"hit"}
    assert "another machine" in (run.folder / "report.html").read_text()
    assert json.loads(cli("run", "little.yaml", *FAST, "--json").out)["exit_code"] == 4
    assert cli("run", "little.yaml", "--force", "judge", *FAST).code == 0
    run = runs.find("last", Path("artifacts").resolve())
    assert not run.foreign
    assert [step.state for step in run.steps] == ["hit", "hit", "ran"]
    assert cli("run", "little.yaml", *FAST).code == 0  # its own timing counts from now on


def test_a_bundle_that_is_damaged_there_is_made_again(
    cli: Cli, made_elsewhere: None, shared: Path
) -> None:
    runner = (Path(__file__).parent / "site" / "surface_stages" / "runner.py").read_bytes()
    (library,) = [path for path in shared.glob("cas/*/*") if path.read_bytes() == runner]
    data = library.read_bytes()
    library.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = cli("run", "little.yaml")
    assert done.code == 0, done.err
    run = runs.find("last", Path("artifacts").resolve())
    assert {step.name: step.state for step in run.steps}["pack"] == "ran"
    assert library.read_bytes() == data


def test_push_and_pull_by_name(cli: Cli, tmp_path: Path, monkeypatch) -> None:
    assert cli("run", "little.yaml").code == 0
    monkeypatch.setenv("TAPML_REMOTE", str(tmp_path / "there"))
    assert json.loads(cli("cache", "push", "pack", "--json").out)["pushed"] == 1
    assert cli("cache", "push", "last").out == f"{tmp_path / 'there'}: 3 results are there\n"
    store = Path("artifacts")
    shutil.rmtree(store / "cas")
    shutil.rmtree(store / "ac")
    found = json.loads(cli("cache", "pull", "last", "--json").out)
    assert found == {"fetched": 3, "here": 0, "lacking": 0}
    monkeypatch.delenv("TAPML_REMOTE")
    assert cli("plan", "little.yaml").out.count("  cached  ") == 3
    done = cli("cache", "push", "nothing")
    assert done.code == 2


def test_without_a_remote_push_and_pull_say_how_to_name_one(cli: Cli, monkeypatch) -> None:
    monkeypatch.delenv("TAPML_REMOTE", raising=False)
    for arguments in (("push",), ("pull", "little.yaml")):
        done = cli("cache", *arguments)
        assert done.code == 2
        assert "TAPML_REMOTE=s3://bucket/prefix" in done.err


def test_the_workflow_file_names_the_remote_relative_to_itself(
    cli: Cli, project: Path, monkeypatch
) -> None:
    monkeypatch.delenv("TAPML_REMOTE", raising=False)
    with Path("workflows.yaml").open("a") as out:
        out.write("engine: {cache: {url: shared}}\n")
    assert cli("run", "little.yaml").code == 0
    assert (project / "shared" / "tapml.json").is_file()
    assert "answers, read-write" in cli("doctor").out


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("TAPML_REMOTE_MODE", "readonly", "did you mean 'read-only'?"),
        ("TAPML_REMOTE", "s4://bucket", "fsspec knows no protocol 's4'"),
    ],
)
def test_a_wrong_setting_is_exit_2(
    cli: Cli, shared: Path, monkeypatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    done = cli("plan", "little.yaml")
    assert done.code == 2
    assert told in done.err


def test_no_secret_of_a_url_is_shown_or_written(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    secrets = ("hunter22%23word", "hunter22#word", "signature99")
    url = f"http://anna:{secrets[0]}@127.0.0.1:{port}/cache?sig={secrets[2]}"
    monkeypatch.setenv("TAPML_REMOTE", url)
    said = ""
    for arguments in (
        ("plan", "little.yaml"),
        ("run", "little.yaml"),
        ("run", "little.yaml", "--force", "scale", "--json"),
        ("cache", "push"),
        ("cache", "push", "--json"),
        ("cache", "pull", "little.yaml"),
        ("doctor",),
        ("runs",),
        ("report", "last"),
    ):
        done = cli(*arguments)
        said += done.out + done.err
        if arguments[0] in ("plan", "run"):
            assert done.code == 0
            assert done.err.count("warning: ") == 1
    assert f"http://127.0.0.1:{port}/cache" in said
    written = b"".join(files(tmp_path).values()) + said.encode()
    for secret in secrets:
        assert secret.encode() not in written
