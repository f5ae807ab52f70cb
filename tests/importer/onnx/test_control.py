from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml.stage import Outputs
from tapml_stages import program
from tapml_stages.importer.onnx import control, symbolic
from tapml_stages.importer.onnx import model as onnx_model

MakeModel = Callable[..., ModelProto]
Difference = Callable[..., float]
RNG = np.random.default_rng(0)


def graph(name: str, nodes: list, outputs: list[str], inputs: list | None = None, **weights):
    values = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    tensors = [numpy_helper.from_array(one, key) for key, one in weights.items()]
    return helper.make_graph(nodes, name, inputs or [], values, tensors)


def test_the_branch_of_a_known_condition_is_taken_with_its_weights(
    make_model: MakeModel, difference: Difference
) -> None:
    """The condition comes from a shape; both branches call their weight `w`."""
    up, down = (RNG.standard_normal((8, 4), dtype=np.float32) for _ in range(2))
    branches = {
        f"{which}_branch": graph(which, [helper.make_node("MatMul", ["x", "w"], ["o"])], ["o"], w=w)
        for which, w in (("then", up), ("else", down))
    }
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        onnx_model.constant("one", np.array(1)),
        helper.make_node("Gather", ["s", "one"], ["wide"]),
        onnx_model.constant("eight", np.array(8)),
        helper.make_node("Equal", ["wide", "eight"], ["is_eight"]),
        helper.make_node("If", ["is_eight"], ["y"], name="choose", **branches),
    ]
    call = {"x": RNG.standard_normal((3, 8), dtype=np.float32)}
    inputs = {"x": (("n", 8), "float32")}
    model = make_model(nodes, {"x": ["n", 8]})
    assert difference(model, [call], inputs, n=(1, 4)) < 1e-6


def loop(make: MakeModel, trips: int, ends: bool = False) -> ModelProto:
    """Adds the trip's number to a running sum, and stacks the sums."""
    info = helper.make_tensor_value_info
    inputs = [
        info("i", TensorProto.INT64, []),
        info("go", TensorProto.BOOL, []),
        info("sum", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Cast", ["i"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["sum", "number"], ["next"]),
        helper.make_node("Identity", ["next"], ["row"]),
    ]
    if ends:
        nodes += [
            helper.make_node("ReduceMax", ["next"], ["largest"], keepdims=0),
            helper.make_node("Less", ["largest", "number"], ["on"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["go"], ["on"]))
    body = graph("body", nodes, ["on", "next", "row"], inputs)
    body.output[0].type.tensor_type.elem_type = TensorProto.BOOL
    outer = [
        onnx_model.constant("trips", np.array(trips)),
        onnx_model.constant("start", np.array(True)),
        helper.make_node("Loop", ["trips", "start", "x"], ["y", "rows"], name="walk", body=body),
    ]
    return make(outer, {"x": [2, 3]}, outputs=("y", "rows"))


def test_a_loop_of_known_length_is_unrolled(make_model: MakeModel, difference: Difference) -> None:
    call = {"x": RNG.standard_normal((2, 3), dtype=np.float32)}
    assert difference(loop(make_model, 4), [call]) == 0


@pytest.mark.parametrize(("trips", "ends"), [(65, False), (4, True)])
def test_a_long_loop_and_one_that_data_end_are_refused_by_name(
    make_model: MakeModel, import_model: Callable[..., Outputs], trips: int, ends: bool
) -> None:
    with pytest.raises(StageError, match="Loop ×1: walk — what decides is computed from data"):
        import_model(loop(make_model, trips, ends))


def test_loops_within_loops_are_unrolled_while_there_is_room(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 trips of 8 trips of 8 trips, where there is room for 300 nodes."""
    monkeypatch.setattr(control, "MAX_NODES", 300)
    info = helper.make_tensor_value_info

    def nested(depth: int) -> onnx.GraphProto:
        i, go, x, on, y = (f"{name}{depth}" for name in ("i", "go", "x", "on", "y"))
        inner = ["trips", "start", x]
        made = (
            helper.make_node("Loop", inner, [y], body=nested(depth - 1))
            if depth
            else helper.make_node("Add", [x, x], [y])
        )
        nodes = [helper.make_node("Identity", [go], [on]), made]
        inputs = [info(i, TensorProto.INT64, []), info(go, TensorProto.BOOL, [])]
        inputs.append(info(x, TensorProto.FLOAT, [2]))
        outputs = [info(on, TensorProto.BOOL, []), info(y, TensorProto.FLOAT, [2])]
        return helper.make_graph(nodes, "body", inputs, outputs)

    outer = [
        onnx_model.constant("trips", np.array(8)),
        onnx_model.constant("start", np.array(True)),
        helper.make_node("Loop", ["trips", "start", "x"], ["y"], name="walk", body=nested(2)),
    ]
    folded = symbolic.fold(make_model(outer, {"x": [2]}), {})
    assert len(folded.graph.node) < control.MAX_NODES
    assert "Loop" in [node.op_type for node in folded.graph.node]


def test_a_loop_whose_body_does_not_fit_it_stays(make_model: MakeModel) -> None:
    model = loop(make_model, 3)
    del model.graph.node[2].attribute[0].g.input[1:]
    assert symbolic.fold(model, {}).graph.node[-1].op_type == "Loop"


def test_an_input_with_a_value_decides_a_branch(make_model: MakeModel) -> None:
    branches = {
        f"{op}_branch": graph(op, [helper.make_node(kind, ["x"], ["o"])], ["o"])
        for op, kind in (("then", "Neg"), ("else", "Relu"))
    }
    nodes = [
        onnx_model.constant("rate", np.array(16000)),
        helper.make_node("Equal", ["sr", "rate"], ["fast"]),
        helper.make_node("If", ["fast"], ["y"], name="choose", **branches),
    ]
    model = make_model(nodes, {"x": [2, 3], "sr": ([], "int64")})
    for value, kind in ((16000, "Neg"), (8000, "Relu")):
        signature = {"x": ((2, 3), "float32"), "sr": ((), "int64")}
        fixed = onnx_model.canonical(model, signature, {"sr": value})
        assert [one.name for one in fixed.graph.input] == ["x"]
        onnx_model.replace(
            fixed.graph.node,
            [
                *(
                    onnx_model.constant(one.name, numpy_helper.to_array(one))
                    for one in fixed.graph.initializer
                ),
                *fixed.graph.node,
            ],
        )
        del fixed.graph.initializer[:]
        ops = [node.op_type for node in symbolic.fold(fixed, {}).graph.node]
        assert ops == [kind, "Identity"]


def test_values_know_the_nodes_of_the_branch(
    make_model: MakeModel, import_model: Callable[..., Outputs]
) -> None:
    rows = program.load_provenance(import_model(loop(make_model, 2)).artifacts["program"])
    assert {row.nodes[0] for row in rows if row.op == "Add"} == {"walk/0/next", "walk/1/next"}
