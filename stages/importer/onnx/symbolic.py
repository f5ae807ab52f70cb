"""Shape arithmetic in an ONNX graph, evaluated with symbols and written into the nodes that use it.

Exporters compute shapes in the graph (Shape → Cast → Slice → Concat → Reshape). TVM's importer
wants them known, so the small integer subgraph is evaluated over the recipe's dims: a Reshape gets
a constant with at most one -1, an Expand that changes nothing and a Slice that takes everything
vanish. The graph computes what it did before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from . import model as onnx_model


@dataclass(frozen=True)
class Size:
    """A size that is linear in the dims: sum of terms (dim → factor) plus `const`."""

    terms: tuple[tuple[str, int], ...]
    const: int = 0

    def __add__(self, other: Size | int) -> Size | int:
        return _linear([(self, 1), (other, 1)])

    def __sub__(self, other: Size | int) -> Size | int:
        return _linear([(self, 1), (other, -1)])

    def __rsub__(self, other: int) -> Size | int:
        return _linear([(other, 1), (self, -1)])

    def __mul__(self, factor: Size | int) -> Size | int:
        if isinstance(factor, Size):
            raise Unknown
        return _linear([(self, factor)])

    def __floordiv__(self, divisor: Size | int) -> Size | int:
        parts = [factor for _, factor in self.terms] + [self.const]
        if isinstance(divisor, Size) or divisor == 0 or any(part % divisor for part in parts):
            raise Unknown
        terms = tuple((name, factor // divisor) for name, factor in self.terms)
        return Size(terms, self.const // divisor)

    def __rfloordiv__(self, other: int) -> Size | int:
        raise Unknown

    __radd__ = __add__
    __rmul__ = __mul__

    def largest(self, limits: Mapping[str, tuple[int, int]]) -> int:
        """Upper bound over the dims' bounds."""
        return self.const + sum(
            factor * limits[name][1 if factor > 0 else 0] for name, factor in self.terms
        )


class Unknown(Exception):
    """A value that this evaluation does not know."""


def _linear(parts: Sequence[tuple[Size | int, int]]) -> Size | int:
    const, terms = 0, dict[str, int]()
    for part, factor in parts:
        if isinstance(part, Size):
            const += factor * part.const
            for name, own in part.terms:
                terms[name] = terms.get(name, 0) + factor * own
        else:
            const += factor * int(part)
    left = tuple(sorted((name, factor) for name, factor in terms.items() if factor))
    return Size(left, const) if left else const


def fold(model: ModelProto, limits: Mapping[str, tuple[int, int]]) -> ModelProto:
    """The model with its shape arithmetic evaluated; `limits`: dim → smallest and largest size.

    Works in rounds: what one round writes down lets ONNX's shape inference see further in the next.
    """
    model, known = onnx_model.copy(model), dict[str, list[Any]]()
    while _Round(model, limits, known).run():
        pass
    onnx_model.drop_unused(model.graph)
    return model


class _Round:
    """One pass over the graph; `known` holds shapes that earlier rounds proved."""

    def __init__(
        self,
        model: ModelProto,
        limits: Mapping[str, tuple[int, int]],
        known: dict[str, list[Any]],
    ) -> None:
        self.graph, self.limits, self.known = model.graph, limits, known
        inferred = onnx.shape_inference.infer_shapes(_with_shapes(model, known)).graph
        self.shapes: dict[str, list[Any]] = {}
        self.types: dict[str, int] = {}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            self.types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = [self._size(dim) for dim in onnx_model.shape_of(value)]
        self.values: dict[str, np.ndarray] = {}
        for tensor in self.graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.shapes[tensor.name] = list(tensor.dims)
            self._learn(tensor.name, tensor)
        self.shapes.update(known)

    def _size(self, dim: int | str | None) -> Size | int | None:
        if isinstance(dim, str):
            return Size(((dim, 1),)) if dim in self.limits else None
        return dim

    def _learn(self, name: str, tensor: onnx.TensorProto) -> None:
        if tensor.data_type in _INTEGERS and int(np.prod(tensor.dims)) <= 4096:
            self.values[name] = numpy_helper.to_array(tensor).astype(object)

    def run(self) -> bool:
        """Rewrites nodes in place; whether anything changed."""
        before = [node.SerializeToString() for node in self.graph.node]
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes.extend(self._rewrite(node))
        latest = {node.output[0]: node for node in nodes}  # a Slice may be narrowed more than once
        onnx_model.replace(self.graph.node, list(latest.values()))
        return before != [node.SerializeToString() for node in self.graph.node]

    def _rewrite(self, node: NodeProto) -> list[NodeProto]:
        if node.op_type == "Constant":
            self._learn(node.output[0], node.attribute[0].t)
            return [node]
        if (value := self._evaluate(node)) is not None:
            self.values[node.output[0]] = value
            if all(isinstance(one, int) for one in value.flat):
                dtype = helper.tensor_dtype_to_np_dtype(self.types[node.output[0]])
                return [onnx_model.constant(node.output[0], value.astype(dtype))]
            return [node]
        rewrite = {"Reshape": self._reshape, "Expand": self._expand, "Slice": self._slice}
        return rewrite[node.op_type](node) if node.op_type in rewrite else [node]

    def _evaluate(self, node: NodeProto) -> np.ndarray | None:
        """What an integer node gives, over sizes; None when it is not known."""
        if node.domain or len(node.output) != 1 or self.types.get(node.output[0]) not in _INTEGERS:
            return None
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        try:
            if node.op_type == "Shape":
                shape = self._shape(node.input[0])
                return _vector(shape[attributes.get("start", 0) : attributes.get("end")])
            if node.op_type == "Size":
                return np.array(np.prod(_vector(self._shape(node.input[0]))), dtype=object)
            if node.op_type in _EVALUATORS and all(name in self.values for name in node.input):
                inputs = [self.values[name] for name in node.input]
                return np.asarray(_EVALUATORS[node.op_type](inputs, attributes), dtype=object)
        except Unknown:
            pass
        return None

    def _shape(self, name: str) -> list[Size | int]:
        shape = self.shapes.get(name)
        if shape is None or any(dim is None for dim in shape):
            raise Unknown
        return shape

    def _reshape(self, node: NodeProto) -> list[NodeProto]:
        """A target with symbols becomes a constant: -1 for the only one, or 0 for copied dims."""
        data, target = node.input[0], self.values.get(node.input[1])
        if target is None:
            return [node]
        wanted, source = list(target.flat), self.shapes.get(data) or []
        if (result := _reshaped(source, wanted)) is not None:
            self.known[node.output[0]] = self.shapes[node.output[0]] = result
        symbolic = [axis for axis, dim in enumerate(wanted) if isinstance(dim, Size)]
        if not symbolic:
            return [node]
        if len(symbolic) == 1 and -1 not in wanted:
            wanted[symbolic[0]] = -1
        elif all(axis < len(source) and source[axis] == wanted[axis] for axis in symbolic):
            wanted = [0 if axis in symbolic else dim for axis, dim in enumerate(wanted)]
        else:
            return [node]
        name = f"{node.name}/shape"
        fixed = onnx_model.constant(name, np.array(wanted, np.int64))
        node.input[1] = name
        return [fixed, node]

    def _expand(self, node: NodeProto) -> list[NodeProto]:
        """An Expand to what the input already is becomes an Identity."""
        data, target = self.shapes.get(node.input[0]), self.values.get(node.input[1])
        if data is None or target is None or target.size > len(data):
            return [node]
        behind = data[len(data) - target.size :]
        if any(want != 1 and want != has for want, has in zip(target.flat, behind, strict=True)):
            return [node]
        return [helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name)]

    def _slice(self, node: NodeProto) -> list[NodeProto]:
        """A Slice loses the axes that it takes whole; without any left it becomes an Identity."""
        if len(node.input) == 1:
            return self._slice_by_inputs(node)
        operands = [self.values[name] for name in node.input[1:] if name in self.values]
        shape = self.shapes.get(node.input[0])
        if shape is None or len(operands) != len([name for name in node.input[1:] if name]):
            return [node]
        starts, ends = operands[:2]
        axes = operands[2] if len(operands) > 2 else np.arange(len(starts))
        steps = operands[3] if len(operands) > 3 else np.ones(len(starts), int)
        rows = [
            row
            for row in zip(starts, ends, axes, steps, strict=True)
            if not self._takes_all(row[0], row[1], row[3], shape[row[2]])
        ]
        if len(rows) == len(starts) or any(isinstance(x, Size) for row in rows for x in row):
            return [node]
        if not rows:
            return [
                helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name)
            ]
        names = [f"{node.name}/{part}" for part in ("starts", "ends", "axes", "steps")]
        columns = np.array(rows, dtype=np.int64).T
        fixed = [onnx_model.constant(*pair) for pair in zip(names, columns, strict=True)]
        return [
            *fixed,
            helper.make_node("Slice", [node.input[0], *names], list(node.output), name=node.name),
        ]

    def _slice_by_inputs(self, node: NodeProto) -> list[NodeProto]:
        """A Slice of before opset 10, whose bounds are attributes, as later ones are written."""
        bounds = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        bounds.setdefault("axes", list(range(len(bounds["starts"]))))
        names = [f"{node.name}/{part}" for part in ("starts", "ends", "axes")]
        columns = [np.array(bounds[name.rpartition("/")[2]], np.int64) for name in names]
        fixed = [onnx_model.constant(*pair) for pair in zip(names, columns, strict=True)]
        sliced = helper.make_node(
            "Slice", [node.input[0], *names], list(node.output), name=node.name
        )
        return [*fixed, sliced]

    def _takes_all(self, start: Any, end: Any, step: Any, dim: Size | int | None) -> bool:
        if start != 0 or step != 1 or dim is None:
            return False
        if isinstance(end, Size):
            return end == dim
        return end >= (dim.largest(self.limits) if isinstance(dim, Size) else dim)


def _with_shapes(model: ModelProto, known: Mapping[str, list[Any]]) -> ModelProto:
    """The model with the shapes that we proved, for ONNX's inference to start from."""
    model = onnx_model.copy(model)
    for name, shape in known.items():
        dims = [_written(dim) for dim in shape]
        if name not in {output.name for output in model.graph.output}:
            value = helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, dims)
            model.graph.value_info.append(value)
    return model


def _written(dim: Size | int) -> int | str | None:
    if isinstance(dim, Size):
        single = dim.const == 0 and len(dim.terms) == 1 and dim.terms[0][1] == 1
        return dim.terms[0][0] if single else None
    return dim


def _reshaped(source: Sequence[Any], wanted: Sequence[Any]) -> list[Size | int] | None:
    """The shape that Reshape gives: 0 copies a dim, one -1 takes the rest; None: not known."""
    if any(dim == 0 and axis >= len(source) for axis, dim in enumerate(wanted)):
        return None
    shape = [source[axis] if dim == 0 else dim for axis, dim in enumerate(wanted)]
    if -1 in shape and None not in source and source:
        rest = [dim for dim in shape if dim != -1]
        left = list(source)
        for dim in list(rest):  # equal factors cancel, symbols too
            if dim in left:
                left.remove(dim)
                rest.remove(dim)
        try:
            shape[shape.index(-1)] = functools.reduce(mul, left, 1) // functools.reduce(
                mul, rest, 1
            )
        except Unknown:
            return None
    return None if -1 in shape or None in shape else shape


_INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


def _vector(sizes: Sequence[Size | int]) -> np.ndarray:
    vector = np.empty(len(sizes), dtype=object)
    vector[:] = sizes
    return vector


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
    if any(not isinstance(x, Size) and x < 0 for one in inputs for x in one.flat):
        raise Unknown  # ONNX truncates, Python floors: equal for sizes only
    return inputs[0] // inputs[1]


_EVALUATORS: dict[str, Callable[[list[np.ndarray], dict[str, Any]], Any]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Cast": lambda inputs, _: inputs[0],
    "Concat": _concat,
    "Div": _divide,
    "Gather": _gather,
    "Identity": lambda inputs, _: inputs[0],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Slice": _slice_values,
    "Squeeze": _squeeze,
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Unsqueeze": _unsqueeze,
}
