from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml.formats import onnx_wire

Walk = Callable[[Path, bytes], object]
WHOLE = [onnx_wire.header, onnx_wire.skeleton]
EVERY = [*WHOLE, onnx_wire.external_files, onnx_wire.input_names]
PATH = Path("m.onnx")


def model(*weights: TensorProto, shape: list[int] | None = None) -> ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape or [2]) for n in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], list(weights)))


def named(name: str) -> bytes:
    made = model()
    made.graph.node[0].name = name
    return made.SerializeToString()


LIES = {
    "200 000 dims": (
        model(TensorProto(name="w", data_type=1, dims=[2**62] * 200_000)).SerializeToString(),
        "a shape of more than 64 axes",
    ),
    "an input of 65 dims": (model(shape=[1] * 65).SerializeToString(), "more than 64 axes"),
    "bytes of another shape": (
        model(TensorProto(name="w", data_type=1, dims=[3], raw_data=b"1234")).SerializeToString(),
        r"float32 \[3\] in 4 bytes",
    ),
    "a name of 5000 bytes": (named("n" * 5000), "a name of 5000 bytes"),
    "a number without an end": (b"\x08" + b"\xff" * 11, "cut off"),
}


@pytest.mark.parametrize("walk", WHOLE)
@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_inspect_and_import_refuse_the_same_lies(walk: Walk, data: bytes, match: str) -> None:
    with pytest.raises(StageError, match=f"m.onnx is refused at byte .*{match}"):
        walk(PATH, data)


@pytest.mark.parametrize("walk", EVERY)
def test_no_walk_reads_more_fields_than_a_model_has(
    walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_wire, "_MAX_FIELDS", 1000)
    data = model().SerializeToString()
    walk(PATH, data + b"\xf8\x01\x01" * 900)
    with pytest.raises(StageError, match="more than 1000 fields"):
        walk(PATH, data + b"\xf8\x01\x01" * 1000)


def test_a_skeleton_points_at_large_values_and_a_header_has_none() -> None:
    large = np.arange(2 * onnx_wire.LARGE, dtype=np.uint8)
    small = np.arange(8, dtype=np.float32)
    listed = helper.make_tensor("listed", TensorProto.INT64, [2000], list(range(2000)))
    weights = [numpy_helper.from_array(large, "large"), numpy_helper.from_array(small, "small")]
    data = model(*weights, listed).SerializeToString()
    pointed, kept, written = ModelProto.FromString(onnx_wire.skeleton(PATH, data)).graph.initializer
    (entry,) = pointed.external_data
    start, length = map(int, entry.value.split())
    assert (entry.key, pointed.data_location) == (onnx_wire.HERE, TensorProto.EXTERNAL)
    assert data[start : start + length] == large.tobytes()
    assert (kept, written) == (weights[1], listed)
    left = ModelProto.FromString(onnx_wire.header(PATH, data)).graph.initializer
    assert [len(one.raw_data) + len(one.int64_data) for one in left] == [0, 32, 0]


def test_what_nobody_reads_is_left_out_and_the_rest_is_as_it_was() -> None:
    made = model()
    made.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, f=0.5)
    expected = made.SerializeToString()
    made.graph.value_info.add().CopyFrom(helper.make_tensor_value_info("y", 1, [7]))
    made.graph.quantization_annotation.add(tensor_name="y")
    made.metadata_props.add(key="names", value="n" * 10_000)
    for walk in WHOLE:
        assert walk(PATH, made.SerializeToString()) == expected
