"""torch modules and `.pt2` files, through torch.export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapml.errors import RecipeError, StageError, nearest

from ...program import Bounds
from ..operator import write_source
from ..source import Imported

if TYPE_CHECKING:
    from torch import nn

    from tapml.stage import Context, PythonFunction

    from ..stage import Import


def load(stage: Import, ctx: Context) -> Imported:
    """The model of a Python function that returns a module and example inputs, or of a `.pt2`.

    Raises: RecipeError when inputs, dims or outputs do not fit; StageError when torch cannot export
            the module, or the program cannot be imported.
    """
    import torch  # before TVM, which looks for it

    from . import convert, export

    dims = {name: Bounds(bounds.min, bounds.max) for name, bounds in stage.dims.items()}
    wanted = {n: export.Wanted(spec.shape, spec.dtype) for n, spec in stage.signature.items()}
    assert stage.python is not None
    where = f"{stage.python.path}: {stage.python.function}()"
    module, examples = call(stage.python)
    arguments = export.arguments(module, examples, where)
    there = {
        name: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    inputs = export.match_inputs(there, wanted, "the module")
    exported = export.export(module, arguments, inputs, dims, where)
    names = export.output_names(exported)
    facts = {**write_source(stage.python, ctx.workdir / "source"), "kind": "torch"}
    program, weights = convert.convert(
        exported,
        inputs={name: want.shape for name, want in inputs.items()},
        outputs=keep(names, stage.keep),
        dims=dims,
        buckets=stage.buckets,
        where=where,
    )
    return Imported(program, weights, {**facts, "outputs": names})


def call(function: PythonFunction) -> tuple[nn.Module, Any]:
    """What the recipe's function returns. StageError when it raises, or returns something else."""
    from torch import nn

    made = function.load("model.python")
    try:
        pair = made()
    except Exception as error:  # the user's code: anything may come out of it
        raise function.told(error) from error
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Module)):
        raise StageError(
            message=f"{function.path}: {function.function}() returned a {type(pair).__name__}",
            hint="return (module, example inputs): a torch.nn.Module, a tuple or dict of tensors",
        )
    return pair[0].eval(), pair[1]


def keep(names: list[str], wanted: tuple[str, ...]) -> list[str | None]:
    """The outputs that `model.outputs` keeps, None for the others; all if it is left out."""
    for index, name in enumerate(wanted):
        if name not in names:
            raise RecipeError(
                field=f"model.outputs.{index}",
                message=f"the model has no output {name!r}",
                hint=nearest(name, names, noun="outputs"),
            )
    return [name if not wanted or name in wanted else None for name in names]
