"""The command `tapml bench`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tapml.cli.app import FILE, JSON, STORE, document
from tapml.errors import EnvironmentalError, RecipeError

if TYPE_CHECKING:
    from tapml.runs import RunResult

    from .timing import Peer, Row


@click.command("bench")
@click.argument("source", default="last", metavar="BUNDLE")
@click.option(
    "--sizes",
    multiple=True,
    metavar="DIM=N,N",
    help="Sizes of a dim. [default: the buckets, and the middle of the dims; of a language model "
    "a prompt and one token]",
)
@click.option("--inputs", type=FILE, help="Inputs by name (.npz), instead of --sizes.")
@click.option("--threads", default="", metavar="N,N", help="[default: as it was built for]")
@click.option(
    "--onnx", type=FILE, help="Model for onnxruntime to run beside it. [default: the run's source]"
)
@click.option("--alone", is_flag=True, help="Without onnxruntime beside it.")
@click.option("--repeats", type=click.IntRange(3), default=100, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True)
@click.option(
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Of each size; fewer calls are timed where they take longer.",
)
@STORE
@JSON
def bench(
    source: str,
    sizes: tuple[str, ...],
    inputs: Path | None,
    threads: str,
    onnx: Path | None,
    alone: bool,
    repeats: int,
    warmup: int,
    max_seconds: float,
    store: Path | None,
    as_json: bool,
) -> None:
    """Time a bundle: latency and throughput by size and threads.

    BUNDLE is a bundle's folder, or a run: an id or its start, `last`, a recipe's name. It runs in a
    process of its own; beside it, in turns, onnxruntime where there is a model for it.
    """
    from tapml import bundle

    from . import cases
    from .timing import Effort, rows

    if inputs is not None and sizes:
        raise click.UsageError("give --sizes, or --inputs, whose sizes are their own")
    if alone and onnx is not None:
        raise click.UsageError("--alone is without the model of --onnx")
    folder, run = _resolve(source, store)
    manifest = bundle.manifest(folder)
    bundle.verify(folder)
    runner = bundle.module(folder, "run.py")
    if onnx is not None and manifest["states"]:
        raise RecipeError(
            message=f"{folder} keeps states from call to call, which an ONNX model does not",
            hint="leave out --onnx",
        )
    try:
        runner.check_cpu(manifest)
    except runner.BundleError as error:
        raise EnvironmentalError(message=f"{folder}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="tapml-bench-") as scratch:
        reference = None if run is None else _reference(run, Path(scratch), store)
        peer = None if alone else _peer(onnx, reference)
        if inputs is not None:
            chosen = [cases.of_file(manifest, runner, inputs)]
        else:
            found = cases.sizes_of(manifest, sizes)
            chosen = [cases.make(manifest, runner, one, reference) for one in found]
        counts = _threads(threads) or [int(manifest["threads"])]
        effort = Effort(repeats, warmup, max_seconds)
        done = list(rows(folder, chosen, counts, peer, effort, _tell))
    disturbed = [row for row in done if row.disturbed]
    if disturbed:
        most = max(row.busy for row in disturbed)
        head = click.style("warning:", fg="yellow")
        click.echo(
            f"{head} the machine was not idle: up to {most:.1f} cores were busy with something "
            f"else in {len(disturbed)} of {len(done)} rows",
            err=True,
        )
    if as_json:
        document(_data(folder, run, done))
    else:
        click.echo(_table(done))


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _resolve(source: str, store: Path | None) -> tuple[Path, RunResult | None]:
    """The folder of a bundle, and the run that it is of, if it is known."""
    from tapml import api, runs

    folder = Path(source)
    if folder.is_dir() and not (folder / runs.RECORD).is_file():
        beside = folder.absolute().parent
        return folder, runs.load(beside) if (beside / runs.RECORD).is_file() else None
    run = runs.find(source, api.store_root(store))
    return api.bundle_of(run), run


def _reference(run: RunResult, scratch: Path, store: Path | None) -> Path | None:
    """What the run's reference has left, where the store still has it."""
    from tapml import api
    from tapml.store import Store
    from tapml.store.blobs import DamagedError

    digests = [step.outputs["reference"] for step in run.steps if "reference" in step.outputs]
    if not digests:
        return None
    root = run.folder.parent.parent if store is None else api.store_root(store)
    try:
        return Store(root).materialise(digests[0], scratch / "reference")
    except DamagedError:
        _tell("the run's reference is not in the store any more: random inputs, no peer")
        return None


def _peer(onnx: Path | None, reference: Path | None) -> Peer | None:
    """onnxruntime on the named model, or on the one that the run was made from."""
    from .. import reference_cases
    from .timing import Peer

    model = onnx
    if model is None and reference is not None:
        _, model = reference_cases.peer(reference)
    if model is None:
        return None
    if not model.is_file():
        raise RecipeError(message=f"--onnx: no file {model}")
    if find_spec("onnxruntime") is None:
        raise EnvironmentalError(
            message="the peer needs onnxruntime, not installed here",
            hint="pip install onnxruntime, or leave the peer out: --alone",
        )
    return Peer(f"onnxruntime {version('onnxruntime')}", model)


def _threads(text: str) -> list[int]:
    from tapml import host

    try:
        counts = [int(one) for one in text.split(",") if one]
    except ValueError as error:
        raise RecipeError(message=f"--threads: {text!r} is no list of numbers") from error
    if wrong := [one for one in counts if not 1 <= one <= host.threads()]:
        raise RecipeError(
            message=f"--threads: {wrong[0]}, but 1 to {host.threads()} can be used here"
        )
    return counts


def _table(done: list[Row]) -> str:
    from tapml.report.markup import number
    from tapml.summary import table

    with_peer = any(row.theirs is not None for row in done)
    titles = ["size", "threads", "p50 ms", "p95 ms", "best ms", "throughput"]
    titles += [f"{done[0].peer} p50 ms", "its p95 ms", ""] if with_peer else []
    titles += ["busy"] if any(row.disturbed for row in done) else []
    lines: list[list[str | tuple[str, str]]] = []
    for row in done:
        ours, theirs = row.ours, row.theirs
        line: list[str | tuple[str, str]] = [
            row.case.label,
            str(row.threads),
            *map(number, (ours.p50, ours.p95, ours.best)),
            f"{number(row.per_second)} {row.case.unit}/s",
        ]
        if theirs is not None:
            colour = {"good": "green", "bad": "red"}.get(row.latency.tone, "")
            line += [number(theirs.p50), number(theirs.p95), (row.latency.words, colour)]
        if "busy" in titles:
            line.append(f"{row.busy:.1f} cores" if row.disturbed else "")
        lines.append(line)
    return table(titles, lines)


def _data(folder: Path, run: RunResult | None, done: list[Row]) -> dict[str, Any]:
    from tapml import host

    return {
        "bundle": str(folder),
        "run": None if run is None else run.run_id,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": dict(host.fingerprint()),
        "rows": [
            {
                "size": row.case.label,
                "sizes": dict(row.case.sizes),
                "threads": row.threads,
                "ours_ms": asdict(row.ours),
                "peer": row.peer or None,
                "peer_ms": None if row.theirs is None else asdict(row.theirs),
                "ratio": row.latency.ratio,
                "per_second": row.per_second,
                "unit": row.case.unit,
                "busy_cores": row.busy,
                "disturbed": row.disturbed,
            }
            for row in done
        ],
    }
