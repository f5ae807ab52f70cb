"""The recipe's module through torch.export, with the recipe's dims as dynamic sizes."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from tapml.errors import RecipeError, StageError

from ...program import Bounds
from ..signature import Wanted
from .call import dtype_of

_KEPT_WHOLE = (  # operators of torch that have one in Relax: not taken apart
    torch.ops.aten.layer_norm.default,
    torch.ops.aten.linear.default,
    torch.ops.aten.matmul.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.silu.default,
    torch.ops.aten.softplus.default,
)


def examples_of(arguments: Mapping[str, Any]) -> dict[str, Wanted]:
    """The arguments that are tensors, as inputs of their sizes."""
    return {
        name: Wanted(tuple(value.shape), dtype_of(value.dtype))
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }


def inputs_of(exported: ExportedProgram) -> dict[str, Wanted]:
    """The inputs of an exported program, by the names of its arguments."""
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    specs = exported.graph_signature.input_specs
    users = [
        one.arg.name
        for one in specs
        if one.kind is InputKind.USER_INPUT and not isinstance(one.arg, ConstantArgument)
    ]
    values = {name: nodes[name].meta["val"] for name in users}
    return {
        name: Wanted(
            tuple(None if isinstance(one, torch.SymInt) else int(one) for one in value.shape),
            dtype_of(value.dtype),
        )
        for name, value in values.items()
    }


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
    except StageError:  # of what stands in for a model's code
        raise
    except Exception as error:  # the model's own code runs in it: anything may come out
        raise _told(error, where) from error


def decomposed(exported: ExportedProgram, supported: Callable[[fx.Node], bool]) -> ExportedProgram:
    """In operators that are `supported`, as far as torch knows how to take others apart; it fails
    at those of complex numbers.
    """
    table, done = _core(), set[Any]()
    while table:
        done |= table.keys()
        with _quiet():
            exported = exported.run_decompositions(table)
        calls = [node for node in exported.graph.nodes if node.op == "call_function"]
        left = {one.target for one in calls if not supported(one) and not _is_complex(one)} - done
        table = {op: decomposition_table[op] for op in left if _taken_apart(op)}
    return exported


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _taken_apart(op: Any) -> bool:
    """Whether torch's table makes an operator of others; some it only renames to a primitive."""
    name = op.__name__.partition(".")[0].removeprefix("special_")
    primitive = hasattr(torch.ops.prims, name)
    return op in decomposition_table and not primitive


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


def _told(error: Exception, where: str) -> StageError:
    """One message from torch's: the dims that it names, or the model's line; what to do."""
    text = str(error)
    if fixed := re.findall(r"You marked (\w+) as dynamic but .* to be a constant \((\d+)\)", text):
        names = ", ".join(f"dim {name!r} to {size}" for name, size in dict(fixed).items())
        return StageError(
            message=f"{where}: the model's code fixes {names}",
            hint="write that size into model.inputs, or change the code: a Python loop over the "
            "size, or int() of it, fixes it",
        )
    if violated := re.search(r"Constraints violated \(([^)]*)\)", text):
        reasons = [" ".join(line.split()) for line in text.splitlines() if line.startswith("  - ")]
        return StageError(
            message=f"{where}: not every size of {violated[1]} fits the model: "
            + " ".join(reasons)[:400],
            hint="narrow model.dims, or write a fixed size into model.inputs",
        )
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename and frame.filename != __file__
    ]
    place = f" at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    if isinstance(error, GuardOnDataDependentSymNode):
        return StageError(
            message=f"{where}: the model branches on data, or makes a size of it{place}",
            hint="choose between values with torch.where, or run this part on the host",
        )
    reason = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return StageError(
        message=f"{where} cannot be exported by torch: {type(error).__name__}: {reason}{place}",
        hint="does it run with these inputs in torch? try torch.export.export on it alone",
    )
