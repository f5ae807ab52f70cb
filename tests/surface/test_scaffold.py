from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from tapml import scaffold
from tapml.errors import RecipeError, StageError


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
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["unk__7", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["unk__7", 2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [first])
    path = tmp_path / "small model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(path))
    return path


def test_inspect_finds_tensors_operators_and_every_weight(model: Path) -> None:
    found = scaffold.inspect(model)
    assert found.inputs == (scaffold.Tensor("x", ("batch", 4), "float32"),)
    assert found.operators == {"MatMul": 2, "Constant": 1}
    assert found.parameters == 48
    assert [(layer.node, layer.weight, layer.shape) for layer in found.prunable] == [
        ("one", "w1", (4, 8)),
        ("two", "w2", (8, 2)),
    ]


def test_unnamed_dims_get_names_of_their_own(model: Path) -> None:
    loaded = onnx.load(str(model))
    for dim in loaded.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "?"
    onnx.save(loaded, str(model))
    assert scaffold.inspect(model).inputs[0].shape == ("batch", "x_1")


def test_the_drafted_recipe_loads(model: Path) -> None:
    from tapml import recipe

    path = model.with_name("draft.yaml")
    path.write_text(scaffold.draft(scaffold.inspect(model)))
    loaded = recipe.load(path)
    assert loaded.name == "small-model"
    assert loaded.data["model"]["dims"] == {"batch": {"min": 1, "max": 64}}


def test_a_file_that_is_no_model_is_a_failure_in_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff\xff not a model")
    with pytest.raises(StageError, match="no ONNX model"):
        scaffold.inspect(broken)


def test_a_missing_model_is_a_mistake_of_usage(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no file"):
        scaffold.inspect(tmp_path / "none.onnx")


def test_needed_files_are_what_the_recipe_names_and_what_that_imports(tmp_path: Path) -> None:
    (tmp_path / "inputs.py").write_text("import numpy\nfrom helper import f\n")
    (tmp_path / "helper.py").write_text("import inputs\nf = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "files.txt").write_text("")
    data = {
        "description": "*",
        "sparsity": {"layers": ["*"]},
        "validation": {"inputs": {"python": "inputs.py:fn", "reads": ["*.txt"]}},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    names = {path.name for path in scaffold.needed_files(tmp_path / "r.yaml")}
    assert names == {"inputs.py", "helper.py", "files.txt"}
