"""The command that lends this machine to the runs of others: worker."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import RecipeError
from .app import FILE, app


@app.command()
@click.argument("scheduler", metavar="SCHEDULER")
@click.option("--jobs", type=click.IntRange(1), help="Stages at once. [default: one per core]")
@click.option("--memory", type=click.IntRange(1), metavar="MIB", help="Memory for stages.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to bind; others reach it there."
)
@click.option(
    "--store",
    type=FILE,
    help="A store of its own, where this machine does not see that of the runs; "
    "they need a shared cache then.",
)
@click.option("--tls-ca-file", type=FILE, help="Certificate of the authority, PEM.")
@click.option("--tls-cert", type=FILE, help="Certificate of this worker, PEM.")
@click.option("--tls-key", type=FILE, help="Key of this worker, PEM.")
def worker(
    scheduler: str,
    jobs: int | None,
    memory: int | None,
    host: str,
    store: Path | None,
    tls_ca_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
) -> int:
    """Run stages for the dask SCHEDULER (such as tcp://127.0.0.1:8786) on this machine.

    Whoever can reach a scheduler without TLS can run code on its workers.
    """
    from .. import host as machine
    from ..pools import dask
    from ..settings import Security

    files = [path for path in (tls_ca_file, tls_cert, tls_key) if path is not None]
    if files and len(files) < 3:
        raise RecipeError(
            message="TLS needs three files", hint="--tls-ca-file, --tls-cert and --tls-key"
        )
    security = (
        Security(**dict(zip(("ca_file", "cert", "key"), map(str, files), strict=True)))
        if files
        else None
    )
    dask.distributed()  # says what to install when it is not there
    from ..pools import cluster

    offer = cluster.Offer(
        scheduler, jobs or machine.threads(), host, memory, store and store.resolve(), security
    )
    return cluster.serve(offer, lambda text: click.echo(text, err=True))
