"""Commands about runs that ended: runs, report, export, ui, track."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import FILE, JSON, STORE, app, document

if TYPE_CHECKING:
    pass


@app.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@STORE
@JSON
def runs(limit: int, store: Path | None, as_json: bool) -> None:
    """List runs, the newest first, killed ones too."""
    from .. import api, journal, summary
    from .. import runs as folders

    root = api.store_root(store)
    folder = folders.folder_of(root)
    others = {name: folders.killed(folder / name) for name in folders.unfinished(root)[:limit]}
    found = [folders.load(folder / name) for name in folders.ids(root)[:limit]]
    found += [run for run in others.values() if run is not None]
    found = sorted(found, key=lambda run: run.started, reverse=True)[:limit]
    if as_json:
        document({"runs": [summary.to_data(one) for one in found]})
        return
    for name in (name for name, run in others.items() if run is None):
        state = "running" if journal.is_written(folder / name) else "left no record of its end"
        click.echo(f"{name}: {state}", err=True)
    if not found:
        click.echo(f"no runs in {folder}", err=True)
        return
    columns = ("run", "recipe", "when", "state", "ran", "latency", "vs peer", "error", "metric")
    click.echo(summary.table(columns, [summary.of_row(one) for one in found]))


@app.command()
@click.argument("run", default="last")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@STORE
def report(run: str, opens: bool, store: Path | None) -> None:
    """Write the report of RUN again and print its path."""
    from .. import api
    from .. import report as reports
    from .. import runs as folders

    path = reports.write(folders.find(run, api.store_root(store)))
    click.echo(path)
    if opens:
        click.launch(f"file://{path}")


@app.command()
@click.argument("run")
@click.argument("folder", type=FILE, metavar="DIR")
@STORE
def export(run: str, folder: Path, store: Path | None) -> None:
    """Copy the bundle of RUN to DIR; it runs there without tapml."""
    from .. import api

    click.echo(api.export(run, folder, store=store))


@app.command()
@click.argument("run", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@STORE
def ui(run: str | None, port: int, store: Path | None) -> int:
    """Serve MLflow on 127.0.0.1 until Ctrl-C, and print the link to the view that compares runs."""
    from .. import api, server
    from .. import runs as folders

    root = api.store_root(store)
    return server.serve(root, folders.find(run, root) if run else None, port)


@app.group()
def track() -> None:
    """MLflow tracking."""


@track.command("sync")
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
@STORE
def track_sync(run_ids: tuple[str, ...], store: Path | None) -> None:
    """Bring RUNs, or all that are not there yet, into MLflow. Doing it twice changes nothing."""
    from .. import api, tracking
    from .. import runs as folders

    root = api.store_root(store)
    chosen = [folders.find(run, root).folder for run in run_ids] or tracking.pending(root)
    tracking.sync(root, chosen)
    click.echo(
        f"{len(chosen)} runs brought to {tracking.uri(root)}" if chosen else "nothing to bring"
    )
