from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml_stages.importer.onnx import model as onnx_model

FLOAT_X = {"x": (("batch", 8), "float32")}


def test_every_node_gets_a_name_of_its_own(mlp: ModelProto) -> None:
    nodes = onnx_model.canonical(mlp, FLOAT_X).graph.node
    assert [node.name for node in nodes] == ["block.0/dense", "r", "block.0/dense#2"]


def test_unused_weights_are_dropped_and_inputs_take_the_recipes_dims(mlp: ModelProto) -> None:
    canonical = onnx_model.canonical(mlp, FLOAT_X)
    assert {one.name for one in canonical.graph.initializer} == {"w/1:0", "w2", "b2"}
    assert onnx_model.signature_of(canonical) == FLOAT_X


def test_float_constant_nodes_become_initializers_and_integers_do_not(
    make_model: Callable[..., ModelProto],
) -> None:
    nodes = [
        onnx_model.constant("scale", np.ones((1, 8), np.float32)),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Mul", ["x", "scale"], ["m"]),
        helper.make_node("Unsqueeze", ["m", "axes"], ["y"]),
    ]
    graph = onnx_model.canonical(make_model(nodes, {"x": [2, 8]}), {}).graph
    assert [one.name for one in graph.initializer] == ["scale"]
    (axes,) = (node for node in graph.node if node.op_type == "Constant")
    assert numpy_helper.to_array(axes.attribute[0].t).tolist() == [0]


def test_a_size_of_minus_one_is_unknown() -> None:
    """Paddle's older exporter writes it for a dynamic dim."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3, "n", 8])
    assert onnx_model.shape_of(value) == (None, 3, "n", 8)


@pytest.mark.parametrize(
    "values", [{}, {"value_float": 1.0, "value_int": 2}, {"value": 1.0}, {"unknown": 1}]
)
def test_a_constant_without_one_value_of_its_type_is_no_valid_model(
    make_model: Callable[..., ModelProto], values: dict[str, object]
) -> None:
    """Also within a branch, where weights are looked for before ONNX's checker sees it."""
    body = make_model([helper.make_node("Constant", [], ["o"], **values)], {}, outputs=["o"]).graph
    choose = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    model = make_model([choose], {"c": ([], "bool")})
    with pytest.raises(StageError, match=r"m\.onnx is no valid ONNX model: Constant 'o' has not"):
        onnx_model.check(model, "m.onnx")
