"""Local functions of ONNX models: what they become, each written out where it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from .bounded import refuse, shown
from .onnx import bodies

MOST_NODES, MOST_BYTES = 200_000, 256 << 20
MOST_DEPTH = 50  # of calls within calls; onnx itself ends at 100
Name = tuple[str, str, str]  # domain, name, overload
Size = tuple[int, int]  # nodes, bytes


def demand_bounded(path: Path, proto: Any) -> None:
    """Raises StageError where functions call each other in a ring, or become too much: a few that
    call each other twice are billions of nodes.
    """
    functions = {(one.domain, one.name, one.overload): one for one in proto.functions}
    calls = {name: _calls(one, functions) for name, one in functions.items()}
    sizes: dict[Name, Size] = {}
    depths: dict[Name, int] = {}
    try:
        for name in TopologicalSorter(calls).static_order():
            sizes[name] = _size(functions[name].node, calls[name], sizes)
            depths[name] = 1 + max((depths[one] for one in calls[name]), default=0)
    except CycleError as error:
        ring: Iterable[Name] = error.args[1]
        names = ", ".join(sorted({name for _, name, _ in ring}))
        refuse(path, f"local functions that call each other in a ring: {shown(names)}")
    if max(depths.values(), default=0) > MOST_DEPTH:
        refuse(path, f"its local functions call each other more than {MOST_DEPTH} deep")
    nodes, copied = _size((), _calls(proto.graph, functions), sizes)
    if nodes > MOST_NODES or copied > MOST_BYTES:
        refuse(
            path,
            f"its local functions become more than {MOST_NODES} nodes or {MOST_BYTES >> 20} MiB",
            hint="large tensors belong to the initializers of the model, which are not copied",
        )


def _calls(body: Any, known: Container[Name]) -> Counter[Name]:
    """How often functions are called, in subgraphs too."""
    nodes = [node for one in (body, *bodies(body)) for node in one.node]
    names = ((node.domain, node.op_type, node.overload) for node in nodes)
    return Counter(name for name in names if name in known)


def _size(own: Iterable[Any], calls: Mapping[Name, int], sizes: Mapping[Name, Size]) -> Size:
    """Of nodes with all that they call."""
    listed = list(own)
    nodes = sum(count * sizes[name][0] for name, count in calls.items())
    copied = sum(count * sizes[name][1] for name, count in calls.items())
    return len(listed) + nodes, copied + sum(int(node.ByteSize()) for node in listed)
