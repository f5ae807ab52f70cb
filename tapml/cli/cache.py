"""Commands about the store of results: cache ls, verify, gc, rm, export, import, push, pull."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RecipeError
from ..terminal import printable
from .app import FILE, JSON, STORE, app, document, recipe_path
from .quantities import bytes_of, seconds_of, size

if TYPE_CHECKING:
    from ..store import Record, Store
    from ..store.garbage import Outcome
    from ..store.inventory import Result, Share

_SHOWN = 20  # results named one by one where there are many


@app.group()
def cache() -> None:
    """Look into the store of results, and keep it small and whole.

    \b
    tapml cache ls                      what is stored, and what takes the room
    tapml cache gc --max-size 20GB      take away what was not used for longest
    tapml cache verify --repair         read everything; set aside what is damaged
    """


@cache.command("ls")
@click.argument("what", nargs=-1, metavar="[STAGE|STAGE/KEY|RUN]...")
@click.option("--recipe", default="", metavar="NAME", help="What runs of this recipe used.")
@click.option("--limit", type=click.IntRange(0), default=_SHOWN, show_default=True)
@STORE
@JSON
def cache_ls(
    what: tuple[str, ...], recipe: str, limit: int, store: Path | None, as_json: bool
) -> None:
    """List stored results, the newest first, and sizes by stage and by recipe.

    What several results share counts once in each sum.
    """
    from .. import runs, summary
    from ..store import inventory

    root = _store(store)
    chosen = what or recipe
    found = inventory.select(root, what, recipe=recipe) if chosen else [*inventory.results(root)]
    found.sort(key=lambda one: one.entry.made_at, reverse=True)
    total = inventory.total(found)
    stages = inventory.by_stage(found)
    recipes = inventory.by_recipe(found, inventory.uses(root))
    if as_json:
        document(
            {
                "store": str(root.root),
                "count": len(found),
                "bytes": total,
                "run_folders_bytes": inventory.beside(root),
                "results": [_row(one) for one in found[:limit]],
                "by_stage": {one.name: _share(one) for one in stages},
                "by_recipe": {one.name: _share(one) for one in recipes},
            }
        )
        return
    rows = [
        (
            one.stage,
            one.entry.key[:12],
            runs.local(one.entry.made_at),
            f"{one.entry.seconds:.1f} s",
            size(sum(one.entry.blobs.values())),
        )
        for one in found[:limit]
    ]
    if rows:
        click.echo(summary.table(("stage", "key", "made", "took", "size"), rows))
    if len(found) > limit:
        click.echo(f"… and {len(found) - limit} older ones; --limit {len(found)} lists all")
    for title, shares in (("stage", stages), ("recipe", recipes)):
        if shares:
            cells = [(one.name, str(one.count), size(one.bytes)) for one in shares]
            click.echo("\n" + summary.table((title, "results", "size"), cells))
    click.echo(f"{len(found)} results, {size(total)} in {root.root}", err=True)
    click.echo(f"beside them, run folders hold {size(inventory.beside(root))}", err=True)


@cache.command("verify")
@click.option("--repair", is_flag=True, help="Set aside what is damaged; remove what is left over.")
@STORE
@JSON
def cache_verify(repair: bool, store: Path | None, as_json: bool) -> int:
    """Read everything and name what is damaged; change nothing, and exit with 1 if anything is.

    With --repair, what is damaged is set aside, so that the next run makes it again.
    """
    from ..store import verification

    root = _store(store)
    found = verification.verify(root, repair=repair)
    damaged = [one for one in found if one.is_damage]
    if as_json:
        rows = [
            {"kind": one.kind, "path": str(one.path), "what": one.what, "done": one.done}
            for one in found
        ]
        document({"store": str(root.root), "damaged": len(damaged), "findings": rows})
        return 0 if repair or not damaged else 1
    for one in found:
        click.echo(printable(str(one)))
    if not damaged:
        click.echo(f"{root.root}: all whole")
        return 0
    then = (
        "set aside; the next run makes them again"
        if repair
        else "nothing was changed; `tapml cache verify --repair` sets them aside"
    )
    click.echo(f"{root.root}: {len(damaged)} damaged; {then}")
    return 0 if repair else 1


@cache.command("gc")
@click.option(
    "--max-size",
    type=bytes_of,
    metavar="SIZE",
    help="Take the least recently used until this is left.",
)
@click.option(
    "--older-than", type=seconds_of, metavar="AGE", help="Take what was not used for so long."
)
@click.option(
    "--keep-runs",
    type=click.IntRange(0),
    metavar="N",
    help="Keep what the N newest runs use; without a limit, take all else.",
)
@click.option("--runs", is_flag=True, help="Take the folders of runs beyond --keep-runs too.")
@click.option(
    "--grace",
    type=seconds_of,
    metavar="AGE",
    default="1h",
    show_default=True,
    help="Keep what is this recent; an hour at least while a run goes on.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go; take nothing.")
@STORE
@JSON
def cache_gc(
    max_size: int | None,
    older_than: float | None,
    keep_runs: int | None,
    runs: bool,
    grace: float,
    dry_run: bool,
    store: Path | None,
    as_json: bool,
) -> None:
    """Take away what nobody needs: results by the limits given, then what no result names.

    Never what a run uses that goes on, is recent, pinned or a baseline. Other runs may go on
    meanwhile. A result that went is made again when it is asked for.
    """
    from ..store import garbage

    if runs and keep_runs is None:
        raise RecipeError(message="--runs takes run folders: say how many stay: --keep-runs N")
    root = _store(store)
    policy = garbage.Policy(max_size, older_than, keep_runs, runs, grace)
    outcome = garbage.collect(root, policy, dry_run=dry_run)
    if as_json:
        document({"store": str(root.root), "dry_run": dry_run, **_outcome(outcome)})
        return
    _tell(outcome, root, "would go" if dry_run else "went")
    if max_size is not None and outcome.kept > max_size:
        over = size(outcome.kept - max_size)
        click.echo(f"{over} above --max-size stay: runs that are kept, or recent, use them")


@cache.command("rm")
@click.argument("what", nargs=-1, metavar="[STAGE|STAGE/KEY|RUN]...")
@click.option("--recipe", default="", metavar="NAME", help="What runs of this recipe used.")
@STORE
@JSON
def cache_rm(what: tuple[str, ...], recipe: str, store: Path | None, as_json: bool) -> None:
    """Remove the results of a stage, those whose key starts so, or those that a run used.

    Nothing is removed when a run that goes on, is pinned or a baseline uses one of them.
    """
    from ..store import garbage, inventory

    if not what and not recipe:
        raise RecipeError(message="name what to remove: STAGE, STAGE/KEY, RUN or --recipe NAME")
    root = _store(store)
    outcome = garbage.remove(root, inventory.select(root, what, recipe=recipe))
    if as_json:
        document({"store": str(root.root), **_outcome(outcome)})
        return
    _tell(outcome, root, "went")


@cache.command("export")
@click.argument("file", type=FILE)
@click.argument("what", nargs=-1, required=True, metavar="RUN|STAGE|STAGE/KEY...")
@STORE
@JSON
def cache_export(file: Path, what: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Write results to FILE, a tar that `tapml cache import` takes in elsewhere."""
    from ..store import archive, inventory

    root = _store(store)
    written = archive.export(root, inventory.select(root, what), file)
    if as_json:
        rows = [_row(one) for one in written]
        document({"file": str(file.resolve()), "bytes": file.stat().st_size, "results": rows})
        return
    click.echo(f"{len(written)} results, {size(file.stat().st_size)}: {file.resolve()}")


@cache.command("import")
@click.argument("file", type=FILE)
@STORE
@JSON
def cache_import(file: Path, store: Path | None, as_json: bool) -> None:
    """Take in the results of FILE, each part checked. What is here already stays as it is.

    Whoever wrote FILE says what a stage gives: take it from those you trust.
    """
    from ..store import archive

    root = _store(store)
    done = archive.load(root, file)
    if as_json:

        def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
            return [{"stage": one.stage, "key": one.key, "made_on": one.made_on} for one in records]

        document({"store": str(root.root), "new": rows(done.new), "known": rows(done.known)})
        return
    click.echo(f"{len(done.new)} results new, {len(done.known)} here already: {root.root}")


@cache.command("push")
@click.argument("what", nargs=-1, metavar="[RUN|STAGE]...")
@STORE
@JSON
def cache_push(what: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Upload results to the shared cache: of runs, of stages, or all of the store."""
    from .. import api
    from ..remote import transfer

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
    from .. import api
    from ..remote import transfer

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


def _store(store: Path | None) -> Store:
    from .. import api
    from ..store import Store

    return Store(api.store_root(store))


def _row(one: Result) -> dict[str, Any]:
    entry = one.entry
    return {
        "stage": one.stage,
        "key": entry.key,
        "generation": entry.generation,
        "made_at": entry.made_at,
        "seconds": entry.seconds,
        "bytes": sum(entry.blobs.values()),
        "outputs": entry.outputs,
    }


def _share(one: Share) -> dict[str, int]:
    return {"results": one.count, "bytes": one.bytes}


def _outcome(one: Outcome) -> dict[str, Any]:
    return {
        "results": [_row(result) for result in one.results],
        "blobs": one.blobs,
        "runs": one.runs,
        "aside": [path.name for path in one.aside],
        "bytes": one.freed,
        "linked_bytes": one.linked,
        "kept_bytes": one.kept,
    }


def _tell(one: Outcome, root: Store, went: str) -> None:
    for result in one.results[:_SHOWN]:
        click.echo(f"{went}  {result.stage}/{result.entry.key[:12]}  {size(result.bytes)}")
    if len(one.results) > _SHOWN:
        click.echo(f"… and {len(one.results) - _SHOWN} more")
    for run in one.runs:
        click.echo(printable(f"{went}  run {run}"))
    counts = f"{len(one.results)} results, {len(one.blobs)} blobs, {len(one.aside)} left-overs"
    click.echo(f"{counts} {went}: {size(one.freed)}; {size(one.kept)} stay in {root.root}")
    if one.linked:
        click.echo(f"{size(one.linked)} of it stay on the disk while run folders link to them")
