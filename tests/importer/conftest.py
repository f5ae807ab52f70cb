"""Small ONNX models, and the import stage on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tapml.stage import Context, File, Inputs, Outputs
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

MakeModel = Callable[..., ModelProto]


@pytest.fixture
def make_model() -> MakeModel:
    """A model of nodes: `inputs` name → shape (float32, or (shape, dtype)), weights by name."""

    def make(
        nodes: Sequence[NodeProto],
        inputs: dict[str, Any],
        weights: dict[str, np.ndarray] | None = None,
        outputs: Sequence[str] = ("y",),
    ) -> ModelProto:
        def info(name: str, spec: Any) -> onnx.ValueInfoProto:
            shape, dtype = spec if isinstance(spec, tuple) else (spec, "float32")
            elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(name, elem_type, shape)

        graph = helper.make_graph(
            list(nodes),
            "graph",
            [info(name, spec) for name, spec in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
        )
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    return make


@pytest.fixture
def mlp(make_model: MakeModel) -> ModelProto:
    """Two dense layers over a batch; the second node has no name."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w/1:0"], ["h"], name="block.0/dense"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="block.0/dense", transB=1),
    ]
    weights = {
        "w/1:0": rng.standard_normal((8, 16), dtype=np.float32),
        "w2": rng.standard_normal((4, 16), dtype=np.float32),
        "b2": rng.standard_normal(4, dtype=np.float32),
        "unused": np.ones(3, np.float32),
    }
    return make_model(nodes, {"x": ["N", 8]}, weights)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    work = tmp_path / "work"
    work.mkdir()
    return Context(workdir=work, logger=logging.getLogger("test"), database=tmp_path)


@pytest.fixture
def import_model(tmp_path: Path, context: Context) -> Callable[..., Outputs]:
    """Runs the import stage on a model (or on bytes) with the recipe's inputs and dims."""

    def run(
        model: ModelProto | bytes,
        inputs: dict[str, tuple[tuple[int | str, ...], str]] | None = None,
        **dims: tuple[int, int],
    ) -> Outputs:
        path = tmp_path / "model.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        stage = Import(
            source="onnx",
            file=File(path=str(path), sha256="0"),
            signature={n: InputSpec(shape=s, dtype=d) for n, (s, d) in (inputs or {}).items()},
            dims={name: DimBounds(min=low, max=high) for name, (low, high) in dims.items()},
        )
        return stage.run(Inputs({}), context)

    return run
