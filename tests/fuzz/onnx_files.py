"""Hostile ONNX files from seeds: real ones with flipped bits, lies about lengths, and worse."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

LOCATIONS = ("../secret", "/etc/passwd", "/dev/zero", "link", "", "a/../../secret", "missing", ".")
HUGE = (0, -1, 2**31, 2**40, 2**62)


def base() -> ModelProto:
    """Two convolutions, a branch, shape arithmetic and a weight beside it."""
    rng = np.random.default_rng(0)
    weights = {
        "k": rng.standard_normal((8, 3, 3, 3), dtype=np.float32),
        "w": rng.standard_normal((8, 1024), dtype=np.float32),
        "tail": np.array([8], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Shape", ["x"], ["s"], name="shape", end=1),
        helper.make_node("Concat", ["s", "tail"], ["to"], name="to", axis=0),
        helper.make_node("Reshape", ["p", "to"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "w"], ["y"], name="dense"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write(seed: int, folder: Path) -> Path:
    """The file of a seed, with what it points at."""
    rng = random.Random(seed)
    (folder / "secret").write_bytes(b"\0" * 32768)
    inside = folder / "inside"
    inside.mkdir()
    (inside / "link").symlink_to("../secret")
    (inside / "beside").write_bytes(b"\0" * 32768)
    model = base()
    kind = seed % 6
    if kind == 3:
        _point(model, rng)
    elif kind == 4:
        _declare(model, rng)
    content = bytearray(model.SerializeToString())
    if kind == 0:
        for _ in range(rng.choice((1, 4, 64))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[rng.randrange(len(content)) :]
    elif kind == 2:  # lengths are varints: anything may become one
        at = rng.randrange(min(len(content), 2000))
        content[at : at + 1] = rng.choice((b"\xff\xff\xff\xff\x0f", b"\x80", b"\xff" * 10, b"\0"))
    elif kind == 5:
        at, length = rng.randrange(len(content)), rng.randrange(1, 400)
        content[at:at] = rng.choice((rng.randbytes(length), content[:length], b"\x3a" * length))
    path = inside / "model.onnx"
    path.write_bytes(content)
    return path


def _point(model: ModelProto, rng: random.Random) -> None:
    tensor = model.graph.initializer[rng.randrange(2)]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    numbers = ("0", "32768", "-1", str(2**70), "x", "")
    values = {
        "location": rng.choice((*LOCATIONS, "beside")),
        "offset": rng.choice(numbers),
        "length": rng.choice(numbers),
    }
    for key, value in values.items():
        tensor.external_data.add(key=key, value=value)


def _declare(model: ModelProto, rng: random.Random) -> None:
    """Dims that are huge, of an input, a weight, or made in the graph."""
    huge = rng.choice(HUGE)
    match rng.randrange(3):
        case 0:
            model.graph.input[0].type.tensor_type.shape.dim[rng.randrange(4)].dim_value = huge
        case 1:
            model.graph.initializer[rng.randrange(3)].dims[0] = huge
        case _:
            shape = numpy_helper.from_array(np.array([abs(huge), 4]), "big")
            model.graph.initializer.append(shape)
            zeros = onnx.helper.make_node("ConstantOfShape", ["big"], ["zeros"], name="zeros")
            model.graph.node.append(zeros)
            model.graph.output.append(
                helper.make_tensor_value_info("zeros", TensorProto.FLOAT, None)
            )
