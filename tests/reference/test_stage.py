from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tapml import keys
from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages import codec
from tapml_stages.model_source import SourceName
from tapml_stages.reference.stage import Reference

IO = {
    "inputs": [{"name": "x", "shape": ["batch", 3], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": ["batch", 2], "dtype": "float32"}],
    "states": [],
    "dims": {"batch": {"min": 1, "max": 8}},
    "buckets": [{"batch": 4}],
}
WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)
PRUNED = np.where(WEIGHT > 2, WEIGHT, 0).astype(np.float32)


@pytest.fixture
def onnx_source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Log", ["h"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    codec.write_json(folder / "source.json", {"kind": "onnx", "model": "model.onnx", "io": IO})
    return folder


def run(stage: Reference, source: Path, **weights: np.ndarray) -> Path:
    work = source.parent / "work"
    work.mkdir()
    paths = {name: source.parent / f"{name}.safetensors" for name in ("original", "weights")}
    codec.write_weights(paths["original"], {"w": WEIGHT})
    codec.write_weights(paths["weights"], {"w": WEIGHT, **weights})
    context = Context(workdir=work, logger=logging.getLogger("test"), database=work)
    return stage.run(Inputs({"source": source, **paths}), context).artifacts["reference"]


def positive() -> Reference:
    return Reference(source="onnx", threads=1, random={"x": (1.0, 2.0)})


@pytest.mark.parametrize("source", get_args(SourceName))
def test_the_key_has_the_version_of_what_answers(source: SourceName) -> None:
    tools = keys.preimage(Reference(source=source, threads=1), {})["tools"]
    assert ("onnxruntime" in tools) == (source == "onnx")
    assert ("transformers" in tools) == (source in ("huggingface", "gguf"))
    assert ("torch" in tools) == (source in ("torch", "huggingface", "gguf"))
    assert all(tools.values())


def test_both_weights_are_answered_in_every_case(onnx_source: Path) -> None:
    folder = run(positive(), onnx_source, w=PRUNED)
    inputs = codec.read_npz(folder / "inputs.npz")
    original = codec.read_npz(folder / "outputs_original.npz")
    pruned = codec.read_npz(folder / "outputs_pruned.npz")
    rows = codec.read_json(folder / "cases.json")
    assert [row["sizes"] for row in rows] == [{"batch": 4}, {"batch": 8}, {"batch": 5}]
    for row in rows:
        x, key = inputs[row["inputs"]["x"]], f"{row['id']}/y"
        np.testing.assert_allclose(original[key], np.log(x @ WEIGHT), rtol=1e-5)
        np.testing.assert_allclose(pruned[key], np.log(x @ PRUNED), rtol=1e-5)


def test_the_pruned_model_left_for_timing_runs(onnx_source: Path) -> None:
    folder = run(positive(), onnx_source, w=PRUNED)
    meta = codec.read_json(folder / "meta.json")
    assert meta["peer"] == f"onnxruntime {onnxruntime.__version__}"
    session = onnxruntime.InferenceSession(folder / meta["model"])
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], np.log(x @ PRUNED), rtol=1e-5)


def test_rounding_is_answered_once_for_each_size(onnx_source: Path) -> None:
    folder = run(positive(), onnx_source)
    unoptimized = codec.read_npz(folder / "outputs_unoptimized.npz")
    assert sorted(unoptimized) == ["random/0/y", "random/1/y", "random/2/y"]


def test_a_reference_that_answers_nan_fails(onnx_source: Path) -> None:
    with pytest.raises(StageError, match=r"output 'y' holds \d+ NaN or infinite values"):
        run(Reference(source="onnx", threads=1), onnx_source)


OPERATOR = """
from dataclasses import dataclass
import numpy as np

class Operator:
    reference = staticmethod(lambda inputs, weights: {"y": inputs["x"] @ weights["w"]})

def fn():
    return Operator()
"""


def test_an_operators_reference_is_its_authors_in_float64(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "operator_.py").write_text(OPERATOR)
    facts = {"kind": "operator", "module": "operator_.py", "function": "fn", "io": IO}
    codec.write_json(source / "source.json", facts)
    folder = run(Reference(source="operator", threads=1), source, w=PRUNED)
    pruned = codec.read_npz(folder / "outputs_pruned.npz")["random/0/y"]
    rounded = codec.read_npz(folder / "outputs_unoptimized.npz")["random/0/y"]
    x = codec.read_npz(folder / "inputs.npz")["random/0/x"].astype(np.float64)
    assert (pruned.dtype, rounded.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(pruned, x @ PRUNED.astype(np.float64))
    assert codec.read_json(folder / "meta.json")["peer"] is None
