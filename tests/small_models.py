"""ONNX models that take a second to build, for tests of the whole line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECIPE = """\
version: 1
name: mlp
workflow: deploy
model:
  source: onnx
  path: mlp.onnx
  inputs: {x: {shape: [batch, 16], dtype: float32}}
  dims: {batch: {min: 1, max: 8}}
  buckets: [{batch: 4}]
target: {preset: cpu}
tuning: {trials: 0}
validation: {repeats: 5, max_seconds: 2.0}
"""


def write_mlp(folder: Path, recipe: str = RECIPE) -> Path:
    """A two-layer perceptron with symbolic batch and a recipe for it; returns the recipe's path."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype("float32") / 4, name)

    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "hidden"),
        helper.make_node("Add", ["h", "b1"], ["hb"], "hidden_bias"),
        helper.make_node("Relu", ["hb"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "out"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight("w1", 16, 32), weight("b1", 32), weight("w2", 32, 8)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "mlp.onnx")
    path = folder / "recipe.yaml"
    path.write_text(recipe)
    return path
