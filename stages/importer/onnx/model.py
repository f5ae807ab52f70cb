"""ONNX files before TVM sees them: read, checked, and written down in one canonical form.

Canonical: every node has a unique name, float constants with ndim > 0 are initializers (Paddle has
them in Constant nodes), inputs have the recipe's shapes. onnxruntime runs it as the `source`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from tapml.errors import StageError
from tapml.formats.other import refuse_other

from ... import onnx_file
from ...onnx_file import Model
from ..signature import Wanted

Shape = tuple[int | str, ...]


def read(path: str) -> Model:
    """The model in a file. StageError naming the file when it is broken."""
    refuse_other(Path(path), "ONNX model")
    model = onnx_file.read(Path(path))
    if not model.proto.graph.node or not model.proto.graph.output:
        raise StageError(
            message=f"{path} holds no graph with nodes and outputs",
            hint="is the file truncated, or no ONNX model?",
        )
    return model


def check(model: ModelProto, path: str) -> None:
    """Raises StageError when the graph is not well formed, by ONNX's own checker."""
    for node in walk(model.graph):
        if node.op_type == "Constant" and not _is_constant(node):
            name = node.name or ", ".join(node.output)
            why = f"Constant {name!r} has not one output and one value"
            raise StageError(message=f"{path} is no valid ONNX model: {why}")
    model = copy(model)
    for output in model.graph.output:
        output.type.tensor_type.shape.SetInParent()  # the checker wants one; no runtime needs it
    _outside_as_inputs(model.graph)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).partition("==> Context")[0].split())
        raise StageError(message=f"{path} is no valid ONNX model: {reason}") from error


def _is_constant(node: NodeProto) -> bool:
    """Whether a Constant has one output and one value, of its attribute's type."""
    kinds = [_VALUES.get(one.name) == one.type for one in node.attribute]
    return kinds == [True] and len(node.output) == 1 and bool(node.output[0])


def _outside_as_inputs(graph: GraphProto) -> None:
    """Large tensors as inputs: the checker would look for the files of their data."""
    _hoist(graph, graph, set(_names(graph)))
    outside = [one for one in graph.initializer if _is_outside(one)]
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Constant" and _is_outside(node.attribute[0].t):
            outside.append(constant_tensor(node))
        else:
            nodes.append(node)
    _keep(graph.initializer, lambda one: not _is_outside(one))
    replace(graph.node, nodes)
    given = {one.name for one in graph.input}
    for one in outside:
        if one.name not in given:
            value = helper.make_tensor_value_info(one.name, one.data_type, one.dims)
            graph.input.append(value)


def _is_outside(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def opset(model: ModelProto) -> int:
    """Version of the default operator set."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)


def walk(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield from _within(node)


def constant(name: str, value: np.ndarray) -> NodeProto:
    """A Constant node that gives `value` under `name`."""
    tensor = numpy_helper.from_array(np.asarray(value), name=name)
    return helper.make_node("Constant", [], [name], name=name, value=tensor)


def constant_tensor(node: NodeProto) -> TensorProto:
    """What a Constant node gives, under its output's name, whichever attribute holds it."""
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        return tensor
    dtype = np.float32 if "float" in attribute.name else np.int64
    return numpy_helper.from_array(np.asarray(value, dtype), node.output[0])


def is_weight(tensor: TensorProto) -> bool:
    """Whether a constant travels beside the IR: floats with dimensions, matrices of bytes, large
    tables.
    """
    size = math.prod(tensor.dims)
    matrix = tensor.data_type in _BYTES and len(tensor.dims) > 1
    return bool(tensor.dims) and size > 0 and (tensor.data_type in _FLOATS or matrix or size > 4096)


def canonical(
    model: ModelProto,
    signature: Mapping[str, tuple[Shape, str]],
    fixed: Mapping[str, Any] | None = None,
) -> ModelProto:
    """A canonical copy of the model, its inputs shaped by `signature` (name → shape, dtype).

    In: `fixed`: inputs that become constants, filled with this value
    """
    model = copy(model)
    graph = model.graph
    for name, value in (fixed or {}).items():
        shape, dtype = signature[name]
        graph.initializer.append(
            numpy_helper.from_array(np.full(tuple(map(int, shape)), value, dtype), name)
        )
    _hoist(graph, graph, set(_names(graph)))
    weights = {one.name for one in graph.initializer}
    _keep(graph.input, lambda one: one.name not in weights)
    _set_shapes(graph, signature)
    del graph.value_info[:]
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not any(node.output):
            continue
        if gives_tensor(node):
            tensor, name = constant_tensor(node), node.output[0]
            if is_weight(tensor):
                graph.initializer.append(tensor)
            else:
                nodes.append(helper.make_node("Constant", [], [name], name=name, value=tensor))
        else:
            nodes.append(node)
    name_uniquely(nodes)
    replace(graph.node, nodes)
    drop_unused(graph)
    return model


def _names(graph: GraphProto) -> Iterator[str]:
    """Every value's name, those of subgraphs included."""
    yield from (one.name for one in [*graph.input, *graph.initializer])
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _names(attribute.g)


def _hoist(top: GraphProto, graph: GraphProto, taken: set[str]) -> None:
    """Weights of subgraphs to the model's own, where whatever is done to weights finds them."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _hoist(top, attribute.g, taken)
    if graph is top:
        return
    moved: dict[str, str] = {}

    def move(tensor: TensorProto) -> None:
        base, count = tensor.name, 1
        while tensor.name in taken:
            count += 1
            tensor.name = f"{base}#{count}"
        taken.add(tensor.name)
        moved[base] = tensor.name
        top.initializer.append(tensor)

    nodes: list[NodeProto] = []
    for node in graph.node:
        if gives_tensor(node) and is_weight(tensor := constant_tensor(node)):
            move(tensor)
        else:
            nodes.append(node)
    for tensor in graph.initializer:
        if is_weight(tensor):
            move(TensorProto.FromString(tensor.SerializeToString()))
    _keep(graph.initializer, lambda one: one.name not in moved)
    replace(graph.node, nodes)
    rename(graph, moved)


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Gives values that a graph takes from outside other names, in its subgraphs too."""
    own = {one.name for one in [*graph.input, *graph.initializer]}
    own |= {name for node in graph.node for name in node.output}
    seen = {name: new for name, new in names.items() if name not in own}
    for node in graph.node:
        node.input[:] = [seen.get(one, one) for one in node.input]
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                rename(attribute.g, seen)
    for one in graph.output:
        one.name = seen.get(one.name, one.name)


def gives_tensor(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name not in _STRINGS


def copy(model: ModelProto) -> ModelProto:
    other = ModelProto()
    other.CopyFrom(model)
    return other


def replace(field: Any, items: list[Any]) -> None:
    """Puts `items` (which may come from the field itself) into a repeated field."""
    items = [type(one).FromString(one.SerializeToString()) for one in items]
    del field[:]
    field.extend(items)


def drop_unused(graph: GraphProto) -> None:
    """Removes nodes and initializers that no output needs."""
    needed = {output.name for output in graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for one in _within(node) for name in one.input)
    replace(graph.node, nodes[::-1])
    _keep(graph.initializer, lambda one: one.name in needed)


def _within(node: NodeProto) -> Iterator[NodeProto]:
    yield node
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield from walk(attribute.g)


def signature_of(model: ModelProto) -> dict[str, Wanted]:
    """Every input that is no weight, by the file."""
    weights = {one.name for one in model.graph.initializer}
    return {
        one.name: Wanted(shape_of(one), _dtype(one.type.tensor_type.elem_type))
        for one in model.graph.input
        if one.name not in weights
    }


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    """Sizes and names of the dims by the file. None: unknown, for which old exporters write -1."""

    def size(dim: Any) -> int | None:
        return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None

    return tuple(dim.dim_param or size(dim) for dim in value.type.tensor_type.shape.dim)


_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_STRINGS = ("value_string", "value_strings", "sparse_value")
_VALUES = {  # attributes of Constant
    "sparse_value": AttributeProto.SPARSE_TENSOR,
    "value": AttributeProto.TENSOR,
    "value_float": AttributeProto.FLOAT,
    "value_floats": AttributeProto.FLOATS,
    "value_int": AttributeProto.INT,
    "value_ints": AttributeProto.INTS,
    "value_string": AttributeProto.STRING,
    "value_strings": AttributeProto.STRINGS,
}


def _keep(field: Any, wanted: Any) -> None:
    replace(field, [one for one in field if wanted(one)])


def _dtype(elem_type: int) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:  # no tensor, or of no known type: the preflight tells
        return "?"


def _set_shapes(graph: GraphProto, signature: Mapping[str, tuple[Shape, str]]) -> None:
    for value in graph.input:
        if value.name in signature:
            shape, _ = signature[value.name]
            elem_type = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, elem_type, shape))
    for (
        value
    ) in graph.output:  # their sizes follow from the inputs'; what the file says may be stale
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()


def name_uniquely(nodes: Iterable[NodeProto]) -> None:
    """Names nodes without one after their first output, and numbers those that share a name."""
    taken: set[str] = set()
    for node in nodes:
        base = name = node.name or next(filter(None, node.output))
        count = 1
        while name in taken:
            count += 1
            name = f"{base}#{count}"
        taken.add(name)
        node.name = name
