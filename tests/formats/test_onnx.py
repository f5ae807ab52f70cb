from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fuzz import models
from onnx import TensorProto, helper, numpy_helper

from tapml.errors import StageError
from tapml.formats import onnx as reader

Write = Callable[[str, bytes], Path]


def model(*weights: TensorProto, nodes: list[Any] | None = None) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 4]) for n in "xy")
    made = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(made, "g", [x], [y], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def weight(*shape: int, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def spoilt(change: Callable[[TensorProto], object]) -> bytes:
    made = model(weight(4, 4))
    change(made.graph.initializer[0])
    return made.SerializeToString()


def test_a_graph_is_read_without_its_weights(write: Write) -> None:
    values = np.arange(300, dtype=np.int64)
    made = model(
        weight(4, 400),
        numpy_helper.from_array(values[:3], "small"),
        nodes=[
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(values)),
            helper.make_node("MatMul", ["x", "w"], ["y"], name="one"),
        ],
    )
    found = reader.read(write("m.onnx", made.SerializeToString()))
    assert {k: (v.dtype, v.shape, v.nbytes) for k, v in found.weights.items()} == {
        "w": ("float32", (4, 400), 6400),
        "small": ("int64", (3,), 24),
        "c": ("int64", (300,), 2400),
    }
    assert found.proto.ByteSize() < 600
    assert [node.op_type for node in found.proto.graph.node] == ["Constant", "MatMul"]
    assert numpy_helper.to_array(found.proto.graph.initializer[1]).tolist() == [0, 1, 2]


def test_a_file_of_a_gigabyte_costs_as_little_as_its_graph(tmp_path: Path) -> None:
    raw = 1 << 30
    facts = b"\x08\x80\x80\x80\x80\x01" + b"\x10\x01" + b"\x42\x01w"  # dims, dtype, name
    tensor = facts + _field(9, raw)
    graph = model().graph.SerializeToString() + _field(5, len(tensor) + raw) + tensor
    with (tmp_path / "m.onnx").open("wb") as out:
        out.write(_field(7, len(graph) + raw) + graph)
        out.truncate(out.tell() + raw)  # zeros that take no disk
    tracemalloc.start()
    found = reader.read(tmp_path / "m.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.weights["w"].shape == (1 << 28,)
    assert peak < 8 << 20


def _field(number: int, length: int) -> bytes:
    out = bytearray([number << 3 | 2])
    while length >= 128:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes([*out, length])


def external(tensor: TensorProto, **facts: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in facts.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def test_external_data_is_checked_and_left_where_it_is(write: Write) -> None:
    write("data/w.bin", bytes(100))
    path = write("m.onnx", spoilt(lambda t: external(t, location="data/w.bin", offset=36)))
    one = reader.read(path).weights["w"]
    assert (one.file, one.start, one.nbytes) == ("w.bin", 36, 64)


EXTERNAL = {
    "above its folder": ({"location": "../secret"}, "no file of it"),
    "at a root": ({"location": "/etc/hostname"}, "no file of it"),
    "by a detour": ({"location": "data/../../secret"}, "no file of it"),
    "nowhere": ({}, "no file of it"),
    "by a link": ({"location": "link"}, "leads out"),
    "missing": ({"location": "none"}, "No such file"),
    "too short": ({"location": "w.bin", "offset": 40}, "is not the"),
    "of another length": ({"location": "w.bin", "length": 60}, "is not the"),
    "at an offset of 2^63": ({"location": "w.bin", "offset": 2**63}, "is not the"),
    "at an offset that is no number": ({"location": "w.bin", "offset": "-1"}, "no place"),
    "in a pipe": ({"location": "pipe"}, "no regular file"),
}


@pytest.mark.parametrize(("facts", "match"), EXTERNAL.values(), ids=EXTERNAL)
def test_external_data_that_is_elsewhere_is_refused(
    write: Write, tmp_path: Path, facts: dict[str, object], match: str
) -> None:
    path = write("model/m.onnx", spoilt(lambda t: external(t, **facts)))
    write("secret", bytes(64))
    write("model/w.bin", bytes(100))
    (tmp_path / "model" / "link").symlink_to("../secret")
    os.mkfifo(tmp_path / "model" / "pipe")
    with pytest.raises(StageError, match=match):
        reader.read(path)


def nested(depth: int) -> bytes:
    """Graphs in nodes in graphs."""
    graph = b""
    for _ in range(depth):
        attribute = _field(6, len(graph)) + graph
        node = _field(5, len(attribute)) + attribute
        graph = _field(1, len(node)) + node
    return _field(7, len(graph)) + graph


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no graph"),
    "a pickle": (b"\x80\x04.", "no ONNX"),
    "ones": (b"\xff" * 1000, "no ONNX"),
    "a graph longer than the file": (b"\x08\x07:\xff\xff\xff\x7f", "no ONNX"),
    "cut off": (model(weight(4, 4)).SerializeToString()[:-9], "no ONNX"),
    "graphs in graphs": (nested(200), "nested too deep"),
    "a graph of 60 MB": (_field(7, 60 << 20) + bytes([0x52]) + b"", "no ONNX"),
    "an unknown dtype": (spoilt(lambda t: setattr(t, "data_type", 99)), "unknown dtype"),
    "a size below 0": (spoilt(lambda t: t.dims.append(-1)), "in 64 bytes"),
    "sizes for other bytes": (spoilt(lambda t: t.dims.append(2)), r"\[4, 4, 2\] in 64 bytes"),
    "a name that is no text": (
        model(weight(4, 4)).SerializeToString().replace(b"MatMul", b"\xff\xfeMul"),
        "no text|no ONNX",
    ),
}


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_refused(write: Write, data: bytes, match: str) -> None:
    path = write("m.onnx", data)
    with pytest.raises(StageError, match=match) as caught:
        reader.read(path)
    assert str(path) in caught.value.message


@pytest.mark.slow
def test_a_million_nodes_are_refused_before_they_are_held(write: Write) -> None:
    path = write("m.onnx", _field(7, 2_000_000) + b"\x0a\0" * 1_000_000)
    with pytest.raises(StageError, match="more than 500000 fields"):
        reader.read(path)


def test_the_seed_of_the_fuzz_is_sound(write: Write) -> None:
    assert set(reader.read(write("m.onnx", models.sound("onnx")["model.onnx"])).weights) == {"w"}
