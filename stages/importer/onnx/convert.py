"""ONNX → Relax through TVM's `from_onnx`, with the names, shapes and weights that it loses kept.

`from_onnx` sets no span, so the graph is converted by a subclass of its importer that marks in the
function where each node ends. What TVM's converters write badly for a compiler (Clip, variadic Max
and Min) is written plainly here.
"""

from __future__ import annotations

import functools
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, helper

from tapml.errors import StageError

from ...compat import tvm
from ...onnx_file import Model
from ...program import Bounds, Program
from ..finish import Node, finish
from ..source import Unsupported, refuse
from . import model as onnx_model
from . import symbolic

from tvm.relax.frontend.onnx import onnx_frontend  # isort: skip  # after compat

rx = tvm.relax
_MARK = "tapml_end_of_node"


def preflight(model: ModelProto, path: str) -> None:
    """Raises StageError that lists every unsupported operator with its count and nodes."""
    supported = onnx_frontend._get_convert_map().keys() | {"Constant"}
    missing: dict[str, list[str]] = defaultdict(list)
    for node in onnx_model.walk(model.graph):
        standard = node.domain in ("", "ai.onnx", "com.microsoft")
        if not standard or node.op_type not in supported:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            missing[name].append(node.name or node.output[0])
    refuse(path, [Unsupported(op, tuple(nodes)) for op, nodes in missing.items()])


def convert(
    source: Model, dims: Mapping[str, Bounds], buckets: tuple[Mapping[str, int], ...] = ()
) -> tuple[Program, dict[str, np.ndarray]]:
    """Program and weights of a model in canonical form (onnx_model.canonical)."""
    limits = {name: (bounds.min, bounds.max) for name, bounds in dims.items()}
    folded = symbolic.fold(_constants_inlined(source), limits)
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
    )


# Operands that say how to compute, not on what: from_onnx wants them as constants.
_SETTINGS = {
    "Clip": (1, 2),
    "Pad": (1, 2),
    "Range": (0, 1, 2),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}


def _constants_inlined(source: Model) -> ModelProto:
    """The model with initializers that are no weights (integers, scalars, settings) in nodes."""
    model = onnx_model.copy(source.proto)
    settings = {
        node.input[index]
        for node in model.graph.node
        for index in _SETTINGS.get(node.op_type, ())
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


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer; binds each node's result and remembers the node of every binding."""

    def __init__(self, graph: GraphProto) -> None:
        super().__init__({}, "float32", keep_params_in_input=True, sanitize=False)
        self._graph = graph
        self._order: list[Node] = []
        self.sources: dict[str, Node] = {}

    def module(self, opset: int) -> Any:
        """The graph as a Relax function `main`; `sources` then says where bindings come from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mod = self.from_onnx(self._graph, opset)  # pyright: ignore[reportArgumentType]  # it wants a graph
        for block in mod["main"].body.blocks:
            self._attribute(block.bindings)
        return mod

    def _parse_graph_initializers(self, graph: GraphProto) -> None:
        """Weights as parameters of the function, by type alone: their values stay on disk."""
        for tensor in graph.initializer:
            name = tensor.name.removeprefix("onnx::")  # as TVM's importer names it
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            var = self._new_var(name, shape=list(tensor.dims), dtype=str(dtype))
            self._nodes[tensor.name] = var
            self._params[name] = (var, None)

    def _attribute(self, bindings: Any) -> None:
        """A binding belongs to the node whose mark follows it; an output repeats another one."""
        pending: list[str] = []
        for binding in bindings:
            if binding.var.name.startswith(_MARK):
                source = self._order[int(binding.value.value.numpy())]
                self.sources.update(dict.fromkeys(pending, source))
                pending = []
            elif isinstance(binding.value, rx.Var) and binding.value.name in self.sources:
                self.sources[binding.var.name] = self.sources[binding.value.name]
            else:
                pending.append(binding.var.name)
        outputs = Node(self._graph.output[0].name, "Output")
        self.sources.update(dict.fromkeys(pending, outputs))

    def _convert_operator(
        self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int
    ) -> Any:
        node = attrs["tvm_custom"]["name"]
        own = _OWN.get(op_name)
        try:
            value = own(self.bb, inputs, attrs) if own else None
            if value is None:
                value = super()._convert_operator(op_name, inputs, attrs, opset)
            value = self._bound(value)
        except Exception as error:  # TVM's converters raise anything; the node must be named
            message = f"node {node} ({op_name}) cannot be imported: {error}"
            raise StageError(message=message) from error
        self.bb.emit(rx.const(len(self._order), "int32"), _MARK)
        self._order.append(Node(node, op_name))
        return value

    def _bound(self, value: Any) -> Any:
        if isinstance(value, rx.Tuple):
            return rx.Tuple([self._bound(field) for field in value.fields])
        if isinstance(value, rx.Call | rx.TupleGetItem):
            return self.bb.emit(value)
        return value


def _clip(bb: Any, inputs: Any, attrs: Mapping[str, Any]) -> Any:
    """Clip with constant bounds as `relax.clip`; TVM emits isnan, where and opaque TE calls.

    Before opset 11 the bounds are attributes; one that is missing bounds nothing.
    """
    bounds = [inputs[1], inputs[2]]
    if any(not isinstance(b, tvm.ir.GenericConst) for b in bounds if b is not None):
        return None
    low, high = (
        attrs.get(name) if bound is None else bound.value.numpy().item()
        for name, bound in zip(("min", "max"), bounds, strict=True)
    )
    x = inputs[0]
    if low is not None and high is not None:
        return rx.op.clip(x, low, high)
    if low is not None:
        return rx.op.maximum(x, rx.const(low, x.ty.dtype))
    return x if high is None else rx.op.minimum(x, rx.const(high, x.ty.dtype))


def _pairwise(op: Any) -> Any:
    """Variadic Max and Min as a chain of binary ops; TVM broadcasts, stacks and reduces."""
    return lambda bb, inputs, _attrs: functools.reduce(
        lambda left, right: bb.emit(op(left, right)), inputs
    )


def _dropout(_bb: Any, inputs: Any, _attrs: Mapping[str, Any]) -> Any:
    """Nothing is dropped in inference; the mask, where something reads it, is all true."""
    x = inputs[0]
    return rx.Tuple([x, rx.op.ones_like(x, "bool")])


_OWN: dict[str, Any] = {
    "Clip": _clip,
    "Dropout": _dropout,
    "Max": _pairwise(rx.op.maximum),
    "Min": _pairwise(rx.op.minimum),
}
