"""One interface for every source: `load(stage, ctx) -> Imported`, and how a preflight refuses.

A source is a module (or a folder) of this room, found in `SOURCES` by `model.source`. It reads
the model, refuses with every unsupported operator at once, writes the `source` folder that the
reference runs, and returns the program by way of `finish.finish`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from tapml.errors import RecipeError, StageError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from tapml.stage import Context, Table

    from ..program import Program
    from .stage import Import

SOURCES = {
    "onnx": "onnx.source",
    "torch": "torch.source",
    "huggingface": "huggingface.source",
    "gguf": "gguf.source",
    "relax": "relax_file",
    "operator": "operator",
}


@dataclass(frozen=True)
class Imported:
    """What a source gives.

    program:  Relax ops; bindings named after their source nodes, weights as parameters
    weights:  arrays under source names; may be views of a mapped file
    facts:    plain data for source.json: `kind` (how the reference runs it) and its files
    files:    files to lie beside the bundle (a tokenizer), by name
    tables:   what the report tells of this source
    """

    program: Program
    weights: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    files: Mapping[str, Path] | None = None
    tables: tuple[Table, ...] = ()


class Source(Protocol):
    """A module in `SOURCES`."""

    def load(self, stage: Import, ctx: Context) -> Imported: ...


def find(name: str) -> Source:
    """The module of a source; imports what it needs (TVM, torch)."""
    return cast("Source", import_module(f"{__package__}.{SOURCES[name]}"))


class UnknownShapeError(StageError):
    """A shape that does not follow from the inputs'; where those have fixed sizes it may."""


def no_input(name: str, known: Collection[str]) -> RecipeError:
    """An input of the recipe that the model does not have."""
    return RecipeError(
        field=f"model.inputs.{name}",
        message=f"the model has no input {name!r}",
        hint=nearest(name, list(known), noun="inputs"),
    )


@dataclass(frozen=True)
class Unsupported:
    """An operator that cannot be imported: the nodes that use it, and what can be done."""

    op: str
    nodes: tuple[str, ...]
    advice: str = ""


def refuse(where: str, unsupported: Iterable[Unsupported]) -> None:
    """Raises StageError that lists every unsupported operator with count, nodes and advice.

    In: `where`: the file or function that the model comes from; of an empty list, nothing is told
    """
    rows = sorted(unsupported, key=lambda one: one.op)
    if not rows:
        return
    lines = [
        f"  {one.op} ×{len(one.nodes)}: {', '.join(one.nodes[:8])}"
        f"{' …' if len(one.nodes) > 8 else ''}{f' — {one.advice}' if one.advice else ''}"
        for one in rows
    ]
    raise StageError(
        message=f"{where}: {len(rows)} operators cannot be imported:\n" + "\n".join(lines),
        hint="replace them in the exporter, or simplify the model first",
    )
