"""MLflow's own server over the embedded store, on this machine only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import click

from .. import guard, tracking
from ..errors import EnvironmentalError, TrackingError
from ..runs import RunResult
from ..settings import Tracking
from . import logged

_START_S = 120.0


def serve(
    store: Path, where: Tracking, chosen: Sequence[RunResult], port: int, opens: bool = False
) -> int:
    """Brings what is missing, prints links to the runs, and serves until Ctrl-C or the server's
    end; a server that is there already is only linked to.

    Raises: TrackingError when a run does not come into MLflow or the server does not start.
    """
    uri = tracking.uri(store, where)
    waiting = tracking.pending(store, where)
    if waiting:
        click.echo(f"bringing {len(waiting)} runs into MLflow", err=True)
        tracking.sync(store, waiting, where)
    if uri.startswith("http"):
        _tell(_without_password(uri), chosen, opens)
        return 0
    database = tracking.sqlite_path(uri)
    if database is not None:
        tracking.check(database)
    port = _free(port)
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *address]
    log = tracking.database(store).with_name("server.log")
    log.parent.mkdir(exist_ok=True)
    with _guard() as mark, log.open("ab") as out:
        environment = tracking.environment(store, where) | {
            guard.VARIABLE: mark,
            "MLFLOW_BACKEND_STORE_URI": uri,  # may hold a password, and a command line is public
        }
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=store)
        try:
            _await(server, port, log)
            _tell(f"http://127.0.0.1:{port}", chosen, opens)
            click.echo("Ctrl-C ends it", err=True)
            return server.wait()
        except KeyboardInterrupt:
            return 0


def _tell(base: str, chosen: Sequence[RunResult], opens: bool) -> None:
    """Links on stdout: all runs of the recipe or of the sweep, then the chosen ones by themselves.

    The last one is the one to open.
    """
    places = [place for run in chosen if (place := tracking.place(run.folder)) is not None]
    timed = any(run.facts and run.facts.latency for run in chosen)
    order = logged.LATENCY if timed else ""
    links = [tracking.list_link(base, places[0], chosen[0].sweep, order)]
    if len(places) <= tracking.COMPARED:
        links.append(tracking.link(base, places))
    for link in links:
        click.echo(link)
    if opens:
        click.launch(links[-1])


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


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
