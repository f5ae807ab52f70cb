"""torch modules and `.pt2` files, through torch.export."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.errors import RecipeError, nearest

from ...program import Bounds
from ..operator import write_source
from ..signature import Wanted, match_inputs
from ..source import Imported

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from tapml.stage import Context

    from ..stage import Import


def load(stage: Import, ctx: Context) -> Imported:
    """The model of a Python function that returns a module and example inputs, or of a `.pt2`.

    Raises: RecipeError when inputs, dims or outputs do not fit; StageError when torch cannot export
            the module, the file is not safe to load, or the program cannot be imported.
    """
    import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before TVM, which looks for it

    from . import export
    from .convert import convert

    folder = ctx.workdir / "source"
    if stage.python is not None:
        where = f"{stage.python.path}: {stage.python.function}()"
        exported, inputs = _of_module(stage, where)
        facts = {**write_source(stage.python, folder), "kind": "torch"}
    else:
        assert stage.file is not None
        where = stage.file.path
        exported, inputs = _of_file(stage)
        folder.mkdir()
        shutil.copyfile(stage.file.path, folder / "model.pt2")
        facts = {"kind": "pt2", "model": "model.pt2"}
    names = export.output_names(exported)
    program, weights = convert(
        exported,
        inputs={name: want.shape for name, want in inputs.items()},
        outputs=keep(names, stage.keep),
        dims=_bounds(stage),
        buckets=stage.buckets,
        where=where,
    )
    return Imported(program, weights, {**facts, "inputs": list(inputs), "outputs": names})


def keep(names: Sequence[str], wanted: Sequence[str]) -> list[str | None]:
    """The outputs that `model.outputs` keeps, None for the others; all if it is left out."""
    for index, name in enumerate(wanted):
        if name not in names:
            raise RecipeError(
                field=f"model.outputs.{index}",
                message=f"the model has no output {name!r}",
                hint=nearest(name, list(names), noun="outputs"),
            )
    return [name if not wanted or name in wanted else None for name in names]


def _of_module(stage: Import, where: str) -> tuple[ExportedProgram, dict[str, Wanted]]:
    from ...torch_model import call
    from . import export

    assert stage.python is not None
    module, arguments = call(stage.python, "model.python")
    there = export.examples_of(arguments)
    inputs = match_inputs(there, _wanted(stage), what="the module", examples=True)
    return export.export(module, arguments, inputs, _bounds(stage), where), inputs


def _of_file(stage: Import) -> tuple[ExportedProgram, dict[str, Wanted]]:
    from ...torch_model import load
    from . import export

    assert stage.file is not None
    exported = load(Path(stage.file.path))
    there = export.inputs_of(exported)
    inputs = match_inputs(there, _wanted(stage), what="the program", examples=True)
    return exported, inputs


def _wanted(stage: Import) -> dict[str, Wanted]:
    for name, spec in stage.signature.items():
        if spec.value is not None or spec.override:
            field = "value" if spec.value is not None else "override"
            raise RecipeError(
                field=f"model.inputs.{name}.{field}",
                message=f"source: torch takes no `{field}`",
                hint="set it in the Python that returns the module and its example inputs",
            )
    return {name: Wanted(spec.shape, spec.dtype) for name, spec in stage.signature.items()}


def _bounds(stage: Import) -> dict[str, Bounds]:
    return {name: Bounds(bounds.min, bounds.max) for name, bounds in stage.dims.items()}
