"""The command `tapml`. Parses arguments, calls the engine, prints; imports the rest of tapml inside
the commands,
so that `--help` stays quick. stdout carries only the result, everything else goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import click

from .errors import EnvironmentalError, RecipeError, TapmlError
from .terminal import printable

if TYPE_CHECKING:
    from .runs import RunResult
    from .store import Record, Store

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_INTERRUPTED = 130


def main() -> NoReturn:
    """Runs the command line; every error that a user can act on ends here, as a message and an exit
    code.
    """
    as_json = "--json" in sys.argv
    try:
        code = app.main(standalone_mode=False)
    except TapmlError as error:
        _fail(str(error), error.exit_code, as_json=as_json)
    except click.ClickException as error:
        context = (
            error.ctx.get_usage() + "\n"
            if isinstance(error, click.UsageError) and error.ctx
            else ""
        )
        _fail(f"{context}{error.format_message()}", error.exit_code, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", _INTERRUPTED, as_json=as_json)
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (
        Exception
    ) as error:  # the process's last frame: a bug is shown whole, and --json stays one document
        traceback.print_exc()
        _fail(f"this is a bug of tapml: {type(error).__name__}: {error}", 1, as_json=as_json)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, *, as_json: bool) -> NoReturn:
    head = click.style("error: ", fg="red", bold=True)
    click.echo(head + printable(message, keep="\n"), err=True)
    if as_json:
        _document({"error": message, "exit_code": code})
    sys.exit(code)


def _document(data: object) -> None:
    click.echo(json.dumps(data, indent=1, ensure_ascii=False, default=str))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tapml", message="%(package)s %(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Builds, tunes, validates and measures a deployable library from one recipe.

    \b
    tapml run recipes/magika.yaml      build it; the second time nothing is left to do
    tapml plan recipes/magika.yaml     what would run, and why
    tapml doctor                       whether this machine has all it takes
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options that several commands share, in the order in which help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_STORE = click.option(
    "--store", type=_FILE, help="Where results are kept. [default: $TAPML_STORE, else artifacts/]"
)
_RECIPE = _options(
    click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field."),
    click.option("--workflows", type=_FILE, help="Use this workflows.yaml."),
    _STORE,
    _JSON,
)
_WHICH = _options(
    click.option("--to", multiple=True, metavar="STAGE", help="Stop after this stage."),
    click.option("--force", multiple=True, metavar="STAGE", help="Run this stage again."),
    click.option(
        "--from",
        "from_",
        multiple=True,
        metavar="STAGE",
        help="Run this stage and all below it again.",
    ),
)


def _recipe_path(text: str) -> Path:
    """The file, or the shipped recipe of this name."""
    path = Path(text)
    if path.exists() or path.suffix or os.sep in text:
        return path
    from . import shipped

    return shipped.recipe(text)


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@_WHICH
@click.option("--jobs", type=click.IntRange(0), help="Worker processes; 0 runs in this process.")
@click.option(
    "--threads", type=click.IntRange(1), help="Threads of a stage's own numerical libraries."
)
@click.option("--fail-fast", is_flag=True, help="Start nothing more after a failure.")
@click.option("--dump-ir", is_flag=True, help="Keep readable IR of before and after passes.")
@click.option(
    "--out", type=_FILE, metavar="DIR", help="Copy the bundle there (DIR/NAME for several recipes)."
)
@click.option(
    "--track",
    type=click.Choice(["off", "auto", "required"]),
    default="auto",
    envvar="TAPML_TRACK",
    show_default=True,
    help="MLflow: not at all, in the background, or wait for it and exit 5 when it fails.",
)
@_RECIPE
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
    from . import api, progress, summary

    paths = [_recipe_path(text) for text in recipes]
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
        if result.exit_code >= _INTERRUPTED:
            break
    code = next((result.exit_code for result in done if result.exit_code), 0)
    if as_json:
        _document({"exit_code": code, "runs": [summary.to_data(result) for result in done]})
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
@_WHICH
@_RECIPE
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
    from . import api, summary

    plans: list[api.Prepared] = [
        api.prepare(
            _recipe_path(text),
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
        _document({"plans": [{"recipe": p.recipe.name, "stages": p.plan.to_data()} for p in plans]})
        return
    for prepared in plans:
        click.echo(
            click.style(f"{prepared.recipe.name}", bold=True) + f"  in {prepared.store.root}"
        )
        click.echo(summary.of_plan(prepared.plan))


@app.command()
@click.argument("recipe")
@click.argument("stage")
@_RECIPE
def explain(
    recipe: str,
    stage: str,
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Tell which field, file or tool version made STAGE stale: old → new."""
    from . import api
    from . import runs as folders
    from .errors import nearest

    prepared = api.prepare(_recipe_path(recipe), set=overrides, store=store, workflows=workflows)
    names = [step.name for step in prepared.plan]
    if stage not in names:
        raise RecipeError(
            message=f"no stage {stage!r} in this workflow", hint=nearest(stage, names)
        )
    step = prepared.plan[stage]
    if as_json:
        _document(next(row for row in prepared.plan.to_data() if row["name"] == stage))
        return
    if step.state == "hit" and step.record is not None:
        click.echo(f"{stage} is cached: made {folders.local(step.record.made_at)}, key {step.key}")
        return
    click.echo(f"{stage} {'would run' if step.state == 'run' else 'may run'}: {step.reason}")
    for change in step.changes:
        click.echo(f"  {change.kind:<8} {change.field}: {change.old} → {change.new}")


@app.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@_RECIPE
def validate(
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Check recipe, workflow, target, and that the files and Python functions they name exist."""
    from . import api

    found: list[dict[str, Any]] = []
    for text in recipes:
        prepared = api.prepare(_recipe_path(text), set=overrides, store=store, workflows=workflows)
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
        _document({"valid": found})
        return
    for row in found:
        stages = f"{len(row['stages'])} stages of {row['workflow']} ({row['workflows']})"
        click.echo(f"{row['recipe']}: valid; {stages}; target {row['target']}")


@app.command()
@click.argument("recipe")
@click.option("--resolved", is_flag=True, help="With every default and the full target.")
@_RECIPE
def show(
    recipe: str,
    resolved: bool,
    overrides: tuple[str, ...],
    workflows: Path | None,
    store: Path | None,
    as_json: bool,
) -> None:
    """Print the recipe as it is understood."""
    import yaml

    from . import recipe as recipes

    loaded = recipes.load(_recipe_path(recipe), overrides)
    text = loaded.resolved_yaml() if resolved else ""
    if as_json:
        _document(yaml.safe_load(text) if resolved else loaded.data)
        return
    click.echo(
        (
            text or yaml.safe_dump(loaded.data, sort_keys=False, allow_unicode=True, width=100)
        ).rstrip()
    )


@app.command()
@click.option("--out", type=_FILE, help="Write it there, such as recipes/recipe.schema.json.")
@click.option("--markdown", is_flag=True, help="The reference for people instead.")
def schema(out: Path | None, markdown: bool) -> None:
    """Print the JSON Schema of recipes, for editors, or their reference."""
    if markdown:
        from .recipe import reference

        text = reference.markdown()
    else:
        from . import recipe as recipes

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
@click.option(
    "--from", "source", default="magika", show_default=True, help="A recipe that ships with tapml."
)
@click.argument("folder", type=_FILE, required=False, metavar="[DIR]")
def new(source: str, folder: Path | None) -> None:
    """Copy a shipped recipe, with the files it needs, to start from."""
    from . import scaffold

    copied = scaffold.copy_recipe(source, folder or Path(source))
    for path in copied:
        click.echo(path)
    click.echo(f"next: tapml run {copied[0]}", err=True)


@app.command()
@click.argument("model", type=_FILE)
@_JSON
def inspect(model: Path, as_json: bool) -> None:
    """Show what an ONNX file holds, and a recipe to start from. Needs `onnx`, no TVM."""
    from dataclasses import asdict

    from . import scaffold, summary

    found = scaffold.inspect(model)
    if as_json:
        _document({**asdict(found), "recipe": scaffold.draft(found)})
        return
    size = f"{found.parameters:,} parameters, {found.mib:.1f} MiB, opset {found.opset}"
    click.echo(f"{model}: {size}\n")
    tensors = [("input", t) for t in found.inputs] + [("output", t) for t in found.outputs]
    rows = [(kind, t.name, "×".join(map(str, t.shape)) or "scalar", t.dtype) for kind, t in tensors]
    click.echo(summary.table(("", "name", "shape", "dtype"), rows))
    click.echo(
        "\n"
        + summary.table(("operator", "count"), [(k, str(n)) for k, n in found.operators.items()])
    )
    layers = [(x.node or "–", x.op, x.weight, "×".join(map(str, x.shape))) for x in found.prunable]
    click.echo("\n" + summary.table(("prunable node", "operator", "weight", "shape"), layers))
    click.echo(
        f"\n{click.style('a recipe to start from', bold=True)}\n{scaffold.draft(found).rstrip()}"
    )


@app.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@_STORE
@_JSON
def runs(limit: int, store: Path | None, as_json: bool) -> None:
    """List runs, the newest first, killed ones too."""
    from . import api, journal, summary
    from . import runs as folders

    root = api.store_root(store)
    folder = folders.folder_of(root)
    others = {name: folders.killed(folder / name) for name in folders.unfinished(root)[:limit]}
    found = [folders.load(folder / name) for name in folders.ids(root)[:limit]]
    found += [run for run in others.values() if run is not None]
    found = sorted(found, key=lambda run: run.started, reverse=True)[:limit]
    if as_json:
        _document({"runs": [summary.to_data(one) for one in found]})
        return
    for name in (name for name, run in others.items() if run is None):
        state = "running" if journal.is_written(folder / name) else "left no record of its end"
        click.echo(f"{name}: {state}", err=True)
    if not found:
        click.echo(f"no runs in {folder}", err=True)
        return
    columns = ("run", "recipe", "when", "state", "ran", "latency", "vs peer", "error", "metric")
    click.echo(summary.table(columns, [summary.of_row(one) for one in found]))


@app.command()
@click.argument("run", default="last")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser.")
@_STORE
def report(run: str, opens: bool, store: Path | None) -> None:
    """Write the report of RUN again and print its path."""
    from . import api
    from . import report as reports
    from . import runs as folders

    path = reports.write(folders.find(run, api.store_root(store)))
    click.echo(path)
    if opens:
        click.launch(f"file://{path}")


@app.command()
@click.argument("run")
@click.argument("folder", type=_FILE, metavar="DIR")
@_STORE
def export(run: str, folder: Path, store: Path | None) -> None:
    """Copy the bundle of RUN to DIR; it runs there without tapml."""
    from . import api

    click.echo(api.export(run, folder, store=store))


@app.command()
@click.argument("run", required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@_STORE
def ui(run: str | None, port: int, store: Path | None) -> int:
    """Serve MLflow on 127.0.0.1 until Ctrl-C, and print the link to the view that compares runs."""
    from . import api, server
    from . import runs as folders

    root = api.store_root(store)
    return server.serve(root, folders.find(run, root) if run else None, port)


@app.group()
def cache() -> None:
    """Look into the store of results."""


@cache.command("ls")
@_STORE
@_JSON
def cache_ls(store: Path | None, as_json: bool) -> None:
    """List stored results, the newest first within each stage."""
    from . import api, summary
    from . import runs as folders
    from .store import Store

    root = Store(api.store_root(store))
    records = list(root.records())
    if as_json:
        facts = ("stage", "key", "made_at", "seconds", "outputs")
        rows = [{name: getattr(record, name) for name in facts} for record in records]
        _document({"store": str(root.root), "results": rows})
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
@_STORE
@_JSON
def cache_verify(store: Path | None, as_json: bool) -> None:
    """Read everything; set aside what is damaged, so that it is made again."""
    from . import api
    from .store import Store

    root = Store(api.store_root(store))
    problems = root.verify()
    if as_json:
        _document({"store": str(root.root), "damaged": problems})
        return
    for line in problems:
        click.echo(line)
    note = (
        f"{len(problems)} damaged, set aside; the next run makes them again"
        if problems
        else "all whole"
    )
    click.echo(f"{root.root}: {note}")


@app.group()
def track() -> None:
    """MLflow tracking."""


@track.command("sync")
@click.argument("run_ids", nargs=-1, metavar="[RUN]...")
@_STORE
def track_sync(run_ids: tuple[str, ...], store: Path | None) -> None:
    """Bring RUNs, or all that are not there yet, into MLflow. Doing it twice changes nothing."""
    from . import api, tracking
    from . import runs as folders

    root = api.store_root(store)
    chosen = [folders.find(run, root).folder for run in run_ids] or tracking.pending(root)
    tracking.sync(root, chosen)
    click.echo(
        f"{len(chosen)} runs brought to {tracking.uri(root)}" if chosen else "nothing to bring"
    )


@app.command()
@_STORE
@_JSON
def doctor(store: Path | None, as_json: bool) -> int:
    """Check packages, compiler, CPU, disk and stages, each with the command that mends it."""
    from . import api
    from . import doctor as findings

    found = findings.examine(api.store_root(store))
    error = findings.error(found)
    code = error.exit_code if error else 0
    if as_json:
        _document({"exit_code": code, "findings": [vars(one) for one in found]})
        return code
    for one in found:
        mark = "ok  " if one.is_met else "MISS" if one.required else "warn"
        colour = "green" if one.is_met else "red" if one.required else "yellow"
        mend = "" if one.is_met else f"   → {one.mend}"
        click.echo(f"{click.style(mark, fg=colour)}  {one.need:<34} {one.found}{mend}")
    return code
