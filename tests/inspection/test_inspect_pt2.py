from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import models

from tapml import inspection
from tapml.errors import StageError
from tapml.inspection.model import Bounds, Layer, Operation, Value, peak


def test_a_graph_of_torch_is_read_without_torch() -> None:
    found = inspection.inspect(str(models.PT2))
    assert found.inputs == (Value("x", ("s77", 3, 16, 16), "float32"),)
    assert found.outputs == (Value("add", ("s77", 5), "float32"),)
    assert found.dims == {"s77": Bounds(1, 64)}
    assert found.macs == 8 * 16 * 16 * 27 + 32 * 5
    assert found.unsupported == ()
    # the convolution's 8 × 16 × 16 floats, and what relu makes of them
    assert found.activations == 2 * 8 * 16 * 16 * 4
    assert found.prunable == (
        Layer("conv2d", "conv2d.default", "conv.weight", (8, 3, 3, 3)),
        Layer("linear", "linear.default", "linear.weight", (5, 32)),
    )


def test_multiply_adds_and_activations_are_counted_at_the_sizes_given() -> None:
    one, many = (inspection.inspect(str(models.PT2), {"s77": n}) for n in (1, 4))
    assert many.macs == 4 * (one.macs or 0)
    assert many.activations == 4 * (one.activations or 0)


def test_a_program_that_writes_to_a_buffer_says_so(tmp_path: Path) -> None:
    members = models.pt2_members()
    tree = json.loads(members["small/models/model.json"])
    one = {"buffer_mutation": {"arg": {"name": "add"}, "buffer_name": "shift"}}
    tree["graph_module"]["signature"]["output_specs"].append(one)
    members["small/models/model.json"] = json.dumps(tree).encode()
    (tmp_path / "m.pt2").write_bytes(models.pt2(members))
    assert inspection.inspect(str(tmp_path / "m.pt2")).notes == ("writes to shift",)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    members = models.pt2_members()
    tree = json.loads(members["small/models/model.json"])
    change(tree["graph_module"]["graph"])
    members["small/models/model.json"] = json.dumps(tree).encode()
    (folder / "m.pt2").write_bytes(models.pt2(members))
    return str(folder / "m.pt2")


@pytest.mark.parametrize(
    "operator", ["einsum", "scaled_dot_product_attention", "lstm", "convolution", "matmul"]
)
def test_a_node_that_is_none_of_its_operator_is_counted_without_figures(
    tmp_path: Path, operator: str
) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["nodes"][0]["target"] = f"torch.ops.aten.{operator}.default"
        one = {"name": "equation", "arg": None, "kind": 1}
        del graph["nodes"][0]["inputs"][1:]
        graph["nodes"][0]["inputs"].append(one)

    operators = inspection.inspect(changed(tmp_path, change)).operators or ()
    assert f"{operator}.default" in {one.op for one in operators}


@pytest.mark.parametrize("shape", [[2**62] * 20, [1] * 65])
def test_a_value_of_more_elements_than_there_can_be_is_refused(
    tmp_path: Path, shape: list[int]
) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["tensor_values"]["relu"]["sizes"] = [{"as_int": size} for size in shape]

    with pytest.raises(StageError, match="at value 'relu': a shape"):
        inspection.inspect(changed(tmp_path, change))


@pytest.mark.parametrize(
    ("operations", "nbytes", "expected"),
    [
        ([Operation("f", "1", ("x",), ("y",))], {"x": 4, "y": 6}, 10),
        # x is gone when z is made
        (
            [Operation("f", "1", ("x",), ("y",)), Operation("f", "2", ("y",), ("z",))],
            {"x": 4, "y": 6, "z": 8},
            14,
        ),
        # x is read once more at the end
        (
            [Operation("f", "1", ("x",), ("y",)), Operation("f", "2", ("y", "x"), ("z",))],
            {"x": 4, "y": 6, "z": 8},
            18,
        ),
        # v shows y, and keeps its bytes
        (
            [
                Operation("f", "1", ("x",), ("y",)),
                Operation("reshape", "2", ("y",), ("v",), view=True),
                Operation("f", "3", ("v",), ("z",)),
            ],
            {"x": 4, "y": 6, "v": 6, "z": 8},
            14,
        ),
        # what nobody reads is alive once
        (
            [Operation("f", "1", ("x",), ("y", "unread")), Operation("f", "2", ("y",), ("z",))],
            {"x": 1, "y": 2, "unread": 50, "z": 3},
            53,
        ),
        ([Operation("f", "1", ("x",), ("z",))], {"x": 4, "z": None}, None),
    ],
)
def test_activations_are_the_values_alive_at_once(
    operations: list[Operation], nbytes: dict[str, int | None], expected: int | None
) -> None:
    assert peak(operations, nbytes, [operations[-1].outputs[0]]) == expected
