"""ONNX → Relax through TVM's `from_onnx`, with the names, shapes and weights that it loses kept.

`from_onnx` sets no span, so the graph is converted by a subclass of its importer that marks in the
function where each node ends. What TVM's converters write badly for a compiler (Clip, variadic Max
and Min) is written plainly here.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, helper

from ...compat import tvm
from ...onnx_file import Model
from ...program import Bounds, Program
from ..finish import Node, attribute, finish
from ..source import UnknownShapeError, refuse
from . import model as onnx_model
from . import symbolic
from .operators import CONVERTERS, axis_extent, axis_extents
from .preflight import CONTROL, has_body, unsupported

from tvm.relax.frontend.onnx import onnx_frontend  # isort: skip  # after compat

onnx_frontend._axis_extent, onnx_frontend._coord_axis_extents = axis_extent, axis_extents
rx = tvm.relax
_MARK = "tapml_end_of_node"


def known() -> frozenset[str]:
    """Operators that there is a converter for."""
    return frozenset({*onnx_frontend._get_convert_map(), *CONVERTERS, "Constant"})


def convert(
    source: Model,
    dims: Mapping[str, Bounds],
    buckets: tuple[Mapping[str, int], ...] = (),
    where: str = "the model",
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of a model in canonical form (onnx_model.canonical).

    Raises: StageError that lists what cannot be imported, after all that folds was folded.
    """
    limits = {name: (bounds.min, bounds.max) for name, bounds in dims.items()}
    folded = symbolic.fold(_decomposed(_constants_inlined(source)), limits)
    refuse(where, unsupported(folded, known() | {symbolic.SIZES, symbolic.RANGE}))
    onnx_model.name_uniquely(folded.graph.node)
    importer = _Importer(folded.graph)
    mod = importer.module(onnx_model.opset(folded))
    weights = {one.name: source.array(one) for one in folded.graph.initializer}
    return finish(
        mod,
        inputs=[one.name for one in folded.graph.input],
        outputs=[one.name for one in folded.graph.output],
        weights=weights,
        params={name.removeprefix("onnx::"): name for name in weights},
        sources=importer.sources,
        dims=dims,
        buckets=buckets,
        where=where,
    )


def without_control(source: Model, dims: Mapping[str, Bounds]) -> Model:
    """The model with what folds of `If` and `Loop` folded, for onnxruntime too: it fails on
    branches that read weights of the model around them.
    """
    if not any(node.op_type in CONTROL for node in source.proto.graph.node):
        return source
    limits = {name: (bounds.min, bounds.max) for name, bounds in dims.items()}
    folded = symbolic.fold(_constants_inlined(source), limits)
    if any(node.op_type in (symbolic.SIZES, symbolic.RANGE) for node in folded.graph.node):
        return source  # sizes that ONNX cannot write down
    return replace(source, proto=onnx_model.canonical(folded, {}))


def _constants_inlined(source: Model) -> ModelProto:
    """The model with initializers that are no weights (integers, scalars, settings) in nodes."""
    model = onnx_model.copy(source.proto)
    settings = {
        node.input[index]
        for node in onnx_model.walk(model.graph)
        for index in symbolic.SETTINGS.get(node.op_type, ())
        if index < len(node.input)
    }
    nodes, weights = [], []
    for tensor in model.graph.initializer:
        if onnx_model.is_weight(tensor) and tensor.name not in settings:
            weights.append(tensor)
        else:
            nodes.append(onnx_model.constant(tensor.name, source.array(tensor)))
    onnx_model.replace(model.graph.node, [*nodes, *model.graph.node])
    onnx_model.replace(model.graph.initializer, weights)
    return model


def _decomposed(model: ModelProto) -> ModelProto:
    """Operators without a converter written with others, where ONNX says how."""
    opset = onnx_model.opset(model)
    for _ in range(8):  # a body may use such operators again
        missing = {
            (node.domain, node.op_type)
            for node in onnx_model.walk(model.graph)
            if _wants_body(node) and has_body(node, opset)
        }
        if not missing:
            break
        try:
            model = onnx.inliner.inline_selected_functions(
                model, sorted(missing), inline_schema_functions=True
            )
        except (RuntimeError, ValueError):
            break  # the preflight names them
    onnx_model.name_uniquely(model.graph.node)
    return model


def _wants_body(node: NodeProto) -> bool:
    """Without a converter, or of a name that TVM has for another operator."""
    return node.op_type not in known() or (node.op_type == "Attention" and not node.domain)


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer; binds each node's result and remembers the node of every binding."""

    def __init__(self, graph: GraphProto) -> None:
        super().__init__({}, "float32", keep_params_in_input=True, sanitize=False)
        self._graph = graph
        self._order: list[Node] = []
        self.sources: dict[str, Node] = {}
        self._lost = ""  # where the first shape was lost
        self._own = {
            **CONVERTERS,
            symbolic.SIZES: lambda _bb, _inputs, attrs, _opset: rx.ShapeExpr(self._exprs(attrs)),
            symbolic.RANGE: self._range,
        }

    def module(self, opset: int) -> Any:
        """The graph as a Relax function `main`; `sources` then says where bindings come from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = self.from_onnx(self._graph, opset)  # pyright: ignore[reportArgumentType]  # it wants a graph
        for block in mod["main"].body.blocks:
            attribute(
                block.bindings,
                _MARK,
                self._order,
                self.sources,
                Node(self._graph.output[0].name, "Output"),
            )
        return mod

    def _parse_graph_initializers(self, graph: GraphProto) -> None:
        """Weights as parameters of the function, by type alone: their values stay on disk."""
        for tensor in graph.initializer:
            name = tensor.name.removeprefix("onnx::")  # as TVM's importer names it
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            var = self._new_var(name, shape=list(tensor.dims), dtype=str(dtype))
            self._nodes[tensor.name] = var
            self._params[name] = (var, None)

    def _check_for_unsupported_ops(self, graph: GraphProto) -> None:
        """The preflight did, with names and advice."""

    def _exprs(self, attrs: Mapping[str, Any]) -> list[Any]:
        """Expressions over the dims, as TVM's."""
        dims = {
            var.name: var
            for one in self._inputs.values()
            for dim in one.ty.shape.values  # pyright: ignore[reportAttributeAccessIssue]  # FFI
            for var in tvm.tirx.analysis.undefined_vars(dim)
        }
        texts = [one.decode() for one in attrs["exprs"]]
        return [_expression(ast.parse(text, mode="eval").body, dims) for text in texts]

    def _range(self, bb: Any, _inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
        dtype = str(helper.tensor_dtype_to_np_dtype(attrs["to"]))
        start, stop, step = self._exprs(attrs)
        whole = bb.emit(rx.op.arange(start, stop, step, dtype="int64"))
        return whole if dtype == "int64" else rx.op.astype(whole, dtype)

    def _convert_operator(
        self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int
    ) -> Any:
        node = attrs["tvm_custom"]["name"]
        own = self._own.get(op_name)
        try:
            value = own(self.bb, inputs, attrs, opset) if own else None
            if value is None:
                value = super()._convert_operator(op_name, inputs, attrs, opset)
            value = self._bound(value)
        except Exception as error:  # TVM's converters raise anything; the node must be named
            message = f"node {node} ({op_name}) cannot be imported: {error}"
            if any(_shape(one) is None for one in inputs if isinstance(one, rx.Var)):
                message += f"; the shape of its input is not known{self._lost}"
            raise UnknownShapeError(message=message) from error
        self._watch(node, op_name, inputs, value)
        self.bb.emit(rx.const(len(self._order), "int32"), _MARK)
        self._order.append(Node(node, op_name))
        return value

    def _watch(self, node: str, op_name: str, inputs: Any, value: Any) -> None:
        """Remembers the first node whose result has no known shape though its inputs have."""
        shapes = [_shape(one) for one in inputs if isinstance(one, rx.Var)]
        if not self._lost and isinstance(value, rx.Var) and _shape(value) is None and all(shapes):
            text = ", ".join(f"[{', '.join(map(str, one or ()))}]" for one in shapes)
            self._lost = f": it is lost at node {node} ({op_name}), whose inputs have {text}"

    def _bound(self, value: Any) -> Any:
        if isinstance(value, rx.Tuple):
            return rx.Tuple([self._bound(field) for field in value.fields])
        if isinstance(value, rx.Call | rx.TupleGetItem):
            return self.bb.emit(value)
        return value


def _expression(node: ast.expr, dims: Mapping[str, Any]) -> Any:
    """What sizes.Size writes: names, integers, +, *, //."""
    match node:
        case ast.Constant(value=int(value)):
            return tvm.tirx.IntImm("int64", value)
        case ast.UnaryOp(ast.USub(), operand):
            return -_expression(operand, dims)
        case ast.Name(id=name):
            return dims[name]
        case ast.BinOp(left, op, right):
            left, right = _expression(left, dims), _expression(right, dims)
            match op:
                case ast.Add():
                    return left + right
                case ast.Mult():
                    return left * right
                case ast.FloorDiv():
                    return tvm.tirx.floordiv(left, right)
    raise AssertionError(ast.dump(node))


def _shape(value: Any) -> list[Any] | None:
    """Sizes of a value; None when they are not known, [] of what is no tensor."""
    if not isinstance(value.ty, rx.TensorType):
        return []
    return list(value.ty.shape.values) if isinstance(value.ty.shape, rx.ShapeExpr) else None
