"""Commands about the store of results: cache ls, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import EnvironmentalError, RecipeError
from .app import FILE, JSON, STORE, app, document, recipe_path

if TYPE_CHECKING:
    from ..store import Record, Store


@app.group()
def cache() -> None:
    """Look into the store of results."""


@cache.command("ls")
@STORE
@JSON
def cache_ls(store: Path | None, as_json: bool) -> None:
    """List stored results, the newest first within each stage."""
    from .. import api, summary
    from .. import runs as folders
    from ..store import Store

    root = Store(api.store_root(store))
    records = list(root.records())
    if as_json:
        facts = ("stage", "key", "made_at", "seconds", "outputs")
        rows = [{name: getattr(record, name) for name in facts} for record in records]
        document({"store": str(root.root), "results": rows})
        return
    cells = [
        (r.stage, r.key[:12], folders.local(r.made_at), f"{r.seconds:.1f} s", _size(root, r))
        for r in records
    ]
    click.echo(summary.table(("stage", "key", "made", "took", "size"), cells))
    click.echo(f"{len(records)} results in {root.root}", err=True)


def _size(store: Store, record: Record) -> str:
    """Size of a result's files; a dash when some are gone."""
    try:
        return f"{sum(map(store.size, record.outputs.values())) / 2**20:.2f} MiB"
    except EnvironmentalError:
        return "–"


@cache.command("verify")
@STORE
@JSON
def cache_verify(store: Path | None, as_json: bool) -> None:
    """Read everything; set aside what is damaged, so that it is made again."""
    from .. import api
    from ..store import Store

    root = Store(api.store_root(store))
    problems = root.verify()
    if as_json:
        document({"store": str(root.root), "damaged": problems})
        return
    for line in problems:
        click.echo(line)
    note = (
        f"{len(problems)} damaged, set aside; the next run makes them again"
        if problems
        else "all whole"
    )
    click.echo(f"{root.root}: {note}")


@cache.command("push")
@click.argument("what", nargs=-1, metavar="[RUN|STAGE]...")
@STORE
@JSON
def cache_push(what: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Upload results to the shared cache: of runs, of stages, or all of the store."""
    from .. import api, transfer

    root = transfer.connected(api.store_root(store), Path.cwd())
    sent = transfer.push(root, transfer.chosen(root, what))
    assert root.remote is not None
    if as_json:
        document({"store": str(root.root), "remote": root.remote.address, "pushed": sent})
        return
    click.echo(f"{root.remote.address}: {sent} results are there")


@cache.command("pull")
@click.argument("what", nargs=-1, required=True, metavar="[RECIPE|RUN]...")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@click.option("--workflows", type=FILE, help="Use this workflows.yaml.")
@STORE
@JSON
def cache_pull(
    what: tuple[str, ...],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Download from the shared cache what RECIPE or RUN needs, to work on without it."""
    from .. import api, transfer

    recipes: list[Path] = []
    found: list[transfer.Pulled] = []
    for text in what:
        try:
            recipes.append(recipe_path(text))
        except RecipeError:  # neither a file nor a shipped recipe
            root = transfer.connected(api.store_root(store), Path.cwd())
            found.append(transfer.pull(root, transfer.of_run(root, text)))
    if recipes:
        prepared = api.prepare(recipes, set=overrides, store=store, workflows=workflows)
        found.append(transfer.pull_plan(prepared.store, prepared.plan))
    fetched, here = sum(one.fetched for one in found), sum(one.here for one in found)
    lacking = sum(one.lacking for one in found)
    if as_json:
        document({"fetched": fetched, "here": here, "lacking": lacking})
        return
    click.echo(f"{fetched} results fetched, {here} were here, {lacking} are not there")
