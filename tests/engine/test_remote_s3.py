"""A cache that machines share, in an S3 server that moto runs as a process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import SECRET, ObjectStore
from shared_cache import Machines, files, place_of

from tapml.remote import transfer

URL = f"s3://{ObjectStore.bucket}/deep/prefix"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    made = ObjectStore(tmp_path_factory.mktemp("moto") / "log")
    yield made
    made.stop()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The environment of a client, and a client."""
    import s3fs  # takes a second

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    client.ls(server.bucket)  # connects while the environment is that of this server
    yield client
    for path in client.find(server.bucket):
        client.rm_file(path)


def states(result) -> dict[str, str]:
    return {name: step.state for name, step in result.steps.items()}


# in this process, and in a worker, which brings up its own client
by_place = pytest.mark.parametrize("jobs", [0, pytest.param(1, marks=pytest.mark.slow)])


@by_place
def test_a_result_goes_up_and_comes_down(machines: Machines, s3, stages, graph, jobs: int) -> None:
    def made(**more):
        return graph(
            a=(stages.Text(), {}), b=(stages.Join(suffix="!"), {"a": ("a", "out")}), **more
        )

    assert set(states(machines("one", URL).run(made())).values()) == {"ran"}
    prefix = URL.removeprefix("s3://")
    there = {path.removeprefix(f"{prefix}/"): s3.cat_file(path) for path in s3.find(prefix)}
    assert there.pop("tapml.json") == b'{"format": 1}'
    assert len(there) == 5  # two records, and what they name
    assert all(place_of(name, data) for name, data in there.items())
    two = machines("two", URL)
    plan = two.plan(made(c=(stages.Reader(text="?"), {"a": ("b", "folder")})))
    assert {step.name: step.where for step in plan} == {"a": "remote", "b": "remote", "c": None}
    assert not two.store.root.exists()
    result = two.execute(plan, jobs=jobs)
    assert states(result) == {"a": "hit", "b": "hit", "c": "ran"}
    assert two.text(result, "c") == "hello!?"
    assert two.warnings == []


@pytest.mark.slow
def test_an_object_of_several_parts_survives(machines: Machines, s3, tmp_path) -> None:
    from tapml.store.record import Record

    data = os.urandom(1 << 20) * 20
    one, two = machines("one", URL), machines("two", URL)
    record = Record("text", "ab" * 32, {}, {"out": one.store.put_bytes(data)})
    record = one.store.publish(record)
    assert one.store.remote is not None
    one.store.remote.upload(record, one.store)
    assert two.store.read(record.outputs["out"]) == data


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_object_is_made_again_and_mended(
    machines: Machines, s3, chain, damage: str
) -> None:
    first = machines("one", URL).run(chain())
    digest = first.steps["join"].outputs["out"]
    path = f"{URL.removeprefix('s3://')}/cas/{digest[:2]}/{digest}"
    data = s3.cat_file(path)
    s3.rm_file(path)
    if damage != "remove":
        s3.pipe_file(path, data[:-1] if damage == "truncate" else b"X" + data[1:])
    two = machines("two", URL)
    result = two.run(chain(act="nothing", arg="other"))
    assert states(result) == {"text": "hit", "other": "hit", "join": "ran", "last": "ran"}
    assert s3.cat_file(path) == data
    assert two.warnings == []


def test_push_and_pull(machines: Machines, s3, chain) -> None:
    machines("one", None).run(chain())
    one = machines("one", URL)
    assert transfer.push(one.store, transfer.chosen(one.store, ())) == 4
    two = machines("two", URL)
    assert transfer.pull_plan(two.store, two.plan(chain())).fetched == 4
    assert set(states(machines("two", None).run(chain())).values()) == {"hit"}


def test_a_bucket_that_is_not_there_costs_one_warning(machines: Machines, s3, chain) -> None:
    for mode in ("read-write", "read-only"):
        one = machines(mode, "s3://nowhere/prefix", mode)
        started = time.monotonic()
        assert set(states(one.run(chain())).values()) == {"ran"}
        assert time.monotonic() - started < 5
        assert len(one.warnings) == 1
        assert "s3://nowhere/prefix" in one.warnings[0]


@pytest.mark.faults
def test_a_server_that_forbids_costs_one_warning(
    machines: Machines, s3, chain, tmp_path, monkeypatch
) -> None:
    closed = ObjectStore(tmp_path / "log", closed=True)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", closed.endpoint)
        one = machines("one", URL)
        assert set(states(one.run(chain())).values()) == {"ran"}
        assert len(one.warnings) == 1
        assert "403" in one.warnings[0] or "Forbidden" in one.warnings[0]
    finally:
        closed.stop()


@pytest.mark.slow
@by_place
def test_keys_are_nowhere_in_what_is_written(
    machines: Machines, s3, chain, tmp_path, capfd, jobs: int
) -> None:
    one = machines("one", URL)
    one.run(chain(), jobs=jobs)
    two = machines("two", f"s3://user:{SECRET}@bucket/prefix")
    two.run(chain(), jobs=jobs)
    assert len(two.warnings) == 1
    said = "".join((*one.warnings, *two.warnings, *capfd.readouterr()))
    said += "".join(map(str, (*one.events, *two.events)))
    written = b"".join((files(tmp_path) | {"said": said.encode()}).values())
    there = b"".join(s3.cat_file(path) for path in s3.find(ObjectStore.bucket))
    assert len(written) > 10_000
    for secret in (SECRET, os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret.encode() not in written + there
    assert Path(tmp_path / "two").exists()
