"""MLflow's own server over the embedded store, on this machine only."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click

from . import runs, tracking
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
    base = f"http://127.0.0.1:{_free(port)}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        base.rpartition(":")[2],
    ]
    command += ["--workers", "1", "--backend-store-uri", remote]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env=tracking.environment(),
        cwd=store,
        start_new_session=True,
    ) as server:
        try:
            _await(server, int(base.rpartition(":")[2]))
            click.echo(tracking.deep_link(base, where, run.run_id if run else ""))
            click.echo("Ctrl-C ends it", err=True)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.send_signal(signal.SIGTERM)


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    """Returns once the server answers."""
    end = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TrackingError(
        message="MLflow's server did not start", hint="`tapml doctor` checks its packages"
    )


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
