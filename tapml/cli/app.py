"""The group of commands, and what they share: options, paths, one JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from ..errors import EnvironmentalError
from ..terminal import printable

if TYPE_CHECKING:
    from importlib import metadata

Command = TypeVar("Command", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
INTERRUPTED = 130


def document(data: object) -> None:
    """Prints data as JSON; what a terminal might obey is escaped as JSON escapes it."""
    text = json.dumps(data, indent=1, ensure_ascii=False, default=str)
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


class Commands(click.Group):
    """The commands of the engine, and those that packages register: theirs are loaded when they are
    asked for.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_registered().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        for point in _registered().select(name=cmd_name):
            try:
                return cast("click.Command", point.load())
            except (ImportError, AttributeError) as error:
                owner = point.dist.name if point.dist else point.module
                raise EnvironmentalError(
                    message=f"command {cmd_name!r} of {owner!r} cannot be loaded: {error}",
                    hint=f"pip install --force-reinstall {owner}",
                ) from error
        return None


def _registered() -> metadata.EntryPoints:
    from importlib import metadata

    return metadata.entry_points(group="tapml.commands")


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
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


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
STORE = click.option(
    "--store", type=FILE, help="Where results are kept. [default: $TAPML_STORE, else artifacts/]"
)
RECIPE = _options(
    click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field."),
    click.option("--workflows", type=FILE, help="Use this workflows.yaml."),
    STORE,
    JSON,
)
WHICH = _options(
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


def tell_untracked(store: Path, mode: str) -> None:
    """A line on stderr about runs that did not come to MLflow, unless tracking is off."""
    from .. import tracking

    if mode != "off" and (missed := tracking.missed(store)):
        head = click.style("warning:", fg="yellow")
        click.echo(f"{head} {printable(missed)}; `tapml track sync` brings them", err=True)


def recipe_path(text: str) -> Path:
    """The file, or the shipped recipe of this name."""
    path = Path(text)
    if path.exists() or path.suffix or os.sep in text:
        return path
    from .. import shipped

    return shipped.recipe(text)
