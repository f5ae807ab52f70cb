"""tapml: declarative recipes that build, tune, validate and measure deployable model libraries.

`run(recipe)`, `run_all(recipes)` and `load(run_or_path)` are the Python entry points; the command
`tapml` does the same from a shell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load, run, run_all
    from .runs import RunResult

__all__ = ["RunResult", "load", "run", "run_all"]


def __getattr__(name: str) -> Any:
    """Imports the entry points at their first use: `tapml --help` must stay quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api, runs

    return runs.RunResult if name == "RunResult" else getattr(api, name)
