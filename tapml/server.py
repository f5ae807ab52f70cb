"""MLflow's own server over the embedded store, on this machine only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import click

from . import guard, runs, tracking
from .errors import EnvironmentalError, TrackingError
from .runs import RunResult

_START_S = 120.0


def serve(store: Path, run: RunResult | None, port: int) -> int:
    """Serves until Ctrl-C or the server's end; prints the link of the view that compares once it
    answers.

    Raises: TrackingError when there is nothing to show or the server does not start.
    """
    folders = (
        [run.folder] if run else [runs.folder_of(store) / name for name in runs.ids(store)[:1]]
    )
    if not folders:
        raise TrackingError(message=f"no runs in {store}", hint="`tapml run RECIPE` makes one")
    remote = tracking.uri(store)
    waiting = [*tracking.pending(store)]
    if waiting:
        click.echo(f"bringing {len(waiting)} runs into MLflow", err=True)
        tracking.sync(store, waiting)
    where = tracking.place(folders[0])
    if remote.startswith("http"):
        click.echo(tracking.deep_link(remote.rstrip("/"), where, run.run_id if run else ""))
        return 0
    port = _free(port)
    base = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--workers", "1", "--backend-store-uri", remote]
    log = tracking.database(store).with_name("server.log")
    with _guard() as mark, log.open("ab") as out:
        environment = tracking.environment() | {guard.VARIABLE: mark}
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=store)
        try:
            _await(server, port, log)
            click.echo(tracking.deep_link(base, where, run.run_id if run else ""))
            click.echo("Ctrl-C ends it", err=True)
            return server.wait()
        except KeyboardInterrupt:
            return 0


@contextmanager
def _guard() -> Generator[str]:
    """A mark for the environment of processes that shall end with this one, however it ends."""
    mark = uuid4().hex
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, mark], stdin=subprocess.PIPE
    )
    try:
        yield mark
    finally:
        watcher.communicate()  # closes the pipe, which is its sign, and waits


def _await(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns once the server answers."""
    end = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TrackingError(message="MLflow's server did not start", hint=f"log: {log}")


def _free(port: int) -> int:
    """`port`, or one of the next few when it is taken."""
    for candidate in range(port, port + 20):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return candidate
    raise EnvironmentalError(
        message=f"ports {port} to {port + 19} are all taken", hint="--port N names another"
    )
