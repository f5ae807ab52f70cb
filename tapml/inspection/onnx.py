"""A look into an ONNX file."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..formats import bounded
from ..formats import onnx as reader
from ..formats.bounded import Tensor, refuse, short, shown
from ..formats.functions import demand_bounded
from . import macs, shapes
from .model import Bounds, Dim, Layer, Model, Operation, Value, peak, tally
from .supported import supported

_MATRIX = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_BATCH, _OTHER = 1, 128  # sizes of dims that the user gives none


def look(path: Path, name: str, sizes: Mapping[str, int]) -> Model:
    """What the file holds, sizes counted at `sizes`. Raises: StageError, EnvironmentalError."""
    found = reader.read(path)
    proto = _inlined(path, found.proto)
    graph = proto.graph
    weights = {one.name: one for one in reader.weights(path, graph)}
    inputs = tuple(_value(path, one) for one in graph.input if one.name not in weights)
    outputs = tuple(_value(path, one) for one in graph.output)
    named = [(axis, dim) for one in inputs for axis, dim in enumerate(one.shape)]
    dims = [dim for _, dim in sorted(named, key=lambda one: one[0]) if isinstance(dim, str)]
    first = {dim for axis, dim in named if axis == 0}
    chosen = {dim: sizes.get(dim, _BATCH if dim in first else _OTHER) for dim in dims}
    values = _shapes(proto, inputs, chosen)
    known = {name: shape for name, (shape, _) in values.items()}
    operations = [_operation(one, known) for one in graph.node]
    bodies = list(reader.bodies(graph))
    below = [_operation(one, {}) for body in bodies for one in body.node]
    nbytes = {name: _nbytes(value) for name, value in values.items() if name not in weights}
    standard = ("", "ai.onnx")
    opset = max((o.version for o in proto.opset_import if o.domain in standard), default=1)
    return Model(
        kind="onnx",
        name=name,
        path=path,
        tensors=(
            *weights.values(),
            *(one for body in bodies for one in reader.weights(path, body)),
        ),
        facts=_facts(proto, opset),
        inputs=inputs,
        outputs=outputs,
        dims=dict.fromkeys(chosen, Bounds()),
        operators=tally([*operations, *below], supported("onnx")),
        sizes=chosen,
        activations=peak(
            [one for one in operations if one.op != "Constant"],
            nbytes,
            [one.name for one in outputs],
        ),
        prunable=tuple(_layers(graph.node, weights)),
    )


def _facts(proto: Any, opset: int) -> dict[str, str]:
    facts = {"opset": str(opset)}
    if proto.producer_name:
        facts["made by"] = short(f"{proto.producer_name} {proto.producer_version}".strip())
    if any(one.data_location == 1 for one in proto.graph.initializer):
        facts["external data"] = "yes"
    return facts


def _inlined(path: Path, proto: Any) -> Any:
    """The model with local functions written out."""
    if not proto.functions:
        return proto
    demand_bounded(path, proto)
    inliner: Any = importlib.import_module("onnx.inliner")
    return inliner.inline_local_functions(proto)


def _shapes(
    proto: Any, inputs: Iterable[Value], sizes: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Value → shape and dtype, where they are known."""
    given = {
        one.name: [size if isinstance(size, int) else sizes[size] for size in one.shape]
        for one in inputs
    }
    found = shapes.infer(proto, given)
    return {
        name: (shape, reader.DTYPES[code][0])
        for name, (shape, code) in found.items()
        if code in reader.DTYPES
    }


def _value(path: Path, proto: Any) -> Value:
    kind = proto.type.tensor_type
    shape: tuple[Dim, ...] = tuple(
        dim.dim_value
        if dim.HasField("dim_value") and dim.dim_value >= 0
        else _symbol(dim.dim_param, proto.name, index)
        for index, dim in enumerate(kind.shape.dim)
    )
    where = f"value {shown(proto.name)}"
    bounded.sizes(path, [one for one in shape if isinstance(one, int)], where=where)
    if kind.elem_type not in reader.DTYPES:
        refuse(path, "it is no tensor of a known dtype", where=where)
    return Value(proto.name, shape, reader.DTYPES[kind.elem_type][0])


def _symbol(name: str, tensor: str, index: int) -> str:
    """A name for a dim: the file's own, unless an exporter made it up (`unk__214`, `?`)."""
    if name.startswith(("unk", "p2o.")) or not any(c.isalnum() for c in name):
        name = "batch" if index == 0 else f"{tensor}_{index}"
    text = re.sub(r"[^A-Za-z0-9_]", "_", name).strip("_")
    return text if text[:1].isalpha() else f"n_{text}"


def _operation(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> Operation:
    domain = "" if node.domain in ("", "ai.onnx", "com.microsoft") else f"{node.domain}."
    return Operation(
        op=domain + node.op_type,
        name=node.name,
        inputs=tuple(name for name in node.input if name),
        outputs=tuple(name for name in node.output if name),
        macs=macs.known(lambda: _macs(node, shapes)),
        view=node.op_type in _VIEWS,
    )


def _macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Multiply-adds of a node. Raises: what `macs.known` takes for unknown."""
    match node.op_type:
        case "MatMul" | "MatMulInteger":
            return macs.matmul(shapes[node.input[0]], shapes[node.output[0]])
        case "QLinearMatMul":
            return macs.matmul(shapes[node.input[0]], shapes[node.output[0]])
        case "Gemm":
            flags = {one.name: one.i for one in node.attribute}
            left = shapes[node.input[0]]
            return macs.matmul(left[::-1] if flags.get("transA") else left, shapes[node.output[0]])
        case "Conv" | "ConvInteger":
            return macs.conv(shapes[node.input[1]], shapes[node.output[0]])
        case "QLinearConv":
            return macs.conv(shapes[node.input[3]], shapes[node.output[0]])
        case "ConvTranspose":
            return macs.conv_transpose(shapes[node.input[1]], shapes[node.input[0]])
        case "LSTM" | "GRU" | "RNN":
            steps, rows, _ = shapes[node.input[0]]
            matrices = [shapes[name] for name in node.input[1:3]]
            return macs.recurrent(matrices, steps * rows)
        case "Einsum":
            (equation,) = [one.s for one in node.attribute if one.name == "equation"]
            operands = [shapes[name] for name in node.input]
            return macs.einsum(equation.decode("utf-8", "replace"), operands)
        case "If" | "Loop" | "Scan":
            return None
        case _:
            return 0


def _nbytes(value: tuple[tuple[int, ...], str]) -> int:
    shape, dtype = value
    return (prod(shape) * reader.BITS[dtype] + 7) // 8


def _layers(nodes: Iterable[Any], weights: Mapping[str, Tensor]) -> Iterator[Layer]:
    for node in nodes:
        if node.op_type in _MATRIX:
            for name in node.input:
                if name in weights and len(weights[name].shape) >= 2:
                    yield Layer(node.name, node.op_type, name, weights[name].shape)
