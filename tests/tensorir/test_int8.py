"""Quantised models beside onnxruntime: integers exactly, what is rounded to a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quantised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_integers import integers, target

from tapml.target import missing_here

RNG = np.random.default_rng(0)
node = helper.make_node
TARGETS = [one for one in map(target, ("x86-64-v3", "cascadelake")) if not missing_here(one)]


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    k=st.sampled_from([1, 3, 16, 37, 64]),
    n=st.sampled_from([1, 15, 16, 33]),
    dtypes=st.tuples(*[st.sampled_from(["uint8", "int8"])] * 2),
    zeros=st.tuples(st.integers(0, 255), st.sampled_from([0, 121, 128, 255])),
    by_column=st.booleans(),
)
def test_matmul_integer_is_exact(
    tmp_path: Path,
    k: int,
    n: int,
    dtypes: tuple[str, str],
    zeros: tuple[int, int],
    by_column: bool,
) -> None:
    """Every pair of signednesses and zero points; rows are symbolic, none at all among them."""
    first, second = (np.array(z).astype(d) for z, d in zip(zeros, dtypes, strict=True))
    weights = {
        "xz": first,
        "w": integers(RNG, (k, n), dtypes[1]),
        "wz": np.full(n, second) if by_column else second,
    }
    made = quantised.model(
        [node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])],
        {"x": (("m", k), dtypes[0])},
        weights,
        TensorProto.INT32,
    )
    path = quantised.save(made, tmp_path / "model.onnx")
    for where in TARGETS:
        built = quantised.build(path, where, {"x": (("m", k), dtypes[0])}, m=(1, 64))
        for rows in (1, 5, 17):
            x = integers(RNG, (rows, k), dtypes[0])
            expected = (x.astype("int64") - first) @ (weights["w"].astype("int64") - weights["wz"])
            (found,) = built.call({"x": x})
            assert np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("channels", "filters", "taps"), [(16, 20, 3), (3, 32, 3), (24, 16, 1)])
def test_a_quantised_convolution_is_tensorized(
    tmp_path: Path, dtype: str, channels: int, filters: int, taps: int
) -> None:
    weights = {
        "xs": np.array(0.02, "float32"),
        "xz": np.array(131, "uint8"),
        "w": integers(RNG, (filters, channels, taps, taps), dtype),
        "ws": RNG.uniform(0.005, 0.02, filters).astype("float32"),
        "wz": np.full(filters, 128 if dtype == "uint8" else 0, dtype),
        "ys": np.array(0.15 * taps * channels**0.5, "float32"),
        "yz": np.array(127, "uint8"),
    }
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    shape = (2, channels, 9, 7)
    conv = node("QLinearConv", names, ["y"], pads=[taps // 2] * 4, strides=[1, 2])
    made = quantised.model([conv], {"x": (shape, "uint8")}, weights, TensorProto.UINT8)
    path = quantised.save(made, tmp_path / "model.onnx")
    feed = {"x": integers(RNG, shape, "uint8")}
    (expected,) = quantised.peer(path, feed)
    assert len(np.unique(expected)) > 20
    for where in TARGETS:
        built = quantised.build(path, where, {})
        assert [rule for name, rule in built.rules.items() if "conv" in name] == ["tensorize"]
        (found,) = built.call(feed)
        assert np.abs(found.astype(int) - expected).max() <= 1  # a tie may round to the other side


@pytest.mark.slow
def test_a_model_of_quantise_and_dequantise_multiplies_integers(tmp_path: Path) -> None:
    """Two convolutions and a product, as onnxruntime's tools write them; the batch is symbolic."""
    first = RNG.uniform(0.001, 0.01, 16).astype("float32")
    weights = {
        "xs": np.array(0.02, "float32"),
        "xz": np.array(128, "uint8"),
        "w1": integers(RNG, (16, 3, 3, 3), "int8"),
        "w1s": first,
        "w1z": np.zeros(16, "int8"),
        "b1": RNG.integers(-500, 500, 16).astype("int32"),
        "b1s": (first * np.float32(0.02)).astype("float32"),
        "b1z": np.zeros(16, "int32"),
        "hs": np.array(0.05, "float32"),
        "hz": np.array(10, "uint8"),
        "w2": integers(RNG, (20, 16, 3, 3), "int8"),
        "w2s": np.array(0.004, "float32"),
        "w2z": np.array(0, "int8"),
        "ms": np.array(0.2, "float32"),
        "mz": np.array(110, "uint8"),
        "flat": np.array([0, -1], "int64"),
        "w3": integers(RNG, (20 * 9 * 7, 10), "int8"),
        "w3s": np.array(0.002, "float32"),
        "w3z": np.array(0, "int8"),
        "ys": np.array(2.0, "float32"),
        "yz": np.array(100, "uint8"),
    }
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["w1", "w1s", "w1z"], ["w1d"], axis=0),
        node("DequantizeLinear", ["b1", "b1s", "b1z"], ["b1d"], axis=0),
        node("Conv", ["xd", "w1d", "b1d"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("QuantizeLinear", ["r1", "hs", "hz"], ["hq"]),
        node("DequantizeLinear", ["hq", "hs", "hz"], ["hd"]),
        node("DequantizeLinear", ["w2", "w2s", "w2z"], ["w2d"]),
        node("Conv", ["hd", "w2d"], ["c2"], pads=[1, 1, 1, 1]),
        node("QuantizeLinear", ["c2", "ms", "mz"], ["mq"]),
        node("DequantizeLinear", ["mq", "ms", "mz"], ["md"]),
        node("Reshape", ["md", "flat"], ["rows"]),
        node("DequantizeLinear", ["w3", "w3s", "w3z"], ["w3d"]),
        node("MatMul", ["rows", "w3d"], ["p"]),
        node("QuantizeLinear", ["p", "ys", "yz"], ["yq"]),
        node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    signature = {"x": (("n", 3, 17, 13), "float32")}
    path = quantised.save(quantised.model(nodes, signature, weights), tmp_path / "model.onnx")
    for where in TARGETS:
        built = quantised.build(path, where, signature, n=(1, 8))
        assert sorted(built.rules.values()).count("tensorize") == 3
        for batch in (1, 3):
            feed = {"x": RNG.uniform(-2, 2, (batch, 3, 17, 13)).astype("float32")}
            (found,), (expected,) = built.call(feed), quantised.peer(path, feed)
            assert expected.std() > 20
            assert np.abs(found - expected).max() <= 2 * 2.0 + 1e-3  # ties on the way, then a step


@pytest.mark.slow
def test_dynamic_quantisation_of_a_linear_layer_runs_on_integers(tmp_path: Path) -> None:
    """The zero point of the activations is found at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {"w": RNG.standard_normal((64, 48)).astype("float32")}
    signature = {"x": (("n", 64), "float32")}
    plain = quantised.model([node("MatMul", ["x", "w"], ["y"])], signature, weights)
    quantised.save(plain, tmp_path / "plain.onnx")
    path = tmp_path / "model.onnx"
    for kind in (QuantType.QInt8, QuantType.QUInt8):
        quantize_dynamic(tmp_path / "plain.onnx", path, weight_type=kind)
        for where in TARGETS:
            built = quantised.build(path, where, signature, n=(1, 32))
            assert "tensorize" in built.rules.values()
            for rows in (1, 9):
                feed = {"x": RNG.standard_normal((rows, 64)).astype("float32")}
                (found,), (expected,) = built.call(feed), quantised.peer(path, feed)
                assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()
