"""Shapes of an ONNX graph at given sizes, those included that the graph itself computes.

ONNX's own inference gives up where a shape comes out of Shape, Slice and Concat nodes. Such nodes
are evaluated here, written back as constants, and the inference goes on from there.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..formats.bounded import MAX_COUNT, MAX_RANK

Array = NDArray[np.int64]
_ROUNDS, _SECONDS = 40, 2.0
_SMALL = 64  # elements of a shape, or of what it is computed from
_INTEGERS = frozenset({6, 7, 9})  # int32, int64, bool


def infer(proto: Any, sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Value → shape and code of its dtype, where both are known.

    In: `sizes`: shapes of its inputs
    """
    onnx: Any = importlib.import_module("onnx")
    model, proto = proto, onnx.ModelProto()
    proto.CopyFrom(model)
    for one in proto.graph.input:
        if one.name in sizes:
            shape = one.type.tensor_type.shape
            del shape.dim[:]
            for size in sizes[one.name]:
                shape.dim.add().dim_value = size
    del proto.graph.value_info[:]
    for one in proto.graph.output:  # what an exporter wrote may hold for its own sizes only
        one.type.tensor_type.ClearField("shape")
    deadline = time.monotonic() + _SECONDS
    found = _inferred(onnx, proto)
    for _ in range(_ROUNDS):
        if not _fold(onnx, proto.graph, found) or time.monotonic() > deadline:
            break
        found = _inferred(onnx, proto)
    return found


def _inferred(onnx: Any, proto: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        graph = proto.graph
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    for one in (*graph.input, *graph.value_info, *graph.output):
        kind = one.type.tensor_type
        dims = kind.shape.dim
        if not kind.HasField("shape") or len(dims) > MAX_RANK:
            continue
        shape = tuple(max(dim.dim_value, 0) for dim in dims if dim.HasField("dim_value"))
        if len(shape) == len(dims) and prod(shape) <= MAX_COUNT:
            found[one.name] = shape, kind.elem_type
    for one in graph.initializer:
        found[one.name] = tuple(one.dims), one.data_type
    return found


def _fold(onnx: Any, graph: Any, shapes: Mapping[str, tuple[tuple[int, ...], int]]) -> int:
    """Turns nodes that compute small integers from what is known into constants; how many."""
    known: dict[str, Array] = {}
    for one in graph.initializer:
        _keep(onnx, known, one.name, one)
    count = 0
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    _keep(onnx, known, node.output[0], attribute.t)
            continue
        value = _evaluate(onnx, node, known, shapes)
        if value is None or value.size > _SMALL or len(node.output) != 1:
            continue
        known[node.output[0]] = value
        dtype = shapes.get(node.output[0], ((), 7))[1]
        tensor = onnx.numpy_helper.from_array(value.astype(np.int32 if dtype == 6 else np.int64))
        name, output = node.name, node.output[0]
        node.CopyFrom(onnx.helper.make_node("Constant", [], [output], name=name, value=tensor))
        count += 1
    return count


def _keep(onnx: Any, known: dict[str, Array], name: str, tensor: Any) -> None:
    if tensor.data_type in _INTEGERS and not tensor.external_data and len(tensor.dims) < 2:
        try:
            value = onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError):  # its values were left out, being large
            return
        if value.size <= _SMALL:
            known[name] = value.astype(np.int64)


def _evaluate(
    onnx: Any,
    node: Any,
    known: Mapping[str, Array],
    shapes: Mapping[str, tuple[tuple[int, ...], int]],
) -> Array | None:
    function = _FUNCTIONS.get(node.op_type)
    if function is None or not node.input:
        return None
    try:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Shape":
            operands = [np.array(shapes[node.input[0]][0], np.int64)]
        else:
            operands = [known[name] if name else None for name in node.input]
        if node.op_type == "Cast" and attributes.get("to") not in _INTEGERS:
            return None
        with np.errstate(all="ignore"):
            return np.asarray(function(operands, attributes), np.int64)
    except (ValueError, LookupError, TypeError, ArithmeticError):  # not known, or they do not fit
        return None


def _shape(operands: list[Any], attributes: dict[str, Any]) -> Array:
    return cast("Array", operands[0][attributes.get("start", 0) : attributes.get("end")])


def _slice(operands: list[Any], attributes: dict[str, Any]) -> Array:
    settings: list[Any] = [
        attributes.get(name) if value is None else value.tolist()
        for name, value in zip(
            ("starts", "ends", "axes", "steps"), [*operands[1:], *[None] * 4], strict=False
        )
    ]
    starts, ends, axes, steps = settings
    if operands[0].ndim != 1 or axes not in (None, [0], [-1]):
        raise ValueError("no slice of a shape")
    (start,), (end,), (step,) = starts, ends, steps or [1]
    return cast("Array", operands[0][start:end:step])


def _gather(operands: list[Any], attributes: dict[str, Any]) -> Array:
    if attributes.get("axis", 0) != 0:
        raise ValueError("no gather of a shape")
    return cast("Array", operands[0][operands[1]])


def _concat(operands: list[Any], _attributes: dict[str, Any]) -> Array:
    return np.concatenate(operands)


def _unsqueeze(operands: list[Any], _attributes: dict[str, Any]) -> Array:
    if operands[0].ndim:
        raise ValueError("no size")
    return np.reshape(operands[0], (1,))


def _squeeze(operands: list[Any], _attributes: dict[str, Any]) -> Array:
    if operands[0].size != 1:
        raise ValueError("no size")
    return np.reshape(operands[0], ())


def _same(operands: list[Any], _attributes: dict[str, Any]) -> Array:
    return cast("Array", operands[0])


def _quotient(operands: list[Any], _attributes: dict[str, Any]) -> Array:
    return cast("Array", np.trunc(operands[0] / operands[1]))


def _binary(function: Any) -> Callable[[list[Any], dict[str, Any]], Array]:
    def apply(operands: list[Any], _attributes: dict[str, Any]) -> Array:
        return cast("Array", function(*operands))

    return apply


_FUNCTIONS: Mapping[str, Callable[[list[Any], dict[str, Any]], Array]] = {
    "Shape": _shape,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Cast": _same,
    "Identity": _same,
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _quotient,
}
