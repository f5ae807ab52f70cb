"""Quantised ONNX models through import, relax and tensorir, run beside onnxruntime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tapml.stage import Context, File, Inputs, Target
from tapml_stages import codec, program
from tapml_stages.compat import tvm
from tapml_stages.importer.stage import DimBounds, Import, InputSpec
from tapml_stages.program import Program
from tapml_stages.records import Record
from tapml_stages.relax.passes import passes
from tapml_stages.target import tvm_target
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records

Signature = Mapping[str, tuple[tuple[int | str, ...], str]]


@dataclass(frozen=True)
class Built:
    """A built model: `rules` of its kernels, by name of the kernel; `timed(inputs)` is a call of
    tensors that are made already.
    """

    call: Callable[..., list[np.ndarray]]
    timed: Callable[..., Callable[[], Any]]
    rules: dict[str, str]
    mod: Any


def model(
    nodes: Sequence[NodeProto],
    inputs: Signature,
    weights: Mapping[str, np.ndarray],
    output: int = TensorProto.FLOAT,
) -> ModelProto:
    """A model that gives `y`."""
    made = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(d)), shape)
        for name, (shape, d) in inputs.items()
    ]
    out = helper.make_tensor_value_info("y", output, None)
    values = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", made, [out], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@dataclass(frozen=True)
class Lowered:
    """A lowered model, its weights as they are imported, and the default schedules."""

    program: Program
    weights: Mapping[str, np.ndarray]
    defaults: Sequence[Record]


def build(path: Path, target: Target, inputs: Signature, **dims: Any) -> Built:
    """The model of a file, every kernel as its default schedule has it."""
    return built(lowered(path, target, inputs, **dims), target)


def lowered(path: Path, target: Target, inputs: Signature, **dims: Any) -> Lowered:
    """The model of a file after import, relax and tensorir."""
    stage = Import(
        source="onnx",
        file=File(path=str(path), sha256="0"),
        signature={
            name: InputSpec.model_validate({"shape": s, "dtype": d})
            for name, (s, d) in inputs.items()
        },
        dims={name: DimBounds(min=low, max=high) for name, (low, high) in dims.items()},
    )
    work = Path(tempfile.mkdtemp(dir=path.parent))
    context = Context(workdir=work, logger=logging.getLogger("test"), database=work)
    found = stage.run(Inputs({}), context).artifacts
    imported, weights = program.load(found["program"]), codec.read_weights(found["weights"])
    mod = imported.mod
    for _, transform in passes():
        mod = transform(mod)
    found = lower(imported.with_mod(mod), target)
    return Lowered(found, weights, default_records(found.mod, target))


def built(model: Lowered, target: Target, tuned: Sequence[Record] = ()) -> Built:
    """A lowered model, every kernel as its default schedule has it, or a tuned record."""
    io, weights = model.program.io, model.weights
    mod = tvm.IRModule(model.program.mod.functions)
    for one in (*model.defaults, *tuned):
        mod.update_func(mod.get_global_var(one.kernel), one.module()[one.kernel])
    machine = tvm.relax.VirtualMachine(tvm.compile(mod, tvm_target(target)), tvm.cpu())
    raw = [tvm.runtime.tensor(np.array(weights[p.name], order="C")) for p in io.params]
    packed = machine["main_transform_params"](raw) if raw else []

    def timed(feed: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        arrays = [tvm.runtime.tensor(np.array(feed[i.name], order="C")) for i in io.inputs]
        function = machine["main"]
        return lambda: function(*arrays, *packed)

    def call(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        result = timed(feed)()
        return [one.numpy() for one in ([result] if hasattr(result, "numpy") else list(result))]

    return Built(call, timed, {one.kernel: one.rule for one in (*model.defaults, *tuned)}, mod)


def peer(path: Path, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of it."""
    found = onnxruntime.InferenceSession(path).run(None, dict(feed))
    return [np.asarray(one) for one in found]


def save(made: ModelProto, path: Path) -> Path:
    onnx.save(made, path)
    return path
