"""Commands about the tuning database: db ls, show, merge, prune, export, import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RecipeError
from ..terminal import printable
from .app import FILE, JSON, STORE, app, document
from .quantities import seconds_of

if TYPE_CHECKING:
    from ..tuning.database import Change, Database
    from ..tuning.search import Search

_SHOWN = 20  # searches named one by one where there are many

DB = click.option(
    "--db", "folder", type=FILE, help="Another database folder. [default: tuning/ of the store]"
)


@app.group()
def db() -> None:
    """Look into the tuning database: what was measured of each search for a schedule.

    \b
    tapml db ls                         what was searched, and what it brought
    tapml db show dense                 the searches of a kernel: curve, best trace, TIR
    tapml db export tuned.jsonl         one file, for `tuning.reuse: {db: tuned.jsonl}`
    """


@db.command("ls")
@click.argument("what", nargs=-1, metavar="[KERNEL|WORKLOAD]...")
@click.option("--limit", type=click.IntRange(0), default=_SHOWN, show_default=True)
@DB
@STORE
@JSON
def db_ls(
    what: tuple[str, ...], limit: int, folder: Path | None, store: Path | None, as_json: bool
) -> None:
    """List searches, the newest first: all, or those of kernels or workloads that are named.

    Those without a trial yet are left out.

    `gain` is the default schedule's time by the best one's, both as they were measured then.
    """
    from .. import runs, summary
    from ..tuning import view

    place, database = _database(folder, store)
    begun = [one for one in _named(database, what, place) if one.trials]
    found = sorted(begun, key=lambda one: one.latest, reverse=True)
    if as_json:
        rows = [view.row(one) for one in found[:limit]]
        faults = list(database.faults)
        document({"db": str(place), "count": len(found), "searches": rows, "faults": faults})
        return
    titles = "workload kernel target toolchain seed trials failed best default gain measured"
    cells = [
        (
            one.header.identity.workload[:10],
            one.header.kernel[:40],
            view.target(one.header.identity),
            view.toolchain(one.header.identity),
            str(one.header.identity.seed),
            str(len(one.trials)),
            str(len(one.trials) - len(one.ranked)),
            "–" if one.best_ms is None else f"{one.best_ms:.4g} ms",
            f"{one.header.default_ms:.4g} ms",
            "–" if one.best_ms is None else f"{one.header.default_ms / one.best_ms:.2f}x",
            runs.when(one.latest),
        )
        for one in found[:limit]
    ]
    if cells:
        click.echo(summary.table(titles.split(), cells))
    if len(found) > limit:
        click.echo(f"… and {len(found) - limit} older ones; --limit {len(found)} lists all")
    trials = sum(len(one.trials) for one in found)
    click.echo(f"{len(found)} searches, {trials} trials in {place}", err=True)
    _tell(database.faults)


@db.command("show")
@click.argument("what", metavar="KERNEL|WORKLOAD")
@DB
@STORE
@JSON
def db_show(what: str, folder: Path | None, store: Path | None, as_json: bool) -> None:
    """Show the searches of one workload: the curve of each, the best trace, and the TIR.

    WORKLOAD is the start of its hash, KERNEL a part of the kernel's name.
    """
    from .. import summary
    from ..tuning import view

    place, database = _database(folder, store)
    found = _named(database, (what,), place)
    workloads = {one.header.identity.workload: one.header.kernel for one in found}
    if len(workloads) > 1:
        listed = ", ".join(f"{key[:10]} ({name})" for key, name in list(workloads.items())[:9])
        message = f"{what!r} is {len(workloads)} workloads: {printable(listed)}"
        raise RecipeError(message=message, hint="name one by its hash")
    if as_json:
        rows = [
            {**view.row(one), "curve": one.curve, "best": view.best(one), "tir": one.header.tir}
            for one in found
        ]
        document({"db": str(place), "searches": rows, "faults": list(database.faults)})
        return
    for one in found:
        row = view.row(one)
        facts = [(name, str(row[name])) for name in row if not isinstance(row[name], dict)]
        click.echo(summary.table(("search", ""), facts))
        points = [(str(number), f"{ms:.5g}") for number, ms in one.curve]
        click.echo("\n" + summary.table(("trial", "best ms"), points))
        if one.ranked:
            click.echo("\nbest trace")
            for step in view.steps(one.ranked[0].trace):
                click.echo("  " + printable(step))
        click.echo()
    click.echo(printable(found[0].header.tir, keep="\n"))
    _tell(database.faults)


@db.command("merge")
@click.argument("other", type=FILE)
@DB
@STORE
@JSON
def db_merge(other: Path, folder: Path | None, store: Path | None, as_json: bool) -> None:
    """Bring the searches of another database folder, or of another store, into this one.

    A trial that is in both counts once. OTHER stays as it is.
    """
    from ..tuning import database as databases

    place = _place(folder, store)
    inner = other / "tuning"
    taken = databases.load(inner if inner.is_dir() else other)
    changes = databases.merge(place, taken.searches)
    _tell_brought(changes, place, as_json=as_json, faults=taken.faults)


@db.command("prune")
@click.option(
    "--older-than", type=seconds_of, metavar="AGE", help="Take searches that ended so long ago."
)
@click.option(
    "--foreign",
    is_flag=True,
    help="Take searches whose target cannot run here, or of other versions of the tools.",
)
@click.option(
    "--keep-best",
    type=click.IntRange(1),
    metavar="N",
    help="Of the others keep the N fastest trials each.",
)
@click.option("--damaged", is_flag=True, help="Take nothing but lines that are no record.")
@click.option("--dry-run", is_flag=True, help="Say what would go; take nothing.")
@DB
@STORE
@JSON
def db_prune(
    older_than: float | None,
    foreign: bool,
    keep_best: int | None,
    damaged: bool,
    dry_run: bool,
    folder: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Take away searches, or their slower trials, and lines that are damaged.

    Runs may go on meanwhile. A search that is resumed measures again what it no longer finds.
    """
    from ..tuning import database as databases

    if older_than is None and not foreign and keep_best is None and not damaged:
        raise RecipeError(
            message="say what to take: --older-than AGE, --foreign, --keep-best N or --damaged"
        )
    place = _place(folder, store)
    left = _left(older_than, foreign, keep_best)
    changes = databases.prune(place, left, dry_run=dry_run)
    if as_json:
        document({"db": str(place), "dry_run": dry_run, "searches": [_change(c) for c in changes]})
        return
    went = "would go" if dry_run else "went"
    for one in changes[:_SHOWN]:
        name = f"{one.header.identity.workload[:10]} {one.header.kernel}"
        count = "all" if one.after is None else str((one.before or 0) - one.after)
        click.echo(printable(f"{went}  {name}: {count} of {one.before} trials"))
    if len(changes) > _SHOWN:
        click.echo(f"… and {len(changes) - _SHOWN} more")
    trials = sum((one.before or 0) - (one.after or 0) for one in changes)
    whole = sum(one.after is None for one in changes)
    click.echo(f"{whole} searches and {trials} trials {went}: {place}")


@db.command("export")
@click.argument("file", type=FILE)
@click.argument("what", nargs=-1, metavar="[KERNEL|WORKLOAD]...")
@DB
@STORE
@JSON
def db_export(
    file: Path, what: tuple[str, ...], folder: Path | None, store: Path | None, as_json: bool
) -> None:
    """Write searches to FILE: all, or those of kernels or workloads that are named.

    `tapml db import` takes it in elsewhere, and `tuning.reuse: {db: FILE}` builds with it.
    """
    from ..tuning import database as databases
    from ..tuning import view

    place, database = _database(folder, store)
    found = [one for one in _named(database, what, place) if one.trials]
    databases.export(found, file)
    if as_json:
        document({"file": str(file.resolve()), "searches": [view.row(one) for one in found]})
        return
    trials = sum(len(one.trials) for one in found)
    click.echo(f"{len(found)} searches, {trials} trials: {file.resolve()}")
    _tell(database.faults)


@db.command("import")
@click.argument("file", type=FILE)
@DB
@STORE
@JSON
def db_import(file: Path, folder: Path | None, store: Path | None, as_json: bool) -> None:
    """Take in the searches of FILE, each line checked: all of it, or nothing.

    A trial that is here already counts once. Times are what whoever wrote FILE says; a schedule
    ships only after it was measured here.
    """
    from ..tuning import database as databases

    if not file.is_file():
        hint = "for a folder: tapml db merge" if file.is_dir() else ""
        raise RecipeError(message=f"no file {file}", hint=hint)
    place = _place(folder, store)
    changes = databases.merge(place, databases.load(file).searches)
    _tell_brought(changes, place, as_json=as_json)


def _place(folder: Path | None, store: Path | None) -> Path:
    from .. import api
    from ..store import Store

    if folder is not None:
        return folder.resolve()
    return Store(api.store_root(store)).database


def _database(folder: Path | None, store: Path | None) -> tuple[Path, Database]:
    from ..tuning import database as databases

    place = _place(folder, store)
    if folder is None and not place.exists():
        return place, databases.Database(())
    return place, databases.load(place)


def _named(database: Database, what: Sequence[str], place: Path) -> list[Search]:
    """The searches of the kernels and workloads named, all when none is."""
    found = {one.header.identity.digest: one for one in database.searches}
    if not what:
        return list(found.values())
    chosen: dict[str, Search] = {}
    for text in what:
        fits = {key: one for key, one in found.items() if _is_of(one, text)}
        if not fits:
            raise RecipeError(message=f"no search of {text!r} in {place}", hint="tapml db ls")
        chosen |= fits
    return list(chosen.values())


def _is_of(one: Search, text: str) -> bool:
    return one.header.identity.workload.startswith(text) or text in one.header.kernel


def _left(
    older_than: float | None, foreign: bool, keep_best: int | None
) -> Callable[[Search], Search | None]:
    """What stays of a search."""
    import time

    from ..tuning import database as databases

    now = time.time()

    def left(search: Search) -> Search | None:
        if older_than is not None and now - search.latest > older_than:
            return None
        if foreign and not databases.is_of_here(search):
            return None
        return search if keep_best is None else databases.keep_best(search, keep_best)

    return left


def _tell_brought(
    changes: Sequence[Change], place: Path, *, as_json: bool, faults: Sequence[str] = ()
) -> None:
    if as_json:
        rows = [_change(one) for one in changes]
        document({"db": str(place), "searches": rows, "faults": list(faults)})
        return
    new = sum(one.before is None for one in changes)
    trials = sum((one.after or 0) - (one.before or 0) for one in changes)
    click.echo(f"{new} searches and {trials} trials new, {len(changes) - new} searches were here")
    _tell(faults)


def _change(one: Change) -> dict[str, Any]:
    identity = one.header.identity
    return {
        "workload": identity.workload,
        "kernel": one.header.kernel,
        "before": one.before,
        "after": one.after,
    }


def _tell(faults: Sequence[str]) -> None:
    head = click.style("warning:", fg="yellow")
    for fault in faults:
        click.echo(f"{head} {printable(fault)}", err=True)
    if faults:
        click.echo("`tapml db prune --damaged` takes damaged lines out", err=True)
