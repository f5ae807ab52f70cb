from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from tapml.errors import StageError
from tapml.stage import Outputs

MakeModel = Callable[..., ModelProto]
Difference = Callable[..., float]
RNG = np.random.default_rng(0)


def quantised(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_model_of_quantise_and_dequantise_is_right_to_one_step(
    make_model: MakeModel, difference: Difference, per_channel: bool
) -> None:
    """QDQ as exporters write it: int8 weights, uint8 activations."""
    scales = RNG.uniform(0.005, 0.02, 6).astype(np.float32)
    weights = {
        "w": quantised((8, 6), "int8"),
        "ws": scales if per_channel else scales[0],
        "wz": np.zeros(6 if per_channel else (), np.int8),
        "xs": np.array(0.03, np.float32),
        "xz": np.array(120, np.uint8),
        "ys": np.array(0.1, np.float32),
        "yz": np.array(131, np.uint8),
    }
    axis = {"axis": 1} if per_channel else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], **axis),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "ys", "yz"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "ys", "yz"], ["y"]),
    ]
    model = make_model(nodes, {"x": ["n", 8]}, weights)
    calls = [{"x": RNG.standard_normal((n, 8), dtype=np.float32)} for n in (1, 5)]
    worst = difference(model, calls, {"x": (("n", 8), "float32")}, n=(1, 8))
    assert worst < 0.11  # one step of 0.1, of outputs of one and more: sums may round otherwise


def test_coordinates_may_count_from_the_end(make_model: MakeModel, difference: Difference) -> None:
    nodes = [
        helper.make_node("GatherND", ["x", "at"], ["rows"]),
        helper.make_node("ScatterND", ["x", "at", "rows"], ["y"], reduction="add"),
    ]
    model = make_model(nodes, {"x": [4, 3], "at": (["n", 1], "int64")}, {})
    calls = [
        {"x": RNG.standard_normal((4, 3), dtype=np.float32), "at": np.array(at)[:, None]}
        for at in ([-1], [0, -4, 2, 2])
    ]
    shapes = {"x": ((4, 3), "float32"), "at": (("n", 1), "int64")}
    assert difference(model, calls, shapes, n=(1, 8)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "attrs"), [("QLinearConv", {"pads": [1, 1, 1, 1]}), ("QLinearMatMul", {})]
)
def test_quantised_operators_keep_the_sums_exact(
    make_model: MakeModel, difference: Difference, op: str, attrs: dict[str, Any]
) -> None:
    conv = op == "QLinearConv"
    shape, weight = ((2, 4, 6, 6), (3, 4, 3, 3)) if conv else ((5, 40), (40, 3))
    weights = {
        "xs": np.array(0.02, np.float32),
        "xz": np.array(128, np.uint8),
        "w": quantised(weight, "uint8"),
        "ws": RNG.uniform(0.005, 0.02, 3).astype(np.float32),
        "wz": np.full(3, 121, np.uint8),
        "ys": np.array(1.7, np.float32),
        "yz": np.array(127, np.uint8),
    }
    if not conv:  # onnxruntime takes one scale there
        weights["ws"], weights["wz"] = weights["ws"][0], weights["wz"][0]
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node(op, names, ["y"], name="quantised", **attrs)
    model = make_model([node], {"x": (list(shape), "uint8")}, weights)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    worst = difference(model, [{"x": quantised(shape, "uint8")}])
    assert worst <= 1 / 128  # a tie may round to the other side


@pytest.mark.parametrize(
    "attrs",
    [
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "cubic", "coordinate_transformation_mode": "half_pixel"},
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
    ],
)
def test_resize_keeps_a_scale_that_gives_no_whole_size(
    make_model: MakeModel, difference: Difference, attrs: dict[str, str]
) -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], name="resize", **attrs)
    scales = np.array([1, 1, 0.7, 1.4], np.float32)
    model = make_model([node], {"x": [1, 2, 9, 7]}, {"scales": scales})
    call = {"x": RNG.standard_normal((1, 2, 9, 7), dtype=np.float32)}
    assert difference(model, [call]) < 2e-6


def test_a_half_precision_model_computes_in_half_precision(
    make_model: MakeModel, difference: Difference
) -> None:
    weight = RNG.standard_normal((16, 4)).astype(np.float16)
    model = make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ([3, 16], "float16")}, {"w": weight}
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    call = {"x": RNG.standard_normal((3, 16)).astype(np.float16)}
    assert difference(model, [call]) < 16 * 2**-11  # a rounding for each of 16 products


def test_every_refused_operator_has_advice_and_its_nodes(
    make_model: MakeModel, import_model: Callable[..., Outputs]
) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="find"),
        helper.make_node("Scaler", ["x"], ["s"], name="scale", domain="ai.onnx.ml"),
        helper.make_node("Frob", ["x"], ["y"], name="frob", domain="acme"),
    ]
    model = make_model(nodes, {"x": [2, 8]}, outputs=("a", "s", "y"))
    with pytest.raises(StageError) as caught:
        import_model(model)
    text = caught.value.message
    assert "NonZero ×1: find — the size of what it gives depends on data" in text
    assert "ai.onnx.ml.Scaler ×1: scale — of classical machine learning" in text
    assert "acme.Frob ×1: frob — of domain acme" in text


def test_what_no_kernel_can_be_made_of_is_refused_here(
    make_model: MakeModel, import_model: Callable[..., Outputs]
) -> None:
    node = helper.make_node("ConstantOfShape", ["x"], ["y"], name="fill")
    with pytest.raises(
        StageError, match=r"ConstantOfShape \(relax.tensor_to_shape\) ×1: fill — no"
    ):
        import_model(make_model([node], {"x": ([2], "int64")}))


def test_operators_that_onnx_writes_with_others_are_decomposed(
    make_model: MakeModel, difference: Difference
) -> None:
    node = helper.make_node("Celu", ["x"], ["y"], name="celu", alpha=2.0)
    call = {"x": RNG.standard_normal((3, 5), dtype=np.float32)}
    assert difference(make_model([node], {"x": [3, 5]}), [call]) < 1e-6
