"""The command `tapml`. Parses arguments, calls the engine, prints; imports the rest of tapml inside
the commands, so that `--help` stays quick. stdout carries only the result, all else goes to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click

from ..errors import TapmlError
from ..terminal import printable
from . import build as build
from . import cache as cache
from . import db as db
from . import describe as describe
from . import generate as generate
from . import models as models
from . import results as results
from . import worker as worker
from .app import INTERRUPTED, app, document


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
        _fail("interrupted", INTERRUPTED, as_json=as_json)
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
        document({"error": message, "exit_code": code})
    sys.exit(code)
