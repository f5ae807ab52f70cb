"""Commands that take recipes through their stages: run, plan, explain, validate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..errors import RecipeError
from ..terminal import printable
from .app import FILE, INTERRUPTED, RECIPE, WHICH, app, document, recipe_path

if TYPE_CHECKING:
    from ..runs import RunResult


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@WHICH
@click.option("--jobs", type=click.IntRange(0), help="Worker processes; 0 runs in this process.")
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of a stage's own numerical libraries."
)
@click.option("--fail-fast", is_flag=True, help="Start nothing more after a failure.")
@click.option("--dump-ir", is_flag=True, help="Keep readable IR of before and after passes.")
@click.option(
    "--out", type=FILE, metavar="DIR", help="Copy the bundle there (DIR/NAME for several recipes)."
)
@click.option(
    "--track",
    type=click.Choice(["off", "auto", "required"]),
    default="auto",
    envvar="TAPML_TRACK",
    show_default=True,
    help="MLflow: not at all, in the background, or wait for it and exit 5 when it fails.",
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
    dump_ir: bool,
    out: Path | None,
    track: Literal["off", "auto", "required"],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Build, tune, validate and measure what RECIPE says; what is cached is not done again."""
    from .. import api, progress, summary

    paths = [recipe_path(text) for text in recipes]
    which: dict[str, Any] = {
        "set": overrides,
        "to": to,
        "force": force,
        "from_": from_,
        "store": store,
        "workflows": workflows,
    }
    names = [""]
    if len(paths) > 1:  # every mistake in any of them, before the first one runs
        names = [api.prepare(path, **which).recipe.name for path in paths]
    if out is not None and len(set(names)) < len(names):
        raise RecipeError(message="--out: two recipes have one name", hint="run them one by one")
    click.echo(f"store {api.store_root(store, paths[0], workflows)}", err=True)
    done: list[RunResult] = []
    for path, name in zip(paths, names, strict=True):
        with progress.watching() as watch:
            result = api.run(
                path,
                **which,
                jobs=jobs,
                threads=threads,
                fail_fast=fail_fast,
                dump_ir=dump_ir,
                out=out / name if out else None,
                track=track,
                check=False,
                watch=watch,
            )
        done.append(result)
        _tell(result)
        if not as_json:
            click.echo(summary.of_run(result))
            if dump_ir and (views := summary.of_views(result)):
                click.echo(views)
            if out is not None and result.exit_code == 0:
                click.echo(f"copied   {out / name}")
        if result.exit_code >= INTERRUPTED:
            break
    code = next((result.exit_code for result in done if result.exit_code), 0)
    if as_json:
        document({"exit_code": code, "runs": [summary.to_data(result) for result in done]})
    return code


def _tell(result: RunResult) -> None:
    """The errors of a run, on stderr."""

    def tell(text: str) -> None:
        head = click.style("error: ", fg="red", bold=True)
        click.echo(head + printable(text, keep="\n"), err=True)

    failed = [step for step in result.steps if step.state == "failed" and step.error]
    for step in failed:
        log = f"\n  log: {step.log}" if step.log else ""
        tell(f"{step.name}: {step.error}{log}")
    if not failed and result.error is not None:
        tell(str(result.error))


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@WHICH
@RECIPE
def plan(
    recipes: tuple[str, ...],
    to: tuple[str, ...],
    force: tuple[str, ...],
    from_: tuple[str, ...],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Show what would run, what is cached, and why; runs nothing."""
    from .. import api, summary

    plans: list[api.Prepared] = [
        api.prepare(
            recipe_path(text),
            set=overrides,
            to=to,
            force=force,
            from_=from_,
            store=store,
            workflows=workflows,
        )
        for text in recipes
    ]
    if as_json:
        document({"plans": [{"recipe": p.recipe.name, "stages": p.plan.to_data()} for p in plans]})
        return
    for prepared in plans:
        click.echo(
            click.style(f"{prepared.recipe.name}", bold=True) + f"  in {prepared.store.root}"
        )
        click.echo(summary.of_plan(prepared.plan))


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
    from .. import api
    from .. import runs as folders
    from ..errors import nearest

    prepared = api.prepare(recipe_path(recipe), set=overrides, store=store, workflows=workflows)
    names = [step.name for step in prepared.plan]
    if stage not in names:
        raise RecipeError(
            message=f"no stage {stage!r} in this workflow", hint=nearest(stage, names)
        )
    step = prepared.plan[stage]
    if as_json:
        document(next(row for row in prepared.plan.to_data() if row["name"] == stage))
        return
    if step.state == "hit" and step.record is not None:
        click.echo(f"{stage} is cached: made {folders.local(step.record.made_at)}, key {step.key}")
        return
    click.echo(f"{stage} {'would run' if step.state == 'run' else 'may run'}: {step.reason}")
    for change in step.changes:
        click.echo(f"  {change.kind:<8} {change.field}: {change.old} → {change.new}")


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
    from .. import api

    found: list[dict[str, Any]] = []
    for text in recipes:
        prepared = api.prepare(recipe_path(text), set=overrides, store=store, workflows=workflows)
        loaded = prepared.recipe
        found.append(
            {
                "recipe": str(loaded.path),
                "name": loaded.name,
                "workflow": loaded.workflow,
                "workflows": str(prepared.workflows),
                "stages": [step.name for step in prepared.plan],
                "target": f"{loaded.target.kind} {loaded.target.mcpu}".strip(),
            }
        )
    if as_json:
        document({"valid": found})
        return
    for row in found:
        stages = f"{len(row['stages'])} stages of {row['workflow']} ({row['workflows']})"
        click.echo(f"{row['recipe']}: valid; {stages}; target {row['target']}")
