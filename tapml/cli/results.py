"""Commands about runs that ended: runs, compare, report, export, ui, track."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RecipeError
from ..terminal import printable
from .app import FILE, JSON, STORE, app, document, tell_untracked

if TYPE_CHECKING:
    from ..runs import RunResult

STATES = ("ok", "gate", "failed", "interrupted", "killed")
SORTS = ("when", "latency", "ratio", "metric", "error", "size", "seconds")


@app.command()
@click.option("--recipe", default="", metavar="NAME", help="Runs of this recipe.")
@click.option("--state", type=click.Choice(STATES), help="Runs that ended so.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Runs with this tag.")
@click.option("--sweep", default="", metavar="ID", help="Runs of this sweep.")
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="FIELD>=VALUE",
    help="A field of the recipe, or latency, ratio, metric, metric.NAME, error, bundle_mib, "
    "seconds; with >= <= > < = or !=.",
)
@click.option("--since", default="", metavar="TIME", help="Begun since: 7d, 12h, 2026-11-01.")
@click.option("--sort", type=click.Choice(SORTS), default="when", show_default=True)
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@click.option("--pin", metavar="RUN", multiple=True, help="Let gc keep what RUN uses.")
@click.option("--unpin", metavar="RUN", multiple=True, help="Undo --pin and --baseline.")
@click.option("--baseline", metavar="RUN", help="Let gates compare runs of its recipe with RUN.")
@STORE
@JSON
def runs(
    recipe: str,
    state: str | None,
    tags: tuple[str, ...],
    sweep: str,
    conditions: tuple[str, ...],
    since: str,
    sort: str,
    reverse: bool,
    limit: int,
    pin: tuple[str, ...],
    unpin: tuple[str, ...],
    baseline: str | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """List runs, the newest first, killed ones too; or mark some."""
    from .. import api, listing, prepare, summary
    from .. import runs as folders

    root = api.store_root(store)
    query = listing.Query(
        recipe=recipe,
        state=state or "",
        sweep=sweep,
        tags=dict(_pair(tag) for tag in tags),
        where=tuple(listing.condition(text) for text in conditions),
        since=listing.moment(since) if since else 0.0,
        sort=sort,
        reverse=reverse,
        limit=limit,
    )
    if pin or unpin or baseline:
        marked = _mark(root, pin, unpin, baseline)
        if as_json:
            document({"marked": {run.run_id: folders.marks(run) for run in marked}})
        return
    tell_untracked(root, prepare.tracking().mode)
    found = listing.select(query, root)
    if as_json:
        document({"runs": [summary.to_data(one) for one in found.runs]})
        return
    for name, why in found.others.items():
        click.echo(f"{printable(name)}: {why}", err=True)
    if not found.runs:
        which = " that match" if query.chooses else ""
        click.echo(f"no runs{which} in {folders.folder_of(root)}", err=True)
        return
    click.echo(summary.table(summary.COLUMNS, [summary.of_row(one) for one in found.runs]))


def _pair(tag: str) -> tuple[str, str]:
    name, equals, value = tag.partition("=")
    if not equals:
        raise RecipeError(message=f"--tag: {tag!r} is no K=V", hint="such as --tag team=vision")
    return name, value


def _mark(
    root: Path, pin: tuple[str, ...], unpin: tuple[str, ...], baseline: str | None
) -> list[RunResult]:
    """Marks runs, tells it on stderr, and gives them back; all are looked up beforehand."""
    from .. import runs as folders

    pinned = [folders.find(name, root) for name in pin]
    unpinned = [folders.find(name, root) for name in unpin]
    best = [folders.find(baseline, root)] if baseline else []
    for run in pinned:
        folders.pin(run)
    for run in unpinned:
        folders.unpin(run)
    for run in best:
        folders.set_baseline(run, root)
    marked = [*pinned, *unpinned, *best]
    for run in marked:
        words = ", ".join(folders.marks(run)) or "not pinned any more"
        click.echo(f"{run.run_id}: {words}", err=True)
    return marked


@app.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@STORE
@JSON
def compare(names: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Show what differs between runs: recipe and files beside speed, quality and size.

    RUN is an id or its start, `last`, `last~1`, a recipe's name or `baseline`; the others are
    held against the first. No winner is named within the noise or across machines.
    """
    from .. import api, summary
    from .. import compare as comparing

    found = comparing.find(names, api.store_root(store))
    if as_json:
        document(comparing.to_data(found))
    else:
        click.echo(summary.of_comparison(found))


@app.command()
@click.argument("run", default="last")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@STORE
def report(run: str, opens: bool, store: Path | None) -> None:
    """Write the report of RUN, or of a whole sweep by its id, and print its path."""
    from .. import api
    from .. import report as reports
    from ..report import sweep

    root = api.store_root(store)
    found = _found(run, root)
    path = sweep.write(run, found, root) if run == found[0].sweep else reports.write(found[0])
    click.echo(path)
    if opens:
        click.launch(f"file://{path}")


def _found(name: str, root: Path) -> list[RunResult]:
    """The run of this name, or the runs of this sweep."""
    from .. import runs as folders
    from ..report import sweep

    try:
        return [folders.find(name, root)]
    except RecipeError:
        if members := sweep.members(name, root):
            return members
        raise


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
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@STORE
def ui(run: str | None, port: int, opens: bool, store: Path | None) -> int:
    """Serve MLflow on 127.0.0.1 until Ctrl-C, and print links to it.

    RUN may be a sweep, whose runs are compared. Of a server that is named in settings it prints the
    links only.
    """
    from .. import api, prepare
    from ..tracking import server

    root = api.store_root(store)
    return server.serve(root, prepare.tracking(), _found(run or "last", root), port, opens)


@app.group()
def track() -> None:
    """MLflow tracking."""


@track.command("sync")
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
@STORE
def track_sync(run_ids: tuple[str, ...], store: Path | None) -> None:
    """Bring RUNs or sweeps, or all runs that are not there yet, into MLflow.

    Doing it twice changes nothing.
    """
    from .. import api, prepare, tracking

    root, where = api.store_root(store), prepare.tracking()
    found = [one.folder for name in run_ids for one in _found(name, root)]
    chosen = found or tracking.pending(root, where)
    tracking.sync(root, chosen, where)
    count = "1 run" if len(chosen) == 1 else f"{len(chosen)} runs"
    told = f"{count} brought to {tracking.told(root, where)}"
    click.echo(told if chosen else "nothing to bring")
