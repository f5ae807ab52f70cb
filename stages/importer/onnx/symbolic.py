"""Shape arithmetic in an ONNX graph, evaluated with symbols and written into the nodes that use it.

Exporters compute shapes in the graph (Shape → Cast → Slice → Concat → Reshape). TVM's importer
wants them known, so the small subgraphs of integers, and of floats that scale them, are evaluated
over the recipe's dims: a Reshape gets a constant with at most one -1, an Expand that changes
nothing and a Slice that takes everything vanish, an If whose condition is known becomes its branch
and a Loop whose count is, its trips. The graph computes what it did before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from operator import mul
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from . import control, evaluate
from . import model as onnx_model
from .evaluate import FLOATS, KNOWN, is_symbolic
from .sizes import Limits, Size, Unknown, compared

SIZES, RANGE = "TapmlSizes", "TapmlRange"  # nodes that hold expressions over the dims
# Operands that say how to compute, not on what: from_onnx wants them as constants.
SETTINGS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "CumSum": (1,),
    "OneHot": (1, 2),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Upsample": (1,),
}
_SMALL = 64  # elements of a float constant that is evaluated


def fold(model: ModelProto, limits: Limits) -> ModelProto:
    """The model with its shape arithmetic evaluated; `limits`: dim → smallest and largest size.

    Works in rounds: what one round writes down lets ONNX's shape inference see further in the next.
    """
    model, known, room = onnx_model.copy(model), dict[str, list[Any]](), control.Room()
    while _Round(model, limits, known, room).run():
        pass
    onnx_model.drop_unused(model.graph)
    return model


class _Round:
    """One pass over the graph; `known` holds shapes that earlier rounds proved, `room` what they
    left for control that is taken apart.
    """

    def __init__(
        self,
        model: ModelProto,
        limits: Limits,
        known: dict[str, list[Any]],
        room: control.Room,
    ) -> None:
        self.graph, self.limits, self.known, self.room = model.graph, limits, known, room
        self.opsets = list(model.opset_import)
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
        self.rewrites: dict[str, Callable[[NodeProto], list[NodeProto]]] = {
            "ConstantOfShape": self._sized,
            "Expand": self._expand,
            "If": self._if,
            "Loop": self._loop,
            "Range": self._range,
            "Reshape": self._reshape,
            "Slice": self._slice,
        }

    def _size(self, dim: int | str | None) -> Size | int | None:
        if isinstance(dim, str):
            return Size(((dim, 1),)) if dim in self.limits else None
        return dim

    def _learn(self, name: str, tensor: TensorProto) -> None:
        small = _SMALL if tensor.data_type in FLOATS else evaluate.MOST
        inside = tensor.data_location != TensorProto.EXTERNAL
        if tensor.data_type in KNOWN and inside and math.prod(tensor.dims) <= small:
            self.values[name] = numpy_helper.to_array(tensor).astype(object)

    def run(self) -> bool:
        """Rewrites nodes in place; whether anything changed."""
        before = [node.SerializeToString() for node in self.graph.node]
        self.made = {name for node in self.graph.node for name in node.output if node.input}
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes.extend(self._rewrite(node))
        # a Slice may be narrowed more than once
        latest = {next(filter(None, node.output)): node for node in nodes}
        onnx_model.replace(self.graph.node, list(latest.values()))
        return before != [node.SerializeToString() for node in self.graph.node]

    def _rewrite(self, node: NodeProto) -> list[NodeProto]:
        if node.op_type == "Constant":
            if node.attribute and node.attribute[0].HasField("t"):
                self._learn(node.output[0], node.attribute[0].t)
            return [node]
        if (value := self._evaluate(node)) is not None:
            self.values[node.output[0]] = value
            if not is_symbolic(value) and self.types[node.output[0]] not in FLOATS:
                return [self._constant(node.output[0], value)]
            return [node]
        before = self._settle(node)
        rewrite = self.rewrites.get(node.op_type)
        return [*before, *(rewrite(node) if rewrite else [node])]

    def _constant(self, name: str, value: np.ndarray, like: str = "") -> NodeProto:
        return onnx_model.constant(name, value.astype(self._dtype(like or name)))

    def _dtype(self, name: str) -> np.dtype:
        return helper.tensor_dtype_to_np_dtype(self.types[name])

    def _settle(self, node: NodeProto) -> list[NodeProto]:
        """Constants for the settings of a node that were computed in the graph."""
        constants: list[NodeProto] = []
        for index in SETTINGS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            value = self.values.get(name)
            if value is None or name not in self.made:
                continue
            new = f"{node.name}/setting{index}"
            if not is_symbolic(value):
                constants.append(self._constant(new, value, like=name))
            elif node.op_type == "Resize" and index == 3:
                constants.append(_sizes(new, value))
            else:
                continue
            node.input[index] = new
        return constants

    def _evaluate(self, node: NodeProto) -> np.ndarray | None:
        """What a node of small numbers gives, over sizes; None when it is not known."""
        if node.domain or len(node.output) != 1 or self.types.get(node.output[0]) not in KNOWN:
            return None
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        try:
            if node.op_type == "Shape":
                shape = self._shape(node.input[0])
                return _vector(shape[attributes.get("start", 0) : attributes.get("end")])
            dtype = self._dtype(node.output[0])
            if node.op_type == "Size":
                count = np.array(math.prod(self._shape(node.input[0])), dtype=object)
                return evaluate.fitting(count, dtype)
            names = [name for name in node.input if name]
            if not names or not all(name in self.values for name in names):
                return None
            inputs = [self.values[name] for name in names]
            if not evaluate.is_small(node, inputs, self.shapes.get(node.output[0])):
                return None
            if not any(map(is_symbolic, inputs)):
                typed = {name: self.values[name].astype(self._dtype(name)) for name in names}
                return evaluate.of_numbers(node, typed, self.opsets)
            if node.op_type in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
                return self._compare(node.op_type, *inputs)
            if all(node.input):
                return evaluate.over_sizes(node, inputs, attributes, dtype)
        except evaluate.UNKNOWN:
            pass
        return None

    def _compare(self, op: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        def one(a: Any, b: Any) -> bool:
            order = compared(a, b, self.limits)
            if op == "Equal" and order is not None:
                return order == 0
            if op.startswith("Greater") and order is not None:
                return order > 0 or (order == 0 and op.endswith("Equal"))
            if op.startswith("Less") and order is not None:
                return order < 0 or (order == 0 and op.endswith("Equal"))
            raise Unknown

        return np.asarray(np.frompyfunc(one, 2, 1)(left, right), dtype=object)

    def _if(self, node: NodeProto) -> list[NodeProto]:
        condition = self.values.get(node.input[0])
        if condition is None or is_symbolic(condition):
            return [node]
        return control.branch(node, bool(condition.all()), self.room) or [node]

    def _loop(self, node: NodeProto) -> list[NodeProto]:
        count, condition = ([*map(self.values.get, node.input[:2]), None])[:2]
        unknown = (node.input[0] and count is None) or (node.input[1] and condition is None)
        if unknown or any(is_symbolic(one) for one in (count, condition) if one is not None):
            return [node]
        trips = control.trips_of(count, condition)
        return (None if trips is None else control.unrolled(node, trips, self.room)) or [node]

    def _range(self, node: NodeProto) -> list[NodeProto]:
        values = [self.values.get(name) for name in node.input]
        if any(one is None or one.size != 1 for one in values):
            return [node]
        bounds = [one.flat[0] for one in values if one is not None]
        if not any(isinstance(one, Size) for one in bounds) or bounds[2] == 0:
            return [node]
        text = [str(one) for one in bounds]
        to = self.types[node.input[0]]
        return [helper.make_node(RANGE, [], list(node.output), name=node.name, exprs=text, to=to)]

    def _sized(self, node: NodeProto) -> list[NodeProto]:
        """A shape with symbols, written as the expressions that it is."""
        value = self.values.get(node.input[0])
        if value is None or not is_symbolic(value) or not node.input[0]:
            return [node]
        self.known[node.output[0]] = self.shapes[node.output[0]] = list(value.flat)
        fixed = _sizes(f"{node.name}/shape", value)
        node.input[0] = fixed.output[0]
        return [fixed, node]

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
        elif result is not None:
            fixed = _sizes(f"{node.name}/shape", _vector(result))
            node.input[1] = fixed.output[0]
            return [fixed, node]
        else:
            return [node]
        name = f"{node.name}/shape"
        fixed = onnx_model.constant(name, np.array(wanted, np.int64))
        node.input[1] = name
        return [fixed, node]

    def _expand(self, node: NodeProto) -> list[NodeProto]:
        """An Expand to what the input already is becomes an Identity."""
        data, target = self.shapes.get(node.input[0]), self.values.get(node.input[1])
        if data is None or target is None:
            return [node]
        if target.size > len(data):
            return self._expand_to(node, data, target)
        behind = data[len(data) - target.size :]
        if any(want != 1 and want != has for want, has in zip(target.flat, behind, strict=True)):
            return self._expand_to(node, data, target)
        return [helper.make_node("Identity", [node.input[0]], list(node.output), name=node.name)]

    def _expand_to(
        self, node: NodeProto, data: Sequence[Any], target: np.ndarray
    ) -> list[NodeProto]:
        """An Expand to the whole shape that it gives, expressions where it has symbols."""
        rank = max(len(data), target.size)
        pairs = zip(
            [1] * (rank - len(data)) + list(data),
            [1] * (rank - target.size) + list(target.flat),
            strict=True,
        )
        shape = [has if want == 1 else want for has, want in pairs]
        if None in shape:
            return [node]
        self.known[node.output[0]] = self.shapes[node.output[0]] = shape
        whole = _vector(shape)
        if not is_symbolic(whole):
            return [node]
        fixed = _sizes(f"{node.name}/shape", whole)
        node.input[1] = fixed.output[0]
        return [fixed, node]

    def _slice(self, node: NodeProto) -> list[NodeProto]:
        """A Slice loses the axes that it takes whole; without any left it becomes an Identity."""
        if len(node.input) == 1:
            return self._slice_by_inputs(node)
        shape, names = self.shapes.get(node.input[0]), [*node.input[1:], "", ""][:4]
        starts, ends, axes, steps = (self.values.get(name) for name in names)
        unknown = [name for name in names if name and name not in self.values]
        if shape is None or unknown or starts is None or ends is None:
            return [node]
        axes = np.arange(starts.size) if axes is None else axes
        steps = np.ones(starts.size, int) if steps is None else steps
        try:
            rows = [
                row
                for row in zip(starts, ends, axes, steps, strict=True)
                if not self._takes_all(row[0], row[1], row[3], shape[row[2]])
            ]
        except (ValueError, IndexError, TypeError):  # they do not fit: the importer names the node
            return [node]
        if any(isinstance(x, Size) for row in rows for x in row):
            return self._slice_to(node, rows)
        if len(rows) == len(starts):
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

    def _slice_to(self, node: NodeProto, rows: Sequence[Sequence[Any]]) -> list[NodeProto]:
        """A Slice whose bounds have symbols, written as expressions."""
        parts = []
        for index, part in enumerate(("starts", "ends", "axes", "steps")):
            column, name = _vector([row[index] for row in rows]), f"{node.name}/{part}"
            if is_symbolic(column):
                parts.append(_sizes(name, column))
            else:
                parts.append(onnx_model.constant(name, column.astype(np.int64)))
        inputs = [node.input[0], *(part.output[0] for part in parts)]
        return [*parts, helper.make_node("Slice", inputs, list(node.output), name=node.name)]

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
        single = single and isinstance(dim.terms[0][0], str)
        return str(dim.terms[0][0]) if single else None
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
        except (Unknown, ZeroDivisionError):
            return None
    return None if -1 in shape or None in shape else shape


def _vector(sizes: Sequence[Any]) -> np.ndarray:
    vector = np.empty(len(sizes), dtype=object)
    vector[:] = sizes
    return vector


def _sizes(name: str, value: np.ndarray) -> NodeProto:
    """A node that gives expressions over the dims."""
    return helper.make_node(SIZES, [], [name], name=name, exprs=[str(one) for one in value.flat])
