"""A cache that machines share, in a folder: read through, written behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_cache import Machines, files, objects, place_of

from tapml import host, mask, remote
from tapml.errors import EnvironmentalError, RecipeError
from tapml.remote import place, transfer
from tapml.remote.outbox import Outbox
from tapml.settings import Engine, RemoteCache, remote_cache
from tapml.store import DamagedError, Store
from tapml.store.record import decode
from tapml.store.verification import verify


def states(result) -> dict[str, str]:
    return {name: step.state for name, step in result.steps.items()}


def wheres(plan) -> dict[str, str | None]:
    return {step.name: step.where for step in plan}


# --- read through


def test_what_one_machine_made_is_a_remote_hit_of_another(machines: Machines, chain) -> None:
    one, two = machines("one"), machines("two")
    assert set(states(one.run(chain())).values()) == {"ran"}
    plan = two.plan(chain())
    assert set(wheres(plan).values()) == {"remote"}
    assert {step.state for step in plan} == {"hit"}
    assert [row["where"] for row in plan.to_data()] == ["remote"] * 4
    result = two.execute(plan)
    assert set(states(result).values()) == {"hit"}
    assert two.text(result, "join") == "helloother!"
    assert two.warnings == []


def test_looking_downloads_no_blob_and_writes_nothing(machines: Machines, chain) -> None:
    machines("one").run(chain())
    two = machines("two")
    two.plan(chain())
    assert not two.store.root.exists()


def test_a_local_result_comes_first_and_asks_nothing_of_the_remote(
    machines: Machines, chain, monkeypatch
) -> None:
    one = machines("one")
    one.run(chain())
    again = machines("one")
    monkeypatch.setattr(place.Place, "open", lambda self: pytest.fail("it was asked"))
    assert set(wheres(again.plan(chain())).values()) == {"local"}
    assert set(states(again.run(chain())).values()) == {"hit"}


def test_only_what_is_read_is_downloaded(machines: Machines, stages, graph) -> None:
    machines("one").run(graph(a=(stages.Text(), {}), b=(stages.Constant(), {"a": ("a", "out")})))
    two = machines("two")
    made = graph(
        a=(stages.Text(), {}),
        b=(stages.Constant(), {"a": ("a", "out")}),
        c=(stages.Reader(text="!"), {"a": ("b", "out")}),
    )
    result = two.run(made)
    assert states(result) == {"a": "hit", "b": "hit", "c": "ran"}
    assert not two.store.blob(result.steps["a"].outputs["out"]).exists()
    assert two.text(result, "c") == "constant!"


def test_worker_processes_fetch_what_they_read_folders_too(
    machines: Machines, stages, graph
) -> None:
    def made(**more):
        return graph(
            a=(stages.Text(), {}), b=(stages.Join(suffix="!"), {"a": ("a", "out")}), **more
        )

    machines("one").run(made())
    two = machines("two")
    result = two.run(made(c=(stages.Reader(text="?"), {"a": ("b", "folder")})), jobs=1)
    assert states(result) == {"a": "hit", "b": "hit", "c": "ran"}
    assert two.text(result, "c") == "hello!?"
    assert two.warnings == []


def test_records_of_many_stages_are_asked_for_at_once(
    machines: Machines, stages, graph, monkeypatch
) -> None:
    made = graph(**{f"s{i}": (stages.Text(text=str(i)), {}) for i in range(40)})
    machines("one").run(made)
    two = machines("two")
    assert two.store.remote is not None
    at_once, most, lock = 0, 0, threading.Lock()
    record = remote.Remote._record

    def slowly(self, action):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return record(self, action)

    monkeypatch.setattr(remote.Remote, "_record", slowly)
    assert set(wheres(two.plan(made)).values()) == {"remote"}
    assert most >= 8


def test_an_answer_is_not_asked_for_twice(machines: Machines, chain, monkeypatch) -> None:
    one = machines("one")
    one.plan(chain())
    monkeypatch.setattr(remote.Remote, "_record", lambda self, action: pytest.fail("asked again"))
    one.plan(chain())


def test_a_forced_stage_runs_and_its_new_result_replaces_the_old_one(
    machines: Machines, chain
) -> None:
    machines("one").run(chain())
    two = machines("two")
    result = two.run(chain(), how={"force": ["text"]})
    assert states(result)["text"] == "ran"
    record = decode((machines.folder / "ac" / "text" / result.steps["text"].key).read_bytes())
    assert record is not None
    assert record.made_at == result.steps["text"].made_at


# --- what is damaged there


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_a_record_is_a_miss_with_a_note_and_is_mended(
    machines: Machines, chain
) -> None:
    key = machines("one").run(chain()).steps["text"].key
    path = machines.folder / "ac" / "text" / key
    flip(path)
    two = machines("two")
    result = two.run(chain())
    assert states(result)["text"] == "ran"
    assert "its record in the shared cache was damaged; made again" in result.steps["text"].notes
    assert decode(path.read_bytes()) is not None
    assert wheres(machines("three").plan(chain()))["text"] == "remote"


def test_a_record_under_another_name_is_a_miss(machines: Machines, stages, graph) -> None:
    one = machines("one")
    key = one.run(graph(a=(stages.Text(text="one"), {}))).steps["a"].key
    other = graph(a=(stages.Text(text="two"), {}))
    wanted = one.plan(other)["a"].key
    assert wanted is not None
    folder = machines.folder / "ac" / "text"
    (folder / wanted).write_bytes((folder / key).read_bytes())
    result = machines("two").run(other)
    assert states(result) == {"a": "ran"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("output", ["out", "folder"])
@pytest.mark.parametrize("jobs", [0, 1])
def test_a_blob_that_is_damaged_there_is_made_again_and_mended(
    machines: Machines, stages, graph, damage: str, output: str, jobs: int
) -> None:
    def made(**more):
        return graph(
            a=(stages.Text(), {}), b=(stages.Join(suffix="!"), {"a": ("a", "out")}), **more
        )

    one = machines("one")
    first = one.run(made())
    digest = first.steps["b"].outputs[output]
    digest = (one.store.tree(digest) or {"deep/out": digest})["deep/out"]
    blob = machines.folder / "cas" / digest[:2] / digest
    match damage:
        case "flip":
            flip(blob)
        case "truncate":
            blob.write_bytes(blob.read_bytes()[:-2])
        case _:
            blob.unlink()
    two = machines("two")
    result = two.run(made(c=(stages.Reader(text="?"), {"a": ("b", output)})), jobs=jobs)
    assert states(result) == {"a": "hit", "b": "ran", "c": "ran"}
    assert two.text(result, "c") == "hello!?"
    assert two.warnings == []
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == digest
    assert not verify(two.store)


def test_a_blob_that_rotted_here_is_fetched_again(machines: Machines, chain, tmp_path) -> None:
    one = machines("one")
    digest = one.run(chain()).steps["text"].outputs["out"]
    blob = one.store.blob(digest)
    facts = blob.stat()
    blob.chmod(0o644)
    blob.write_bytes(b"hallo")
    os.utime(blob, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    again = machines("one")
    assert again.store.materialise(digest, tmp_path / "out").read_text() == "hello"
    with pytest.raises(DamagedError):
        Store(one.store.root).read("ab" * 32)


# --- written behind


def test_a_read_only_remote_is_read_and_never_written(machines: Machines, chain) -> None:
    machines("one").run(chain())
    before = files(machines.folder)
    two = machines("two", mode="read-only")
    result = two.run(chain(suffix="?"))
    assert states(result) == {"text": "hit", "other": "hit", "join": "ran", "last": "ran"}
    assert files(machines.folder) == before
    assert not (two.store.root / "remote").exists()
    with pytest.raises(EnvironmentalError, match="is read-only here"):
        transfer.push(two.store, [])


def test_a_folder_without_a_cache_is_no_read_only_cache(machines: Machines, chain) -> None:
    machines.folder.mkdir()
    two = machines("two", mode="read-only")
    assert set(states(two.run(chain())).values()) == {"ran"}
    assert len(two.warnings) == 1
    assert "it has no tapml.json" in two.warnings[0]


def test_a_cache_of_another_form_is_left_alone(machines: Machines, chain) -> None:
    machines.folder.mkdir()
    (machines.folder / "tapml.json").write_text('{"format": 99}')
    two = machines("two")
    assert set(states(two.run(chain())).values()) == {"ran"}
    assert "another form" in two.warnings[0]
    assert list(files(machines.folder)) == ["tapml.json"]


def test_what_is_there_already_is_not_uploaded_again(
    machines: Machines, chain, monkeypatch
) -> None:
    machines("one").run(chain())
    two = machines("two", url=str(machines.folder.parent / "other"))
    two.run(chain())  # made on its own
    sent: list[str] = []
    put = place.Place._put

    def counted(self, put_, name):
        sent.append(name)
        put(self, put_, name)

    monkeypatch.setattr(place.Place, "_put", counted)
    moved = machines("two")
    transfer.push(moved.store, transfer.chosen(moved.store, ()))
    blobs = [name for name in sent if name.startswith("cas/")]
    outputs = {row for step in two.plan(chain()) for row in (step.outputs or {}).values()}
    assert not {name.rpartition("/")[2] for name in blobs} & outputs


def test_the_outbox_is_empty_after_a_run_and_keeps_what_could_not_go(
    machines: Machines, chain, monkeypatch
) -> None:
    one = machines("one")
    with monkeypatch.context() as patched:
        patched.setattr(remote.Remote, "upload", lambda *_: (_ for _ in ()).throw(OSError("full")))
        assert one.run(chain()).exit_code == 0
    assert len(one.warnings) == 1
    assert "full" in one.warnings[0]
    waiting = [path.name.partition("@")[0] for path in one.store.root.glob("remote/*/*")]
    assert sorted(waiting) == ["act", "join", "other", "text"]
    machines("one").run(chain())  # all hits; what was left goes up
    assert list(one.store.root.glob("remote/*/*")) == []
    assert set(wheres(machines("two").plan(chain())).values()) == {"remote"}


def test_a_remote_that_takes_no_uploads_is_still_read(
    machines: Machines, chain, monkeypatch
) -> None:
    machines("one").run(chain())

    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(place.Place, "_put", refuse)
    two = machines("two")
    result = two.run(chain(suffix="?"))
    assert states(result) == {"text": "hit", "other": "hit", "join": "ran", "last": "ran"}
    assert two.text(result, "join") == "helloother?"
    assert [text for text in two.warnings if "takes no uploads: Access Denied" in text]
    assert len(two.warnings) == 1


def test_uploads_delay_no_stage(machines: Machines, chain, monkeypatch) -> None:
    gate = threading.Event()
    upload = remote.Remote.upload

    def held(self, record, store):
        gate.wait(60)
        upload(self, record, store)

    monkeypatch.setattr(remote.Remote, "upload", held)
    one = machines("one")
    done: list[str] = []

    def watch(event: Any) -> None:
        done.append(type(event).__name__)
        if done[-1] == "RunFinished":
            gate.set()

    one.execute(one.plan(chain()), emit=watch)
    assert done.count("StageFinished") == 4
    assert set(wheres(machines("two").plan(chain())).values()) == {"remote"}


def test_progress_of_the_uploads_is_said(machines: Machines, chain, monkeypatch, capfd) -> None:
    monkeypatch.setattr("tapml.remote.outbox._SAY_S", 0.05)
    upload = remote.Remote.upload

    def slowly(self, record, store):
        time.sleep(0.3)
        upload(self, record, store)

    monkeypatch.setattr(remote.Remote, "upload", slowly)
    machines("one").run(chain())
    assert f"uploading to {machines.folder}: " in capfd.readouterr().err


# --- push and pull


def test_a_pulled_recipe_needs_the_remote_no_more(machines: Machines, chain) -> None:
    machines("one").run(chain(), jobs=1)
    two = machines("two")
    pulled = transfer.pull_plan(two.store, two.plan(chain()))
    assert pulled == transfer.Pulled(fetched=4)
    alone = machines("two", url=None)
    assert set(wheres(alone.plan(chain())).values()) == {"local"}
    result = alone.run(chain())
    assert set(states(result).values()) == {"hit"}
    log = result.steps["join"].log
    assert log is not None
    assert "joined" in log.read_text()
    assert not verify(alone.store)
    assert transfer.pull_plan(two.store, two.plan(chain())) == transfer.Pulled(here=4)


def test_a_pull_tells_what_is_not_there(machines: Machines, stages, graph) -> None:
    machines("one").run(graph(a=(stages.Text(), {})))
    two = machines("two")
    made = graph(a=(stages.Text(), {}), b=(stages.Constant(), {"a": ("a", "out")}))
    assert transfer.pull_plan(two.store, two.plan(made)) == transfer.Pulled(fetched=1, lacking=1)


def test_results_made_without_a_remote_are_pushed_by_stage_and_all(
    machines: Machines, chain
) -> None:
    machines("one", url=None).run(chain())
    one = machines("one")
    assert transfer.push(one.store, transfer.chosen(one.store, ["text"])) == 1
    assert [path.name for path in (machines.folder / "ac").iterdir()] == ["text"]
    assert transfer.push(one.store, transfer.chosen(one.store, ())) == 4
    assert set(wheres(machines("two").plan(chain())).values()) == {"remote"}


def test_pushing_to_nowhere_says_how_to_name_a_place(store: Store) -> None:
    with pytest.raises(RecipeError, match="no shared cache is set") as caught:
        transfer.push(store, [])
    assert "TAPML_REMOTE" in caught.value.hint


def test_every_object_of_the_remote_is_what_its_name_says(machines: Machines, chain) -> None:
    machines("one").run(chain())
    found = objects(machines.folder)
    assert len(found) >= 8
    for name, data in found.items():
        assert place_of(name, data)


# --- timings of another machine


def test_what_another_machine_made_is_foreign(machines: Machines, chain, monkeypatch) -> None:
    one = machines("one")
    with monkeypatch.context() as patched:
        patched.setattr(host, "machine", lambda: "another")
        assert not one.run(chain()).steps["text"].foreign
    result = machines("two").run(chain())
    assert result.steps["text"].foreign
    assert result.steps["text"].made_on["machine"] == "another"


# --- settings


def test_the_environment_comes_before_the_file(monkeypatch, tmp_path) -> None:
    engine = Engine(cache=RemoteCache(url="there", mode="read-only"))
    file = tmp_path / "workflows.yaml"
    monkeypatch.delenv("TAPML_REMOTE", raising=False)
    assert remote_cache(engine, file) == RemoteCache(url=f"{tmp_path}/there", mode="read-only")
    assert remote_cache(Engine(), file) is None
    monkeypatch.setenv("TAPML_REMOTE", "s3://bucket/prefix")
    assert remote_cache(engine, file) == RemoteCache(url="s3://bucket/prefix")
    monkeypatch.setenv("TAPML_REMOTE_MODE", "read-only")
    assert remote_cache(engine, file) == RemoteCache(url="s3://bucket/prefix", mode="read-only")
    monkeypatch.setenv("TAPML_REMOTE_MODE", "readonly")
    with pytest.raises(RecipeError, match="did you mean 'read-only'"):
        remote_cache(engine, file)


def test_an_unknown_protocol_is_a_mistake_of_the_user(tmp_path) -> None:
    with pytest.raises(RecipeError, match="fsspec knows no protocol 's4'"):
        remote.connect(RemoteCache(url="s4://bucket"), tmp_path)


@pytest.mark.parametrize(
    ("package", "url", "mend"),
    [
        ("fsspec", "/some/folder", "pip install 'tapml[remote]'"),
        ("s3fs", "s3://user:hunter22@bucket/prefix", "pip install 'tapml[s3]'"),
    ],
)
def test_a_missing_package_is_exit_3_with_the_command_that_mends_it(
    monkeypatch, tmp_path, package: str, url: str, mend: str
) -> None:
    import importlib.util

    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    with pytest.raises(EnvironmentalError, match=f"{package}, which is not installed") as caught:
        remote.connect(RemoteCache(url=url), tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.hint == mend
    assert "hunter22" not in str(caught.value)


def test_without_a_remote_its_packages_are_not_imported(tmp_path) -> None:
    code = (
        "import sys\nfrom tapml import executor, plan\nfrom tapml.remote import transfer\n"
        "assert not {'fsspec', 's3fs'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# --- secrets


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("https://me:secret@host:8080/a?sig=abc#part", "https://host:8080/a"),
        ("https://host?sig=abc", "https://host"),
        ("sftp://me@host/a", "sftp://host/a"),
        ("simplecache::s3://key:secret@bucket", "simplecache::s3://bucket"),
        ("/a/folder", "/a/folder"),
    ],
)
def test_an_address_has_nothing_secret(url: str, bare: str) -> None:
    assert mask.bare(url) == bare


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach https://me:pass%40word@host/x?sig=signature99",
        "login failed: pass@word",
        "bad signature signature99 of me",
    ],
)
def test_an_error_of_the_remote_has_nothing_secret(tmp_path, text: str) -> None:
    url = "https://me:pass%40word@host/x?sig=signature99"
    warnings: list[str] = []
    far = remote.connect(RemoteCache(url=url), tmp_path, warnings.append)
    assert far is not None
    far.failed(OSError(text))
    told = warnings[0] + far.down() + "".join(map(str, files(tmp_path).values()))
    assert "https://host/x" in told
    for secret in ("pass@word", "pass%40word", "signature99"):
        assert secret not in told


def test_the_record_and_the_journal_of_a_run_do_not_name_the_remote(
    machines: Machines, chain
) -> None:
    machines("one").run(chain())
    two = machines("two")
    result = two.run(chain())
    written = b"".join(
        (result.folder / name).read_bytes() for name in ("events.jsonl", "plan.json")
    )
    assert str(machines.folder).encode() not in written
    assert json.loads((result.folder / "plan.json").read_text())[0]["where"] == "remote"


def test_what_killed_uploads_left_is_removed_after_a_day(machines: Machines, chain) -> None:
    one = machines("one")
    one.run(chain())
    drafts = machines.folder / "tmp"
    for name, age_s in (("old", 90_000), ("new", 0)):
        (drafts / name).write_bytes(b"half")
        os.utime(drafts / name, (time.time() - age_s,) * 2)
    transfer.push(one.store, [])
    assert [path.name for path in drafts.iterdir()] == ["new"]


def test_what_is_no_entry_of_the_outbox_is_left_alone(machines: Machines, chain) -> None:
    one = machines("one")
    one.run(chain())
    (outbox,) = one.store.root.glob("remote/*")
    for name in ("notes.txt", f"../up@{'a' * 64}".replace("/", "-"), "text@short"):
        (outbox / name).touch()
    machines("one").run(chain())
    assert len(list(outbox.iterdir())) == 3
    assert one.warnings == []


def test_a_dead_remote_is_remembered_where_nothing_can_be_written(tmp_path: Path) -> None:
    warnings: list[str] = []
    settings = RemoteCache(url=str(tmp_path / "none"), mode="read-only")
    far = remote.connect(settings, Path("/proc/store"), warnings.append)
    assert far is not None
    for key in ("a", "b"):
        assert far.lookup("text", key * 64) is None
    assert far.offer() is None
    assert len(warnings) == 1


def test_an_outbox_without_a_remote_does_nothing(store: Store) -> None:
    outbox = Outbox(store)
    outbox.resume()
    outbox.finish()
    assert not store.root.exists()
