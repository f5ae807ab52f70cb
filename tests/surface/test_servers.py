"""Tracking against servers: a real one, and such that fail in one way each."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml import runs, settings, tracking
from tapml.errors import TrackingError
from tapml.runs import RunResult
from tapml.settings import Tracking

pytestmark = pytest.mark.slow


@pytest.fixture
def result(project: Path) -> RunResult:
    return tapml.run("little.yaml", jobs=0, track="off")


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that gives every request to `answer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client has gone
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            answer(self)

        do_POST = do_PUT = do_PATCH = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reply(to: BaseHTTPRequestHandler, status: int, body: bytes = b"no") -> None:
    to.send_response(status)
    to.send_header("Content-Length", str(len(body)))
    to.end_headers()
    to.wfile.write(body)


def is_silent(to: BaseHTTPRequestHandler) -> None:
    time.sleep(60)


@contextmanager
def refusing() -> Iterator[str]:
    with socket.socket() as taken:  # bound but not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


BAD = {
    "refuses": (refusing, "refused"),
    "is silent": (lambda: serving(is_silent), "timed out"),
    "answers 500": (lambda: serving(lambda to: reply(to, 500)), "500"),
    "answers 403": (lambda: serving(lambda to: reply(to, 403)), "403"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_server_that_fails_ends_in_a_minute_with_one_clear_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bad, said = BAD[how]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with bad() as uri:
        monkeypatch.setenv("TAPML_TRACKING_URI", uri)
        start = time.monotonic()
        required = tapml.run("little.yaml", jobs=0, track="required", check=False)
        assert time.monotonic() - start < 60
        assert required.exit_code == 5
        assert uri in required.untracked
        assert said in required.untracked
        assert len(required.untracked) < 500
        start = time.monotonic()
        assert tapml.run("little.yaml", jobs=0, track="auto").exit_code == 0
        assert time.monotonic() - start < 10
    assert (required.folder / runs.RECORD).exists()
    assert not (required.folder / tracking.TRACKED).exists()


def test_one_run_that_a_server_fails_stops_the_others(result: RunResult, project: Path) -> None:
    others = [tapml.run("little.yaml", jobs=0, track="off") for _ in range(3)]
    asked: list[str] = []

    def answer(to: BaseHTTPRequestHandler) -> None:
        asked.append(to.path)
        reply(to, 500)

    folders = [run.folder for run in (result, *others)]
    with serving(answer) as uri, pytest.raises(TrackingError, match="500"):
        tracking.sync(project / "artifacts", folders, Tracking(uri=uri))
    assert len(asked) == 2  # the first run, and once more
    assert "4 runs are not in MLflow" in tracking.missed(project / "artifacts")


def test_the_detached_process_ends_at_its_deadline(result: RunResult, project: Path) -> None:
    store = project / "artifacts"
    with serving(is_silent) as uri:
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tapml.tracking.syncer", "3", str(store), result.run_id],
            env=tracking.environment(store, Tracking(uri=uri)),
            check=False,
        )
    assert done.returncode == -signal.SIGALRM
    assert time.monotonic() - start < 20
    assert (result.folder / runs.RECORD).exists()


# --- a real one


def is_up(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of MLflow's server, and its database."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/m.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env=tracking.environment(folder, Tracking()),
            start_new_session=True,
        )
        try:
            end = time.monotonic() + 120
            while not is_up(port) and time.monotonic() < end:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", folder / "m.db"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def stored(database: Path, run_uid: str) -> tuple[list[Any], list[Any]]:
    """Runs of this tag, and their points."""
    of = "(select run_uuid from tags where key = 'tapml.run_uid' and value = ?)"
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute(f"select status from runs where run_uuid in {of}", (run_uid,))
        points = connection.execute(
            "select key, value, step, timestamp from metrics "
            f"where run_uuid in {of} order by 1, 3, 4",
            (run_uid,),
        )
        return found.fetchall(), points.fetchall()


class Way:
    """A way to the real server that can be cut, or slow."""

    def __init__(self, server: str, left: int, delay_s: float = 0.0) -> None:
        self._upstream = http.client.urlsplit(server).netloc
        self.left, self._delay_s = left, delay_s

    def __call__(self, to: BaseHTTPRequestHandler) -> None:
        self.left -= 1
        if self.left < 0:
            to.close_connection = True
            return
        time.sleep(self._delay_s)
        body = to.rfile.read(int(to.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in to.headers.items() if k not in ("Host", "Connection")}
        with closing(http.client.HTTPConnection(self._upstream)) as connection:
            connection.request(to.command, to.path, body, headers)
            answer = connection.getresponse()
            reply(to, answer.status, answer.read())


def test_a_server_that_dies_in_the_middle_of_a_replay_gets_the_rest_later(
    server: tuple[str, Path], result: RunResult, project: Path
) -> None:
    store, way = project / "artifacts", Way(server[0], 0)
    seen: list[int] = []  # runs that each attempt left
    with serving(way) as uri:
        where = Tracking(uri=uri)
        while tracking.pending(store, where):  # each attempt gets further
            way.left = allowed = 3 + 4 * len(seen)
            with suppress(TrackingError):
                tracking.sync(store, [result.folder], where)
            seen.append(len(stored(server[1], result.run_id)[0]))
    assert seen[0] == 0
    assert set(seen[1:]) == {1}
    assert len(seen) > 2
    assert allowed < 30  # few requests: each takes a while far away
    once = stored(server[1], result.run_id)
    assert once[0] == [("FINISHED",)]
    tracking.sync(store, [result.folder], Tracking(uri=server[0]))  # under another name
    assert stored(server[1], result.run_id) == once


def test_a_slow_server_is_waited_for_where_tracking_is_required(
    server: tuple[str, Path], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Way(server[0], 1000, delay_s=1.0)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        result = tapml.run("little.yaml", jobs=0, track="required")
    assert stored(server[1], result.run_id)[0] == [("FINISHED",)]


def test_ui_links_to_a_server_that_is_there_and_sync_uses_the_same_settings(
    server: tuple[str, Path], project: Path, cli: Callable[..., Any]
) -> None:
    recipe, file = project / "little.yaml", project / "workflows.yaml"
    recipe.write_text(recipe.read_text() + "matrix: {scaling.factor: [1.0, 2.0]}\n")
    said = f"engine: {{tracking: {{uri: '{server[0]}', experiment: ours}}}}\n"
    file.write_text(said + file.read_text())
    sweep = tapml.run_all(["little.yaml"], jobs=0, track="off")[0].sweep
    synced = cli("track", "sync")
    assert synced.out == f"2 runs brought to MLflow at {server[0]}\n"
    assert cli("track", "sync").out == "nothing to bring\n"
    done = cli("ui", sweep)
    listed, compared = done.out.splitlines()
    assert done.code == 0
    assert listed.startswith(f"{server[0]}/#/experiments/")
    assert sweep in listed
    assert compared.startswith(f"{server[0]}/#/compare-runs?runs=")
    with closing(sqlite3.connect(server[1])) as connection:
        names = connection.execute("select name from experiments").fetchall()
    assert ("ours",) in names
    assert settings.tracking(settings.Engine(), file).uri is None
