from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from onnx import ModelProto, TensorProto, helper

from tapml.errors import RecipeError, StageError
from tapml.stage import Outputs
from tapml_stages import codec, program
from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Program, concrete_shape

ImportModel = Callable[..., Outputs]
BATCH = {"x": (("batch", 8), "float32")}
MakeModel = Callable[..., ModelProto]
BATCH_OF_4 = {"x": [4, 8]}


def evaluate(imported: Program, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    rx = tvm.relax
    built = tvm.compile(rx.get_pipeline("zero")(imported.mod), tvm.target.Target("llvm"))
    vm = rx.VirtualMachine(built, tvm.cpu())
    arrays = [x, *(weights[param.name] for param in imported.io.params)]
    return vm["main"](*[tvm.runtime.tensor(array) for array in arrays]).numpy()


def ops_of(imported: Program) -> list[str]:
    return [
        binding.value.op.name
        for block in imported.mod["main"].body.blocks
        for binding in block.bindings
    ]


def test_the_program_computes_what_onnxruntime_does_at_any_batch(
    import_model: ImportModel, mlp: ModelProto
) -> None:
    paths = import_model(mlp, BATCH, batch=(1, 64)).artifacts
    imported = program.load(paths["program"])
    session = onnxruntime.InferenceSession(paths["source"] / "model.onnx")
    x = np.random.default_rng(1).standard_normal((5, 8), dtype=np.float32)
    ours = evaluate(imported, codec.read_weights(paths["weights"]), x)
    np.testing.assert_allclose(ours, session.run(None, {"x": x})[0], atol=1e-5)


def test_a_lost_shape_is_told_with_the_line_of_the_recipe_that_mends_it(
    import_model: ImportModel, make_model: MakeModel
) -> None:
    """The size of the result comes from numbers that no arithmetic of shapes follows."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], name="largest", keepdims=0),
        helper.make_node("Cast", ["largest"], ["size"], name="size", to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["size", "first"], ["sizes"], name="sizes"),
        helper.make_node("Reshape", ["x", "sizes"], ["y"], name="lost"),
    ]
    model = make_model(nodes, {"x": ["n", 8]}, {"first": np.array([0])})
    with pytest.raises(StageError, match="node lost") as told:
        import_model(model, BATCH, batch=(3, 64))
    inputs = {"x": {"shape": [3, 8], "dtype": "float32"}}
    _, _, line = told.value.hint.partition("without `dims` and `buckets`, ")
    assert yaml.safe_load(line) == {"inputs": inputs}


def test_every_value_is_named_after_its_node_and_knows_its_weights(
    import_model: ImportModel, mlp: ModelProto
) -> None:
    rows = program.load_provenance(import_model(mlp, BATCH, batch=(1, 64)).artifacts["program"])
    values = [row.value for row in rows]
    assert len(set(values)) == len(values)
    assert values[0] == "block_0_dense"
    by_node = {row.nodes[0]: row for row in rows if row.op in ("MatMul", "Gemm") and row.weights}
    assert by_node["block.0/dense"].weights == ("w/1:0",)
    assert {w for row in rows if row.nodes == ("block.0/dense#2",) for w in row.weights} == {
        "w2",
        "b2",
    }


def test_weights_keep_their_source_names_and_unused_ones_are_left_out(
    import_model: ImportModel, mlp: ModelProto
) -> None:
    paths = import_model(mlp, BATCH, batch=(1, 64)).artifacts
    io = program.load_io(paths["program"])
    assert {param.name for param in io.params} == {"w/1:0", "w2", "b2"}
    assert set(codec.read_weights(paths["weights"])) == {"w/1:0", "w2", "b2"}


def test_dims_have_the_recipes_names_and_bounds(import_model: ImportModel, mlp: ModelProto) -> None:
    imported = program.load(import_model(mlp, BATCH, batch=(1, 64)).artifacts["program"])
    assert imported.io.dims == {"batch": Bounds(1, 64)}
    assert imported.io.inputs[0].shape == ("batch", 8)
    assert concrete_shape(imported.io.outputs[0], {"batch": 3}) == (3, 4)
    assert dict(imported.mod["main"].attrs["tir_var_upper_bound"]) == {"batch": 64}
    assert imported.mod["main"].attrs["num_input"] == 1


def test_clip_and_variadic_max_become_plain_operators(
    import_model: ImportModel, make_model: Callable[..., ModelProto]
) -> None:
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["clipped"]),
        helper.make_node("Max", ["clipped", "x", "floor"], ["y"]),
    ]
    weights = {
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "floor": np.ones((1, 8), np.float32),
    }
    paths = import_model(make_model(nodes, {"x": [2, 8]}, weights)).artifacts
    imported = program.load(paths["program"])
    assert ops_of(imported) == ["relax.clip", "relax.maximum", "relax.maximum"]
    x = np.random.default_rng(0).normal(scale=9, size=(2, 8)).astype(np.float32)
    ours = evaluate(imported, codec.read_weights(paths["weights"]), x)
    np.testing.assert_array_equal(ours, np.maximum(np.maximum(np.clip(x, 0, 6), x), 1))


def test_all_unsupported_operators_are_listed_at_once(
    import_model: ImportModel, make_model: Callable[..., ModelProto]
) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["a"], ["b"], name="second"),
        helper.make_node("Frobnicate", ["b"], ["y"], name="third", domain="acme"),
    ]
    with pytest.raises(StageError) as caught:
        import_model(make_model(nodes, {"x": [2, 8]}))
    assert "Det ×2: first, second" in caught.value.message
    assert "acme.Frobnicate ×1: third" in caught.value.message


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_a_truncated_file_is_named(
    import_model: ImportModel, mlp: ModelProto, share: float
) -> None:
    content = mlp.SerializeToString()
    with pytest.raises(StageError, match=r"model\.onnx .*"):
        import_model(content[: int(len(content) * share)], BATCH, batch=(1, 64))


def test_a_file_that_uses_an_undefined_value_is_no_valid_model(
    import_model: ImportModel, make_model: Callable[..., ModelProto]
) -> None:
    nodes = [helper.make_node("Relu", ["nowhere"], ["y"])]
    with pytest.raises(StageError, match="no valid ONNX model"):
        import_model(make_model(nodes, {"x": [2, 8]}))


def test_sizes_that_come_from_data_are_refused_by_node(
    import_model: ImportModel, make_model: Callable[..., ModelProto]
) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="grow"),
    ]
    with pytest.raises(StageError, match=r"node grow \(Resize\) .*computed from data"):
        import_model(make_model(nodes, {"x": [1, 1, 2, 2], "sizes": ([4], "int64")}))


def test_an_input_that_the_model_lacks_is_a_mistake_of_the_recipe(
    import_model: ImportModel, mlp: ModelProto
) -> None:
    with pytest.raises(RecipeError, match="has 2 dims, not 1"):
        import_model(mlp, {"x": (("batch",), "float32")}, batch=(1, 64))


def test_an_equal_model_gives_equal_bytes(
    import_model: ImportModel, mlp: ModelProto, context: object
) -> None:
    first = import_model(mlp, BATCH, batch=(1, 64)).artifacts
    before = {path.name: path.read_bytes() for path in first["program"].iterdir()}
    for folder in ("source", "program", "files"):
        first[folder].rename(first[folder].with_name(f"{folder}_before"))
    again = import_model(mlp, BATCH, batch=(1, 64)).artifacts
    assert {path.name: path.read_bytes() for path in again["program"].iterdir()} == before


@pytest.mark.parametrize(
    ("opset", "bounds"),
    [
        (9, {"min": 0.0, "max": 6.0}),
        (9, {"max": 0.5}),
        (17, {"min": 0.5}),
        (17, {"max": 0.5}),
        (17, {}),
    ],
)
def test_a_clip_bounds_what_it_says_on_one_side_or_both(
    import_model: ImportModel, make_model: MakeModel, opset: int, bounds: dict[str, Any]
) -> None:
    scalars = {name: np.array(value, np.float32) for name, value in bounds.items()}
    given = ["x", *(name if name in bounds else "" for name in ("min", "max"))]
    new, old = (
        helper.make_node("Clip", given, ["y"]),
        helper.make_node("Clip", ["x"], ["y"], **bounds),
    )
    model = make_model([new], BATCH_OF_4, scalars) if opset > 10 else make_model([old], BATCH_OF_4)
    model.opset_import[0].version = opset
    model.graph.node.add(op_type="Neg", input=["y"], output=["z"])
    model.graph.output[0].name = "z"
    paths = import_model(model, {"x": ((4, 8), "float32")}).artifacts
    x = 9 * np.random.default_rng(1).standard_normal((4, 8), dtype=np.float32)
    ours = evaluate(program.load(paths["program"]), codec.read_weights(paths["weights"]), x)
    expected = -np.clip(x, bounds.get("min", -np.inf), bounds.get("max", np.inf))
    np.testing.assert_array_equal(ours, expected.astype(np.float32))


def test_slices_of_before_opset_ten_are_read_from_attributes(
    import_model: ImportModel, make_model: MakeModel
) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s"], ["rows"], starts=[0], ends=[1]),
        helper.make_node("Concat", ["rows", "two"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["pairs"]),
        helper.make_node("Slice", ["pairs"], ["y"], axes=[1], starts=[1], ends=[3]),
    ]
    model = make_model(nodes, {"x": ["N", 8]}, {"two": np.array([4, 2])})
    model.opset_import[0].version = 9
    paths = import_model(model, BATCH, batch=(1, 64)).artifacts
    x = np.random.default_rng(1).standard_normal((5, 8), dtype=np.float32)
    ours = evaluate(program.load(paths["program"]), {}, x)
    np.testing.assert_array_equal(ours, x.reshape(5, 4, 2)[:, 1:3])
