"""Commands that tell what is there before anything runs: show, schema, doctor."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import EnvironmentalError
from .app import FILE, JSON, RECIPE, STORE, app, document, recipe_path


@app.command()
@click.argument("recipe")
@click.option(
    "--resolved",
    is_flag=True,
    help="With every default and the full target, and where each value came from.",
)
@RECIPE
def show(
    recipe: str,
    resolved: bool,
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Print the recipe as it is understood: composed, filled in, one document for each point of
    its matrix.
    """
    from .. import recipe as recipes
    from .. import workflow
    from ..recipe.text import dump, flat

    path = recipe_path(recipe)
    allowed = workflow.load(workflow.find(path, workflows)).file.engine.env
    found = recipes.load_all(path, overrides, env=allowed)
    rows = [one.resolved() if resolved else one.data for one in found]
    if as_json:
        if resolved:
            for one, row in zip(found, rows, strict=True):
                row["x-origin"] = {name: one.origin(name) for name in flat(row)}
        document(rows[0] if len(rows) == 1 else {"recipes": rows})
        return
    for one, row in zip(found, rows, strict=True):
        if len(found) > 1:
            click.echo(f"---  # {one.label}")
        click.echo((one.explained_yaml() if resolved else dump(row)).rstrip())


@app.command()
@click.option("--out", type=FILE, help="Write it there, such as recipes/recipe.schema.json.")
@click.option("--markdown", is_flag=True, help="The reference for people instead.")
def schema(out: Path | None, markdown: bool) -> None:
    """Print the JSON Schema of recipes, for editors, or their reference."""
    if markdown:
        from ..recipe import reference

        text = reference.markdown()
    else:
        from .. import recipe as recipes

        text = json.dumps(recipes.json_schema(), indent=1, ensure_ascii=False) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentalError(message=f"cannot write {out}: {error.strerror}") from error
    click.echo(out)


@app.command()
@STORE
@JSON
def doctor(store: Path | None, as_json: bool) -> int:
    """Check packages, compiler, CPU, disk and stages, each with the command that mends it."""
    from .. import api
    from .. import doctor as findings

    found = findings.examine(api.store_root(store))
    error = findings.error(found)
    code = error.exit_code if error else 0
    if as_json:
        document({"exit_code": code, "findings": [vars(one) for one in found]})
        return code
    for one in found:
        mark = "ok  " if one.is_met else "MISS" if one.required else "warn"
        colour = "green" if one.is_met else "red" if one.required else "yellow"
        mend = "" if one.is_met else f"   → {one.mend}"
        click.echo(f"{click.style(mark, fg=colour)}  {one.need:<34} {one.found}{mend}")
    return code
