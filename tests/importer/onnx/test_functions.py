"""Local functions of ONNX models: inlined, however they are nested, or refused before they grow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml_stages.importer.onnx.functions import inline

MakeModel = Callable[..., ModelProto]
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
RNG = np.random.default_rng(0)


def function(name: str, *nodes: NodeProto) -> FunctionProto:
    """`b = name(a)`."""
    return helper.make_function("mine", name, ["a"], ["b"], list(nodes), OPSETS)


def call(name: str, given: str = "a", made: str = "b", domain: str = "mine") -> NodeProto:
    return helper.make_node(name, [given], [made], domain=domain)


@pytest.fixture
def model(make_model: MakeModel) -> Callable[..., ModelProto]:
    """A model that is a call of the last function."""

    def make(*functions: FunctionProto) -> ModelProto:
        made = make_model([call(functions[-1].name, "x", "y")], {"x": [2, 3]})
        made.opset_import.append(OPSETS[1])
        made.functions.extend(functions)
        return made

    return make


def test_nested_functions_are_inlined(
    model: Callable[..., ModelProto], difference: Callable[..., float]
) -> None:
    made = model(
        function("Inner", call("Neg", domain="")),
        function("Outer", call("Inner", "a", "t"), call("Inner", "t")),
    )
    assert [node.op_type for node in inline(made, "m").graph.node] == ["Neg", "Neg"]
    assert difference(made, [{"x": RNG.standard_normal((2, 3), dtype=np.float32)}]) == 0


def branching(inner: NodeProto) -> NodeProto:
    """An If whose branches hold a node."""
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([inner], "branch", [], [out])
    return helper.make_node("If", ["a"], ["b"], then_branch=graph, else_branch=graph)


@pytest.mark.parametrize("within", [lambda node: node, branching], ids=["itself", "in a branch"])
def test_a_function_that_calls_itself_is_refused(
    model: Callable[..., ModelProto], within: Callable[[NodeProto], NodeProto]
) -> None:
    made = model(function("Inner", within(call("Outer"))), function("Outer", call("Inner")))
    with pytest.raises(StageError, match=r"in a ring: .*Inner, Outer"):
        inline(made, "m")


def doubling(times: int, *first: Any) -> list[FunctionProto]:
    """Functions of which each calls the one before twice."""
    found = [function("f0", *first)]
    for k in range(1, times):
        before = f"f{k - 1}"
        found.append(function(f"f{k}", call(before, "a", "t"), call(before, "t")))
    return found


def test_a_few_functions_that_become_billions_of_nodes_are_refused_at_once(
    model: Callable[..., ModelProto],
) -> None:
    small, large = (model(*doubling(n, call("Neg", domain=""))) for n in (8, 45))
    assert len(inline(small, "m").graph.node) == 2**7
    began = time.process_time()
    with pytest.raises(StageError, match="its local functions become more than 200000 nodes"):
        inline(large, "m")
    assert time.process_time() - began < 1


def test_a_large_tensor_in_a_function_is_not_copied_a_thousand_times(
    model: Callable[..., ModelProto],
) -> None:
    tensor = numpy_helper.from_array(np.zeros((1024, 1024), np.float32))
    weight = helper.make_node("Constant", [], ["w"], value=tensor)
    made = model(*doubling(10, weight, helper.make_node("Add", ["a", "w"], ["b"])))
    with pytest.raises(StageError, match="256 MiB"):
        inline(made, "m")


def test_functions_nested_a_thousand_deep_are_refused(model: Callable[..., ModelProto]) -> None:
    chain = [function(f"f{k}", call(f"f{k - 1}")) for k in range(1, 1000)]
    with pytest.raises(StageError, match="more than 50 deep"):
        inline(model(function("f0", call("Neg", domain="")), *chain), "m")
