from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

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


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it makes a function
)
@given(st.data())
def test_a_slice_without_axes_gives_what_it_did_whatever_its_steps(
    make_model: Callable[..., ModelProto], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 3))
    names = ["starts", "ends", "steps"]
    ends = st.sampled_from([-(2**31), -2, 1, 3, 2**31 - 1])
    columns = [
        data.draw(st.lists(one, min_size=count, max_size=count))
        for one in (st.integers(-3, 3), ends, st.sampled_from([-2, -1, 1, 2]))
    ]
    nodes = [onnx_model.constant(*one) for one in zip(names, map(np.array, columns), strict=True)]
    nodes.append(helper.make_node("Slice", ["x", "starts", "ends", "", "steps"], ["y"], name="s"))
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    model = make_model(nodes, {"x": [4, 3, 2]})
    np.testing.assert_array_equal(run(symbolic.fold(model, {}), x), run(model, x))


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


@pytest.mark.parametrize(
    "compute",
    [
        lambda half: half + 0.5,
        lambda half: 1.0 - half,
        lambda half: half / 2.0,
        lambda half: 2.0 / half,
        lambda half: -half,
        lambda half: half % 2.0,
        lambda half: 7 % (half * 2),
    ],
)
def test_what_is_not_defined_for_a_quotient_of_floats_is_not_known(
    compute: Callable[[Any], object],
) -> None:
    with pytest.raises(Unknown):
        compute(BATCH / 2)


def test_arithmetic_of_floats_that_is_not_known_stays_in_the_graph(
    make_model: Callable[..., ModelProto],
) -> None:
    nodes = [
        *INDICES,
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"]),
        helper.make_node("Cast", ["batch"], ["float"], to=TensorProto.FLOAT),
        onnx_model.constant("two", np.array(2, np.float32)),
        helper.make_node("Div", ["float", "two"], ["half"]),
        helper.make_node("Neg", ["half"], ["less"]),
        helper.make_node("Add", ["less", "two"], ["y"]),
    ]
    folded = symbolic.fold(make_model(nodes, {"x": ["batch", 8]}), LIMITS)
    assert [node.op_type for node in folded.graph.node][-2:] == ["Neg", "Add"]


@pytest.mark.parametrize(
    ("op", "operands"),
    [
        ("OneHot", [np.array([0]), np.array(50_000_000), np.array([0, 1])]),
        ("Where", [np.ones((99, 1, 1), bool), np.ones((99, 1), int), np.ones(999, int)]),
    ],
)
def test_nothing_large_is_computed_on_the_way(
    make_model: Callable[..., ModelProto], op: str, operands: list[np.ndarray]
) -> None:
    names = [f"operand{index}" for index in range(len(operands))]
    nodes = [onnx_model.constant(*one) for one in zip(names, operands, strict=True)]
    nodes += [helper.make_node(op, names, ["y"])]
    tracemalloc.start()
    folded = symbolic.fold(make_model(nodes, {"x": [1]}), {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [node.op_type for node in folded.graph.node][-1] == op
    assert peak < 20 << 20


def test_integers_that_no_tensor_holds_are_not_written(
    make_model: Callable[..., ModelProto],
) -> None:
    nodes = [
        *INDICES,
        onnx_model.constant("much", np.array([1, 2**40])),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "much"], ["more"]),
        helper.make_node("Mul", ["more", "much"], ["most"]),
        helper.make_node("Gather", ["most", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["y"], to=TensorProto.FLOAT),
    ]
    folded = symbolic.fold(make_model(nodes, {"x": ["batch", 8]}), LIMITS)
    assert [node.op_type for node in folded.graph.node][-3:] == ["Mul", "Gather", "Cast"]


def test_a_product_of_two_symbols_is_not_known() -> None:
    with pytest.raises(Unknown):
        BATCH * BATCH
