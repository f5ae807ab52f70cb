"""ONNX files without the bytes of their weights.

The file's wire format is walked, weights are left out, and the small rest is what the package
`onnx` parses: a file of 2 GB costs as little as its graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import EnvironmentalError
from . import onnx_wire
from .bounded import Tensor, inside, opened, refuse, short, shown, sizes
from .onnx_wire import DTYPES
from .other import refuse_other

BITS: Mapping[str, int] = dict(DTYPES.values())


@dataclass(frozen=True)
class Model:
    """An ONNX model whose large tensors have no values.

    proto:    the `onnx.ModelProto`
    weights:  initializers by name, and values of Constant nodes (where Paddle keeps weights)
    """

    path: Path
    proto: Any
    weights: Mapping[str, Tensor]


def read(path: Path) -> Model:
    """The model in a file, external data checked and left where it is.

    Raises: StageError naming what is wrong; EnvironmentalError without the package `onnx`.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError as error:
        hint = "pip install 'tapml[onnx]'"
        raise EnvironmentalError(message="package 'onnx' is not installed", hint=hint) from error
    refuse_other(path, "ONNX model")
    decode_error: Any = importlib.import_module("google.protobuf.message").DecodeError
    try:
        proto = onnx.ModelProto.FromString(onnx_wire.header(path, onnx_wire.mapped(path)))
    except decode_error as error:
        refuse(path, f"no ONNX model, or cut off ({shown(error)})")
    if not proto.graph.node or not proto.graph.output:
        refuse(path, "no ONNX model: it has no graph with nodes and outputs")
    return Model(path, proto, {one.name: one for one in weights(path, proto.graph)})


def tensor_of(path: Path, proto: Any, name: str) -> Tensor:
    """A description of a TensorProto. Raises: StageError, also for data outside of the folder."""
    where = f"tensor {shown(name)}"
    dtype, bits = _dtype(path, proto.data_type, where)
    shape = sizes(path, list(proto.dims), where=where)
    nbytes = (prod(shape) * bits + 7) // 8
    if proto.data_location != 1:
        return Tensor(name, dtype, shape, nbytes, file=path.name)
    facts = {one.key: one.value for one in proto.external_data}
    file = inside(path.parent, facts.get("location", ""))
    start, length = (
        _digits(path, facts.get(key, ""), other, where)
        for key, other in (("offset", 0), ("length", nbytes))
    )
    with opened(file) as (_, size):
        if length != nbytes or start + length > size:
            place = f"the {length} bytes from {start} of {size} in {file}"
            refuse(path, f"{dtype} {short(list(shape))} is not {place}", where=where)
    return Tensor(name, dtype, shape, nbytes, start, file.name)


def _digits(path: Path, text: str, other: int, where: str) -> int:
    if not text:
        return other
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        refuse(path, f"{shown(text)} is no place in a file", where=where)
    return int(text)


def _dtype(path: Path, code: int, where: str) -> tuple[str, int]:
    if code not in DTYPES:
        refuse(path, f"unknown dtype {code}", where=where)
    return DTYPES[code]


def weights(path: Path, graph: Any) -> Iterator[Tensor]:
    """Initializers of a graph, and the values of its Constant nodes. Raises: StageError."""
    for one in graph.initializer:
        yield tensor_of(path, one, one.name)
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield tensor_of(path, attribute.t, node.output[0])


def bodies(graph: Any) -> Iterator[Any]:
    """The graphs within the nodes of a graph, and those within them."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield inner
                    yield from bodies(inner)
