"""Commands about the store of results: cache ls, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import EnvironmentalError
from .app import JSON, STORE, app, document

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
