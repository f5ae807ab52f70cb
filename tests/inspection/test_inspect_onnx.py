from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapml import inspection
from tapml.errors import RecipeError, StageError
from tapml.inspection.model import Bounds, Operators, Value


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A matmul with a weight in an initializer, and one with a weight in a Constant node."""
    first = helper.make_tensor("w1", TensorProto.FLOAT, (4, 8), [0.5] * 32)
    second = helper.make_tensor("value", TensorProto.FLOAT, (8, 2), [0.5] * 16)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="one"),
        helper.make_node("Constant", [], ["w2"], name="weight", value=second),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="two"),
    ]
    return save(tmp_path / "small model.onnx", nodes, [first], ["unk__7", 4], ["unk__7", 2])


def save(
    path: Path, nodes: list[Any], weights: list[Any], x: list[Any], y: list[Any], **options: Any
) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = options.pop("opsets", [helper.make_opsetid("", 17)])
    onnx.save(helper.make_model(graph, opset_imports=opsets, **options), str(path))
    return path


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def test_inspect_finds_tensors_operators_and_every_weight(model: Path) -> None:
    found = inspection.inspect(str(model))
    assert found.inputs == (Value("x", ("batch", 4), "float32"),)
    assert found.operators == (
        Operators("MatMul", 2, 4 * 8 + 8 * 2, is_supported=True),
        Operators("Constant", 1, 0, is_supported=True),
    )
    assert (found.parameters, found.nbytes) == (48, 192)
    assert [(layer.node, layer.weight, layer.shape) for layer in found.prunable] == [
        ("one", "w1", (4, 8)),
        ("two", "w2", (8, 2)),
    ]


def test_unnamed_dims_get_names_of_their_own(model: Path) -> None:
    loaded = onnx.load(str(model))
    for dim in loaded.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    onnx.save(loaded, str(model))
    found = inspection.inspect(str(model))
    assert found.inputs[0].shape == ("batch", "x_1")
    assert found.dims == {"batch": Bounds(), "x_1": Bounds()}


def test_multiply_adds_and_activations_are_counted_at_the_sizes_given(model: Path) -> None:
    one, many = (inspection.inspect(str(model), {"batch": n}) for n in (1, 10))
    assert many.macs == 10 * (one.macs or 0) == 480
    # x and h, then h and y: 4 + 8, 8 + 2 floats
    assert (one.activations, many.activations) == (48, 480)


def test_a_size_for_a_dim_that_is_not_there_is_a_mistake_of_usage(model: Path) -> None:
    with pytest.raises(RecipeError, match=r"no dim 'bach'[\s\S]*did you mean 'batch'"):
        inspection.inspect(str(model), {"bach": 1})


@pytest.mark.parametrize(
    ("op", "x", "w", "y", "options", "macs"),
    [
        ("Conv", [1, 3, 8, 8], (16, 3, 3, 3), [1, 16, 6, 6], {}, 16 * 36 * 27),
        ("Conv", [1, 4, 8, 8], (4, 1, 3, 3), [1, 4, 6, 6], {"group": 4}, 4 * 36 * 9),
        ("ConvTranspose", [1, 3, 4, 4], (3, 5, 2, 2), [1, 5, 8, 8], {"strides": [2, 2]}, 48 * 20),
        ("Gemm", [4, 6], (6, 5), [4, 5], {}, 4 * 6 * 5),
        ("Gemm", [6, 4], (5, 6), [4, 5], {"transA": 1, "transB": 1}, 4 * 6 * 5),
        ("MatMul", [2, 7, 6], (6, 5), [2, 7, 5], {}, 2 * 7 * 6 * 5),
        ("Einsum", [2, 3], (3, 5), [2, 5], {"equation": "ij,jk->ik"}, 2 * 3 * 5),
        ("Add", [4, 6], (6,), [4, 6], {}, 0),
    ],
)
def test_multiply_adds_of_an_operator(
    tmp_path: Path, op: str, x: list[int], w: tuple[int, ...], y: list[int],
    options: dict[str, Any], macs: int,
) -> None:  # fmt: skip
    node = helper.make_node(op, ["x", "w"], ["y"], **options)
    path = save(tmp_path / "m.onnx", [node], [weight("w", *w)], x, y)
    assert inspection.inspect(str(path)).macs == macs


def test_multiply_adds_of_an_lstm(tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "y"], hidden_size=6)
    weights = [weight("w", 1, 24, 4), weight("r", 1, 24, 6)]
    path = save(tmp_path / "m.onnx", [node], weights, [7, 2, 4], [1, 2, 6])
    assert inspection.inspect(str(path)).macs == 7 * 2 * 24 * (4 + 6)


def test_shapes_that_the_graph_computes_are_followed(tmp_path: Path) -> None:
    """x → [batch · 6, 4] by Shape, Slice and Concat, as exporters of Paddle write it."""
    ints = {"zero": [0], "one": [1], "minus": [-1]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in ints.items()]
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["b"]),
        helper.make_node("Concat", ["b", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    path = save(
        tmp_path / "m.onnx", nodes, [*constants, weight("w", 24, 3)], ["b", 6, 4], ["b", "?"]
    )
    found = inspection.inspect(str(path), {"b": 5})
    assert found.macs == 5 * 24 * 3
    assert found.activations == 5 * (24 + 3) * 4 + 8 * (3 + 1 + 2) - 8 * 6


def test_what_cannot_be_imported_is_listed_those_in_branches_too(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Strange", [], ["z"], domain="my.own")],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
    )
    nodes = [helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    path = save(tmp_path / "m.onnx", nodes, [], [1], [1], opsets=opsets)
    found = {one.op: one.count for one in inspection.inspect(str(path)).unsupported}
    assert found["my.own.Strange"] == 2


def test_local_functions_are_written_out_unless_they_have_no_end(tmp_path: Path) -> None:
    def function(name: str, callee: str, times: int) -> Any:
        nodes = [helper.make_node(callee, ["a"], ["b"], domain="f" if callee[0] == "f" else "")]
        nodes += [
            helper.make_node(callee, ["a"], [f"c{i}"], domain="f" if callee[0] == "f" else "")
            for i in range(times - 1)
        ]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        return helper.make_function("f", name, ["a"], ["b"], nodes, opsets)

    node = helper.make_node("f0", ["x"], ["y"], domain="f")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    few = [function("f0", "f1", 3), function("f1", "Relu", 2)]
    path = save(tmp_path / "few.onnx", [node], [], [1], [1], functions=few, opsets=opsets)
    (operators,) = inspection.inspect(str(path)).operators or ()
    assert (operators.op, operators.count) == ("Relu", 6)

    many = [function(f"f{i}", f"f{i + 1}", 10) for i in range(12)] + [function("f12", "Relu", 9)]
    path = save(tmp_path / "many.onnx", [node], [], [1], [1], functions=many, opsets=opsets)
    with pytest.raises(StageError, match="more than 200000 nodes"):
        inspection.inspect(str(path))
    ring = [function("f0", "f1", 1), function("f1", "f0", 1)]
    path = save(tmp_path / "ring.onnx", [node], [], [1], [1], functions=ring, opsets=opsets)
    with pytest.raises(StageError, match="call each other"):
        inspection.inspect(str(path))


def test_a_file_that_is_no_model_is_a_failure_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff\xff not a model")
    with pytest.raises(StageError, match="no ONNX model"):
        inspection.inspect(str(broken))


@pytest.mark.parametrize("name", ["none.onnx", "", "x\0y", "a" * 5000, "a/b/c", "../x"])
def test_a_missing_model_is_a_mistake_of_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match=r"no file|no model"):
        inspection.inspect(str(tmp_path / name))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Shape", [], ["s"]),
        helper.make_node("Slice", ["x"], ["s"]),
        helper.make_node("Constant", [], [], value=numpy_helper.from_array(np.array([1]))),
        helper.make_node("LSTM", ["x", "w", "w"], ["s"], hidden_size=3),
        helper.make_node("Einsum", ["x"], ["s"]),
        helper.make_node("Conv", ["x"], ["s"]),
    ],
    ids=lambda node: node.op_type,
)
def test_a_node_that_is_none_of_its_operator_is_counted_without_figures(
    tmp_path: Path, node: onnx.NodeProto
) -> None:
    last = helper.make_node("Relu", ["x"], ["y"])
    path = save(tmp_path / "m.onnx", [node, last], [weight("w", 1, 12, 3)], [2, 3], [2, 3])
    operators = inspection.inspect(str(path)).operators or ()
    assert {one.op for one in operators} == {node.op_type, "Relu"}


@pytest.mark.parametrize("shape", [[2**62] * 20, [1] * 65, [2**62, "b", 2**62]])
def test_an_input_of_more_elements_than_there_can_be_is_refused(
    tmp_path: Path, shape: list[int | str]
) -> None:
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [], shape, shape)
    with pytest.raises(StageError, match=r"m\.onnx is refused at .*: a shape"):
        inspection.inspect(str(path))


def test_a_product_that_no_machine_could_compute_has_no_figure(tmp_path: Path) -> None:
    """Each operand may be as large as there can be; 20 of them are larger than a float."""
    terms = ["abc", "def", "ghi", "jkl", "mno", "pqr", "stu"]
    equation = f"{','.join(terms)}->a"
    node = helper.make_node("Einsum", ["x"] * 7, ["y"], equation=equation)
    path = save(tmp_path / "m.onnx", [node], [], [2**20] * 3, [2**20])
    operators = inspection.inspect(str(path)).operators or ()
    assert [one.macs for one in operators] == [None]
