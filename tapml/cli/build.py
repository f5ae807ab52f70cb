"""Commands that take recipes through their stages: run, plan, explain, validate."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ..terminal import printable
from .app import FILE, INTERRUPTED, RECIPE, WHICH, app, document, recipe_path, tell_untracked

if TYPE_CHECKING:
    from ..prepare import Prepared
    from ..runs import RunResult


def _prepare(
    recipes: Iterable[str],
    overrides: Sequence[str],
    workflows: Path | None,
    store: Path | None,
    to: Sequence[str] = (),
    force: Sequence[str] = (),
    from_: Sequence[str] = (),
) -> Prepared:
    """Recipes named by file or as they ship, with their plan."""
    from .. import api

    return api.prepare(
        [recipe_path(text) for text in recipes],
        set=overrides,
        to=to,
        force=force,
        from_=from_,
        store=store,
        workflows=workflows,
    )


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@WHICH
@click.option("--jobs", type=click.IntRange(0), help="Worker processes; 0 runs in this process.")
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of a stage's own numerical libraries."
)
@click.option(
    "--fail-fast/--keep-going",
    help="Start nothing more after a failure, or finish all that does not depend on it (default).",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Longest that a stage may run.",
)
@click.option("--dump-ir", is_flag=True, help="Keep readable IR of before and after passes.")
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    help="Copy the bundle there; of several, each into a folder of its own below.",
)
@click.option(
    "--track",
    type=click.Choice(["off", "auto", "required"]),
    help="MLflow: not at all, in the background, or wait for it and exit 5 when it fails. "
    "[default: $TAPML_TRACK, else `engine:` of workflows.yaml, else auto]",
)
@RECIPE
def run(
    recipes: tuple[str, ...],
    to: tuple[str, ...],
    force: tuple[str, ...],
    from_: tuple[str, ...],
    jobs: int | None,
    threads: int | None,
    fail_fast: bool,
    timeout_s: float | None,
    dump_ir: bool,
    out: Path | None,
    track: Literal["off", "auto", "required"] | None,
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Build, tune, validate and measure what RECIPE says; what is cached is not done again.

    Several recipes, and all points of a matrix, are one plan: what they share is done once.
    """
    from .. import api, progress, summary

    prepared = _prepare(recipes, overrides, workflows, store, to, force, from_)
    click.echo(f"store {prepared.store.root}", err=True)
    for text in prepared.estimate(jobs).counted:
        click.echo(printable(text), err=True)
    for text in prepared.warnings(jobs):
        click.echo(f"{click.style('warning:', fg='yellow')} {text}", err=True)
    tell_untracked(prepared.store.root, prepared.tracking(track).mode)
    started = time.monotonic()
    with progress.watching() as watch:
        results = api.execute(
            prepared,
            jobs=jobs,
            threads=threads,
            fail_fast=fail_fast,
            timeout_s=timeout_s,
            dump_ir=dump_ir,
            out=out,
            track=track,
            check=False,
            watch=watch,
        )
    _tell(results)
    code = next((result.exit_code for result in results if result.exit_code), 0)
    if code >= INTERRUPTED:
        click.echo(f"to go on, with nothing done twice: {_going_on(results, force)}", err=True)
    if as_json:
        document({"exit_code": code, "runs": [summary.to_data(result) for result in results]})
        return code
    took = time.monotonic() - started
    click.echo(summary.of_batch(results, took) if len(results) > 1 else summary.of_run(*results))
    for result in results:
        if dump_ir and (views := summary.of_views(result)):
            click.echo(views)
    if out is not None and (copied := [one for one in results if one.exit_code == 0]):
        click.echo(f"copied   {', '.join(str(out / one.label) for one in copied)}")
    return code


def _going_on(results: Sequence[RunResult], force: Iterable[str]) -> str:
    """The command line as it was typed, but what was forced and has been made is not forced again.

    A `--from` stays: what is below it may not have been made again yet.
    """
    steps = [step for result in results for step in result.steps]
    left = {step.name for step in steps if step.state in ("interrupted", "cancelled")}
    words = sys.argv[1:]
    for name in force:
        if name in left:
            continue
        if f"--force={name}" in words:
            words.remove(f"--force={name}")
        else:
            place = next(i for i, pair in enumerate(pairwise(words)) if pair == ("--force", name))
            del words[place : place + 2]
    return shlex.join(["tapml", *words])


def _tell(results: Sequence[RunResult]) -> None:
    """The errors of runs, on stderr; that of a stage which several share once."""
    told: dict[str, list[tuple[str, Path | None]]] = {}
    for result in results:
        failed = [step for step in result.steps if step.state == "failed" and step.error]
        for step in failed:
            told.setdefault(f"{step.name}: {step.error}", []).append((result.label, step.log))
        if not failed and result.error is not None:
            told.setdefault(str(result.error), []).append((result.label, None))
    for text, runs_of in told.items():
        label, log = runs_of[0]
        of = f"{len(runs_of)} runs: " if len(runs_of) > 1 else f"{label}: " if label else ""
        body = of + text + (f"\n  log: {log}" if log else "")
        head = click.style("error: ", fg="red", bold=True)
        click.echo(head + printable(body, keep="\n"), err=True)


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option(
    "--graph", type=click.Choice(["text", "mermaid"]), help="Draw what needs what instead."
)
@WHICH
@RECIPE
def plan(
    recipes: tuple[str, ...],
    graph: Literal["text", "mermaid"] | None,
    to: tuple[str, ...],
    force: tuple[str, ...],
    from_: tuple[str, ...],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Show what would run, what is cached, and why; runs nothing."""
    from .. import summary

    prepared = _prepare(recipes, overrides, workflows, store, to, force, from_)
    if as_json:
        document(prepared.to_data())
        return
    if graph is not None:
        click.echo(summary.of_graph(prepared.plan, graph))
        return
    click.echo(summary.of_plan(prepared))
    for text in prepared.warnings():
        click.echo(f"{click.style('warning:', fg='yellow')} {text}")


@app.command()
@click.argument("recipe")
@click.argument("stage")
@RECIPE
def explain(
    recipe: str,
    stage: str,
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Tell which field, file or tool version made STAGE stale: old → new."""
    from .. import summary

    prepared = _prepare([recipe], overrides, workflows, store)
    names = prepared.named(stage)
    if as_json:
        rows = [row for row in prepared.plan.to_data() if row["name"] in names]
        document(rows[0] if len(rows) == 1 else {"stages": rows})
        return
    for name in names:
        click.echo(summary.of_step(prepared.plan[name]))


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@RECIPE
def validate(
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Check recipe, workflow, target, and that the files and Python functions they name exist."""

    prepared = _prepare(recipes, overrides, workflows, store)
    found = [
        {
            "recipe": str(one.recipe.path),
            "name": one.recipe.name,
            "label": one.label,
            "workflow": one.recipe.workflow,
            "workflows": str(one.workflows),
            "stages": list(one.steps),
            "target": f"{one.recipe.target.kind} {one.recipe.target.mcpu}".strip(),
        }
        for one in prepared.members
    ]
    if as_json:
        document({"valid": found})
        return
    for row in found:
        label = f" [{row['label']}]" if row["label"] else ""
        stages = f"{len(row['stages'])} stages of {row['workflow']} ({row['workflows']})"
        click.echo(f"{row['recipe']}{label}: valid; {stages}; target {row['target']}")
