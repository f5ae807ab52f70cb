"""Local functions of a model, inlined: within bounds, since a few that call each other twice are
billions of nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from tapml.errors import StageError

from .model import walk

MOST_NODES, MOST_BYTES = 100_000, 256 << 20  # that functions become
Name = tuple[str, str, str]  # domain, name, overload
Size = tuple[int, int]  # nodes, bytes


def inline(model: ModelProto, path: str) -> ModelProto:
    """The model without local functions; each may call others, none itself.

    Raises: StageError when one calls itself, or when all of them are too large.
    """
    if not model.functions:
        return model
    functions = {_name(one): one for one in model.functions}
    calls = {name: _calls(one, functions) for name, one in functions.items()}
    sizes: dict[Name, Size] = {}
    try:
        for name in TopologicalSorter(calls).static_order():
            sizes[name] = _size(functions[name].node, calls[name], sizes)
    except CycleError as error:
        names = ", ".join(sorted({name for _, name, _ in error.args[1]}))
        raise StageError(message=f"{path}: local functions that call themselves: {names}") from None
    nodes, copied = _size((), _calls(model.graph, functions), sizes)
    if nodes > MOST_NODES or copied > MOST_BYTES:
        raise StageError(
            message=f"{path}: its local functions become more than {MOST_NODES} nodes, or "
            f"{MOST_BYTES >> 20} MiB",
            hint="large tensors belong to the initializers of the model, which are not copied",
        )
    try:
        return onnx.inliner.inline_local_functions(model, convert_version=True)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise StageError(
            message=f"{path}: its local functions cannot be inlined: {error}",
            hint="write them and the model for one version of the operator set",
        ) from error


def _name(one: NodeProto | FunctionProto) -> Name:
    """What a function is called by."""
    name = one.op_type if isinstance(one, NodeProto) else one.name
    return one.domain, name, one.overload


def _calls(body: GraphProto | FunctionProto, known: Container[Name]) -> Counter[Name]:
    """How often functions are called, in subgraphs too."""
    return Counter(name for name in map(_name, walk(body)) if name in known)


def _size(own: Iterable[NodeProto], calls: Mapping[Name, int], sizes: Mapping[Name, Size]) -> Size:
    """Of nodes with all that they call."""
    listed = list(own)
    nodes = sum(count * sizes[name][0] for name, count in calls.items())
    copied = sum(count * sizes[name][1] for name, count in calls.items())
    return len(listed) + nodes, copied + sum(node.ByteSize() for node in listed)
