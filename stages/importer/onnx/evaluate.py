"""What nodes of small numbers and sizes give.

Numbers are for ONNX's own reference, sizes for the few operators of shape arithmetic. Nothing that
could take memory or time is computed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from operator import mul
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from .sizes import Ratio, Size, Symbolic, Unknown

MOST = 4096  # elements of a value

INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
KNOWN = (*INTEGERS, *FLOATS)
# what an operand that does not fit raises; the importer names such a node
UNKNOWN = (Unknown, ArithmeticError, LookupError, TypeError, ValueError)
_SIZED = frozenset(("ConstantOfShape", "Expand", "OneHot", "Range", "Tile"))  # by an operand
# What graphs compute shapes with; none makes more on its way than it gives.
_OF_NUMBERS = _SIZED | frozenset(
    ("Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
     "BitwiseXor", "Cast", "CastLike", "Ceil", "Clip", "Compress", "Concat", "CumSum", "Div",
     "Equal", "Exp", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND",
     "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual", "Log",
     "Max", "Mean", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "Pow", "Reciprocal",
     "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round",
     "ScatterElements", "ScatterND", "Sign", "Slice", "Sqrt", "Squeeze", "Sub", "Sum",
     "Transpose", "Trilu", "Unsqueeze", "Where", "Xor")
)  # fmt: skip


def is_symbolic(value: np.ndarray) -> bool:
    return any(isinstance(one, Symbolic) for one in value.flat)


def is_small(node: NodeProto, inputs: Sequence[np.ndarray], shape: Sequence[Any] | None) -> bool:
    """Whether a node gives no more than MOST elements; `shape` is what inference says it gives."""
    if shape is not None and all(isinstance(dim, int) for dim in shape):
        return math.prod(max(dim, 1) for dim in shape) <= MOST
    # broadcasting and Gather give at most the product
    return node.op_type not in _SIZED and math.prod(max(one.size, 1) for one in inputs) <= MOST


def of_numbers(
    node: NodeProto, inputs: Mapping[str, np.ndarray], opsets: Sequence[Any]
) -> np.ndarray | None:
    """What ONNX's own reference makes of numbers, by the inputs' names."""
    if node.op_type not in _OF_NUMBERS:
        return None
    try:
        (result,) = ReferenceEvaluator(_single(node, opsets)).run(None, dict(inputs))
    except Exception:  # whatever it cannot do is left to the importer
        return None
    result = np.asarray(result)
    return result.astype(object) if result.size <= MOST else None


def over_sizes(
    node: NodeProto, inputs: list[np.ndarray], attributes: dict[str, Any], dtype: np.dtype
) -> np.ndarray:
    """What an operator of shape arithmetic makes of sizes. Raises: UNKNOWN."""
    if node.op_type not in _EVALUATORS:
        raise Unknown
    value = np.asarray(_EVALUATORS[node.op_type](inputs, attributes), dtype=object)
    return fitting(value, dtype)


def fitting(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`value`. Raises: OverflowError for an integer that `dtype` cannot hold."""
    if dtype.kind == "i":
        np.array([one for one in value.flat if isinstance(one, int)], dtype)
    return value


def _single(node: NodeProto, opsets: Sequence[Any]) -> ModelProto:
    """A model of this node alone."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
        for name in dict.fromkeys(node.input)
        if name
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output
    ]
    graph = helper.make_graph([node], "node", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets)


def _slice_values(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    if len(inputs) == 1:  # before opset 10
        given = [attributes.get(name) for name in ("starts", "ends", "axes")]
        inputs = [*inputs, *(np.array(one, object) for one in given if one is not None)]
    data, starts, ends, *rest = inputs
    axes = rest[0] if rest else range(len(starts))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if isinstance(start, Size) or isinstance(end, Size):
            raise Unknown
        index[axis] = slice(start, end, step)
    return data[tuple(index)]


def _gather(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    return np.take(inputs[0], inputs[1].astype(np.int64), axis=attributes.get("axis", 0))


def _concat(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    return np.concatenate(inputs, axis=attributes["axis"])


def _unsqueeze(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    axes = inputs[1] if len(inputs) > 1 else attributes["axes"]
    return np.expand_dims(inputs[0], tuple(int(axis) for axis in axes))


def _squeeze(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    axes = inputs[1] if len(inputs) > 1 else attributes.get("axes")
    return np.squeeze(inputs[0], None if axes is None else tuple(int(axis) for axis in axes))


def _divide(inputs: list[np.ndarray], _: dict[str, Any]) -> np.ndarray:
    if any(isinstance(x, int) and x < 0 for one in inputs for x in one.flat):
        raise Unknown  # ONNX truncates, Python floors: equal for sizes only
    if any(isinstance(x, float) for x in inputs[1].flat):
        return inputs[0] / inputs[1]
    return inputs[0] // inputs[1]


def _cast(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    if attributes["to"] == TensorProto.BOOL:
        raise Unknown
    whole = attributes["to"] in INTEGERS

    def one(value: Any) -> Any:
        if isinstance(value, Ratio):
            return value.floor() if whole else value
        if isinstance(value, Size):
            return value
        return int(value) if whole else float(value)

    return np.asarray(np.frompyfunc(one, 1, 1)(inputs[0]), dtype=object)


def _rounded(which: str) -> Callable[[list[np.ndarray], dict[str, Any]], np.ndarray]:
    def one(value: Any) -> Any:
        if isinstance(value, Ratio):
            return getattr(value, which)()
        return value if isinstance(value, Size) else float(getattr(np, which)(value))

    return lambda inputs, _: np.asarray(np.frompyfunc(one, 1, 1)(inputs[0]), dtype=object)


def _product(inputs: list[np.ndarray], attributes: dict[str, Any]) -> np.ndarray:
    if inputs[0].ndim != 1:
        raise Unknown
    total = functools.reduce(mul, inputs[0].flat, 1)
    return np.array([total] if attributes.get("keepdims", 1) else total, dtype=object)


def _where(inputs: list[np.ndarray], _: dict[str, Any]) -> np.ndarray:
    if is_symbolic(inputs[0]):
        raise Unknown
    return np.where(inputs[0].astype(bool), inputs[1], inputs[2])


_EVALUATORS: dict[str, Callable[[list[np.ndarray], dict[str, Any]], Any]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Cast": _cast,
    "Ceil": _rounded("ceil"),
    "Concat": _concat,
    "Div": _divide,
    "Floor": _rounded("floor"),
    "Gather": _gather,
    "Identity": lambda inputs, _: inputs[0],
    "Mod": lambda inputs, _: inputs[0] % inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Neg": lambda inputs, _: -inputs[0],
    "ReduceProd": _product,
    "Slice": _slice_values,
    "Squeeze": _squeeze,
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
