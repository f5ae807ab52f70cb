"""The recipe's module through torch.export, with the recipe's dims as dynamic sizes."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from tapml.errors import RecipeError, RecipeErrors, StageError, nearest

from ...program import Bounds
from .shapes import Shape

_KEPT_WHOLE = (  # operators of torch that have one in Relax: not taken apart
    torch.ops.aten.layer_norm.default,
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.silu.default,
)


@dataclass(frozen=True)
class Wanted:
    """One input as the recipe wants it."""

    shape: Shape
    dtype: str


def arguments(module: torch.nn.Module, examples: Any, where: str) -> dict[str, Any]:
    """Example inputs by the names of the forward signature, in its order."""
    args, kwargs = ((), examples) if isinstance(examples, Mapping) else (examples, {})
    if isinstance(args, torch.Tensor):
        args = (args,)
    if not isinstance(args, tuple | list):
        raise StageError(
            message=f"{where} gave example inputs of type {type(examples).__name__}",
            hint="return (module, inputs); inputs: a tuple of tensors, or a dict by parameter name",
        )
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise StageError(
            message=f"{where}: its example inputs do not fit forward(): {error}"
        ) from error
    return dict(bound.arguments)


def match_inputs(
    there: Mapping[str, tuple[tuple[Any, ...], str]],
    wanted: Mapping[str, Wanted],
    what: str,
) -> dict[str, Wanted]:
    """Every input's shape and dtype, in the module's order, as the recipe wants them.

    In:     shape and dtype of the example inputs, by name; without `wanted` they are it
    Raises: RecipeError(s): unknown or missing names, other ranks, dtypes or fixed sizes.
    """
    if not wanted:
        return {name: Wanted(tuple(shape), dtype) for name, (shape, dtype) in there.items()}
    errors: list[RecipeError] = []

    def wrong(field: str, message: str, hint: str = "") -> None:
        errors.append(RecipeError(field=field, message=message, hint=hint))

    for name in wanted:
        if name not in there:
            hint = nearest(name, list(there), noun="inputs")
            wrong(f"model.inputs.{name}", f"{what} has no input {name!r}", hint)
    result: dict[str, Wanted] = {}
    for name, (shape, dtype) in there.items():
        text = f"input {name!r} ({dtype}[{', '.join(map(str, shape))}])"
        if name not in wanted:
            wrong("model.inputs", f"{text} has no shape in the recipe")
            continue
        want, field = wanted[name], f"model.inputs.{name}"
        if want.dtype != dtype:
            wrong(f"{field}.dtype", f"{what} takes {text}, not {want.dtype}")
        if len(want.shape) != len(shape):
            wrong(
                f"{field}.shape", f"{what} takes {text}: {len(shape)} dims, not {len(want.shape)}"
            )
        elif fixed := [
            f"dim {axis} is {has} there, not {want_size}"
            for axis, (has, want_size) in enumerate(zip(shape, want.shape, strict=True))
            if isinstance(want_size, int) and has != want_size
        ]:
            wrong(f"{field}.shape", f"{what} takes {text}: {'; '.join(fixed)}")
        result[name] = want
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeErrors(errors=tuple(errors), message=f"{len(errors)} mistakes in model.inputs")
    return result


def export(
    module: torch.nn.Module,
    arguments: Mapping[str, Any],
    wanted: Mapping[str, Wanted | Mapping[str, Wanted]],
    dims: Mapping[str, Bounds],
    where: str,
) -> ExportedProgram:
    """The module exported, its inputs' axes dynamic where `wanted` names a dim.

    In:     `arguments`: values for forward by name: tensors, dicts of tensors, and others
    Raises: StageError with torch's reason: a dim that the code fixes, a branch on data.
    """
    sizes = _example_sizes(dims)
    names = {name: Dim(name, min=bounds.min, max=bounds.max) for name, bounds in dims.items()}
    examples = dict(arguments)
    dynamic: dict[str, Any] = dict.fromkeys(arguments)

    def sized(example: Any, want: Wanted | Mapping[str, Wanted]) -> tuple[Any, Any]:
        """The example at the sizes of its dims, and which axes they are."""
        if isinstance(want, Mapping):
            pairs = {name: sized(example[name], one) for name, one in want.items()}
            values, axes = zip(*pairs.values(), strict=True)
            return dict(zip(pairs, values, strict=True)), dict(zip(pairs, axes, strict=True))
        axes = {axis: dim for axis, dim in enumerate(want.shape) if isinstance(dim, str)}
        for axis, dim in axes.items():
            example = _resized(example, axis, sizes[dim])
        return example, {axis: names[dim] for axis, dim in axes.items()}

    for name, want in wanted.items():
        examples[name], dynamic[name] = sized(examples[name], want)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                module.eval(), (), examples, dynamic_shapes=dynamic, strict=False
            )
    except Exception as error:  # the model's own code runs in it: anything may come out
        raise _told(error, where, dims) from error


def decomposed(exported: ExportedProgram, supported: Callable[[fx.Node], bool]) -> ExportedProgram:
    """In operators that are `supported`, as far as torch knows how to take others apart."""
    table, done = _core(), set[Any]()
    while table:
        done |= table.keys()
        with _quiet():
            exported = exported.run_decompositions(table)
        calls = [node for node in exported.graph.nodes if node.op == "call_function"]
        left = {node.target for node in calls if not supported(node)} - done
        table = {op: decomposition_table[op] for op in left if op in decomposition_table}
    return exported


@cache
def _core() -> dict[Any, Any]:
    """Torch's decompositions into core ATen, without those of operators that Relax has too."""
    table = dict(torch.export.default_decompositions())
    for op in _KEPT_WHOLE:
        table.pop(op, None)
    return table


def output_names(exported: ExportedProgram) -> list[str]:
    """Names of the output tensors: keys of what forward returns, positions in tuples."""
    spec = exported.call_spec.out_spec
    assert spec is not None
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    names = [
        ".".join(re.sub(r"^\W+|\W+$", "", str(key)) for key in path) or "output"
        for path, _ in paths
    ]
    return [f"output.{name}" if name[0].isdigit() else name for name in names]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings of its own deprecated code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


def _example_sizes(dims: Mapping[str, Bounds]) -> dict[str, int]:
    """A size for each dim, none 0 or 1 (torch takes those for fixed), no two alike if possible."""
    sizes: dict[str, int] = {}
    for name, bounds in dims.items():
        choices = range(max(bounds.min, 2), bounds.max + 1)[: len(dims) + 1]
        if not choices:
            raise RecipeError(
                field=f"model.dims.{name}",
                message=f"dim {name!r} can only be {bounds.max}",
                hint="write that size into model.inputs in place of the dim",
            )
        free = [size for size in choices if size not in sizes.values()]
        sizes[name] = (free or choices)[-1]
    return sizes


def _resized(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """The tensor with another size of an axis, its values repeated."""
    return tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])


def _told(error: Exception, where: str, dims: Mapping[str, Bounds]) -> StageError:
    """One message from torch's: the dims it names, its reason, what to do."""
    text = str(error)
    fixed = re.findall(
        r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text
    )
    if fixed:
        names = "; ".join(f"dim {name!r} to {size}" for name, size in dict(fixed).items())
        return StageError(
            message=f"{where}: the model's code fixes {names}",
            hint="write that size into model.inputs, or change the code: a Python loop or an "
            "`int()` over the size fixes it",
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return StageError(
        message=f"{where} cannot be exported by torch: {type(error).__name__}: {first}"
    )
