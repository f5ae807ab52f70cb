from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper, numpy_helper

from tapml_stages.importer.onnx import model as onnx_model
from tapml_stages.importer.onnx import symbolic
from tapml_stages.importer.onnx.symbolic import Size, Unknown

BATCH = Size((("batch", 1),))
LIMITS = {"batch": (1, 64)}
INT64 = 7
FACTOR = st.integers(-9, 9)


def shape_nodes(tail: list[int]) -> list[NodeProto]:
    """[batch, *tail], computed as tf2onnx does: Shape, Cast, Slice, Concat, Cast."""
    return [
        helper.make_node("Shape", ["x"], ["shape64"]),
        helper.make_node("Cast", ["shape64"], ["shape32"], to=6),
        helper.make_node("Slice", ["shape32", "zero", "one", "zero"], ["first"]),
        onnx_model.constant("tail", np.array(tail, np.int32)),
        helper.make_node("Concat", ["first", "tail"], ["target32"], axis=0),
        helper.make_node("Cast", ["target32"], ["target"], to=INT64),
    ]


INDICES = [onnx_model.constant("zero", np.array([0])), onnx_model.constant("one", np.array([1]))]


def run(model: ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.fixture
def reshaped_and_expanded(make_model: Callable[..., ModelProto]) -> ModelProto:
    nodes = [
        *INDICES,
        *shape_nodes([4, 2]),
        helper.make_node("Reshape", ["x", "target"], ["folded"]),
        helper.make_node("Expand", ["folded", "target"], ["expanded"]),
        onnx_model.constant("end", np.array([1_000_000_000])),
        helper.make_node("Slice", ["expanded", "zero", "end", "zero"], ["y"]),
    ]
    return make_model(nodes, {"x": ["batch", 8]})


def test_computed_shapes_become_constants_and_what_changes_nothing_an_identity(
    reshaped_and_expanded: ModelProto,
) -> None:
    folded = symbolic.fold(reshaped_and_expanded, LIMITS)
    ops = [node.op_type for node in folded.graph.node]
    assert ops == ["Constant", "Reshape", "Identity", "Identity"]
    assert numpy_helper.to_array(onnx_model.constant_tensor(folded.graph.node[0])).tolist() == [
        -1,
        4,
        2,
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_folding_keeps_the_numbers(reshaped_and_expanded: ModelProto, batch: int) -> None:
    x = np.random.default_rng(0).standard_normal((batch, 8), dtype=np.float32)
    folded = symbolic.fold(reshaped_and_expanded, LIMITS)
    np.testing.assert_array_equal(run(folded, x), run(reshaped_and_expanded, x))


def test_an_expand_that_broadcasts_stays(make_model: Callable[..., ModelProto]) -> None:
    nodes = [
        *INDICES,
        *shape_nodes([8]),
        helper.make_node("ReduceSum", ["x", "one"], ["sum"], keepdims=1),
        helper.make_node("Expand", ["sum", "target"], ["y"]),
    ]
    folded = symbolic.fold(make_model(nodes, {"x": ["batch", 8]}), LIMITS)
    assert "Expand" in [node.op_type for node in folded.graph.node]


def test_a_slice_keeps_the_axes_that_it_does_not_take_whole(
    make_model: Callable[..., ModelProto],
) -> None:
    nodes = [
        onnx_model.constant("starts", np.array([0, 2])),
        onnx_model.constant("ends", np.array([64, 5])),
        helper.make_node("Slice", ["x", "starts", "ends"], ["y"], name="slice"),
    ]
    folded = symbolic.fold(make_model(nodes, {"x": ["batch", 8]}), LIMITS)
    axes = next(node for node in folded.graph.node if node.name == "slice/axes")
    assert numpy_helper.to_array(onnx_model.constant_tensor(axes)).tolist() == [1]


def test_a_slice_that_a_large_batch_would_feel_stays(
    make_model: Callable[..., ModelProto],
) -> None:
    nodes = [
        onnx_model.constant("starts", np.array([0])),
        onnx_model.constant("ends", np.array([63])),
        helper.make_node("Slice", ["x", "starts", "ends"], ["y"]),
    ]
    folded = symbolic.fold(make_model(nodes, {"x": ["batch", 8]}), LIMITS)
    assert [node.op_type for node in folded.graph.node][-1] == "Slice"


@settings(deadline=None)
@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(1, 9),
    st.integers(1, 64),
)
def test_sizes_compute_as_integers_do(a: int, b: int, c: int, factor: int, batch: int) -> None:
    def at(size: Size | int) -> int:
        if isinstance(size, int):
            return size
        return size.const + sum(one * batch for _, one in size.terms)

    size = BATCH * a + b
    assert at(size) == a * batch + b
    assert at(c - size) == c - a * batch - b
    assert at(size * factor // factor) == a * batch + b
    assert at(size - BATCH * a) == b


def test_a_product_of_two_symbols_is_not_known() -> None:
    with pytest.raises(Unknown):
        BATCH * BATCH
