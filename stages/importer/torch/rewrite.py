"""Passes over the torch graph before its import, one idea each."""

from __future__ import annotations

import torch
from torch import fx

_CHECKS = (  # nothing is computed by them; what they demand of sizes is in the shapes
    torch.ops.aten._assert_async.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
)


def run(module: fx.GraphModule) -> None:
    drop_checks(module.graph)
    module.graph.eliminate_dead_code()


def drop_checks(graph: fx.Graph) -> None:
    """Assertions go; they would keep what they look at alive."""
    for target in _CHECKS:
        for node in graph.find_nodes(op="call_function", target=target):
            graph.erase_node(node)
