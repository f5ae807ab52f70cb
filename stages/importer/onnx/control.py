"""`If` and `Loop` of an ONNX graph, taken apart where it is known what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper

from . import model as onnx_model

MAX_TRIPS = 64  # a loop is unrolled up to here
MAX_NODES = 10_000
_NODE = 256  # bytes that count as a node


class Room:
    """What taking control apart may still add to a graph: nodes, or the bytes of as many."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def takes(self, body: GraphProto, prefix: str, trips: int | None = None) -> bool:
        """Whether there is room for a body: so many trips of it, or its new names alone."""
        nodes = list(onnx_model.walk(body))
        names = sum(1 + len(one.input) + len(one.output) for one in nodes)
        added = len(prefix) * names // _NODE
        if trips is not None:
            added = trips * (added + len(nodes) + 2 + body.ByteSize() // _NODE)
        fits = added <= self._left
        self._left = self._left - added if fits else 0  # what stays is refused: no more work
        return fits


def branch(node: NodeProto, condition: bool, room: Room) -> list[NodeProto] | None:
    """The nodes of the branch of an `If` that is taken; None without room for them."""
    body = _graph(node, "then_branch" if condition else "else_branch")
    prefix = f"{node.name or node.output[0]}/"
    if len(body.output) != len(node.output) or not room.takes(body, prefix):
        return None
    nodes, names = inlined(body, prefix, {})
    return nodes + [
        _identity(names[one.name], out) for one, out in zip(body.output, node.output, strict=False)
    ]


def unrolled(node: NodeProto, trips: int, room: Room) -> list[NodeProto] | None:
    """The nodes of a `Loop` of so many trips; None when its body decides to end earlier, or
    without room for them.
    """
    body, prefix = _graph(node, "body"), node.name or node.output[0]
    fits = len(body.input) == len(node.input) and len(body.output) == len(node.output) + 1
    if not fits or trips > MAX_TRIPS or not _runs_on(body):
        return None
    if not room.takes(body, prefix, trips):
        return None
    carried, stacked = list(node.input[2:]), len(body.output) - 1 - len(node.input[2:])
    scans: list[list[str]] = [[] for _ in range(stacked)]
    nodes: list[NodeProto] = []
    if stacked and not trips:
        return None  # nothing says what shape the empty stack has
    axis = f"{prefix}/axis"
    if stacked:
        nodes.append(onnx_model.constant(axis, np.array([0], np.int64)))
    for trip in range(trips):
        turn = f"{prefix}/{trip}/"
        nodes.append(onnx_model.constant(f"{turn}trip", np.array(trip, np.int64)))
        nodes.append(onnx_model.constant(f"{turn}condition", np.array(True)))
        given = [f"{turn}trip", f"{turn}condition", *carried]
        outer = {one.name: name for one, name in zip(body.input, given, strict=True)}
        inner, names = inlined(body, turn, outer)
        nodes += inner
        results = [names.get(one.name, one.name) for one in body.output[1:]]
        carried = results[: len(carried)]
        for index, name in enumerate(results[len(carried) :]):
            row = f"{turn}scan{index}"
            nodes.append(helper.make_node("Unsqueeze", [name, axis], [row], name=row))
            scans[index].append(row)
    outputs = list(node.output)
    nodes += [_identity(name, out) for name, out in zip(carried, outputs, strict=False) if out]
    for rows, out in zip(scans, outputs[len(carried) :], strict=False):
        if out:
            nodes.append(helper.make_node("Concat", rows, [out], name=out, axis=0))
    return nodes


def inlined(
    body: GraphProto, prefix: str, outer: Mapping[str, str]
) -> tuple[list[NodeProto], dict[str, str]]:
    """The nodes of a subgraph, what it defines prefixed; and its names → those they have outside.

    In: `outer`: names of the subgraph's inputs → values outside
    """
    names = dict(outer)
    nodes: list[NodeProto] = []
    for tensor in body.initializer:
        names[tensor.name] = prefix + tensor.name
        copied = type(tensor).FromString(tensor.SerializeToString())
        copied.name = names[tensor.name]
        name = copied.name
        nodes.append(helper.make_node("Constant", [], [name], name=name, value=copied))
    for node in body.node:
        names |= {one: prefix + one for one in node.output if one}
    nodes += [_renamed(node, names, prefix) for node in body.node if any(node.output)]
    for one in body.output:
        names.setdefault(one.name, one.name)  # of the graph outside
    return nodes, names


def _renamed(node: NodeProto, names: Mapping[str, str], prefix: str) -> NodeProto:
    other = NodeProto()
    other.CopyFrom(node)
    other.name = prefix + node.name if node.name else ""
    other.input[:] = [names.get(one, one) for one in node.input]
    other.output[:] = [names.get(one, one) for one in node.output]
    for attribute in other.attribute:
        if attribute.type == AttributeProto.GRAPH:
            onnx_model.rename(attribute.g, names)
    return other


def _runs_on(body: GraphProto) -> bool:
    """Whether the condition that a loop's body gives is always true."""
    made = {name: node for node in body.node for name in node.output}
    constants = {one.name: numpy_helper.to_array(one) for one in body.initializer if one.raw_data}
    name = body.output[0].name
    while name in made and made[name].op_type in ("Identity", "Cast"):
        name = made[name].input[0]
    if name == body.input[1].name:
        return True
    if name in made and onnx_model.gives_tensor(made[name]):
        tensor = onnx_model.constant_tensor(made[name])
        return bool(numpy_helper.to_array(tensor).all())
    return name in constants and bool(constants[name].all())


def _graph(node: NodeProto, name: str) -> GraphProto:
    return next(one.g for one in node.attribute if one.name == name)


def _identity(name: str, out: str) -> NodeProto:
    return helper.make_node("Identity", [name], [out], name=out)


def trips_of(count: Any, condition: Any) -> int | None:
    """How often a `Loop` runs by its inputs' values: None when they are not known."""
    if condition is not None and not bool(np.all(condition)):
        return 0
    return None if count is None or not np.size(count) else max(0, int(np.asarray(count).flat[0]))
