"""The models of the shipped recipes, imported for real."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tapml.stage import Context, File, Inputs
from tapml_stages import codec, program
from tapml_stages.compat import tvm
from tapml_stages.importer.stage import DimBounds, Import, InputSpec

pytestmark = pytest.mark.slow


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def imported(path: Path, work: Path, largest: int, **inputs: InputSpec) -> dict[str, Path]:
    stage = Import(
        source="onnx",
        file=File(path=str(path), sha256="0"),
        signature=inputs,
        dims={"batch": DimBounds(min=1, max=largest)},
    )
    context = Context(workdir=work, logger=logging.getLogger("test"), database=work)
    return dict(stage.run(Inputs({}), context).artifacts)


def difference(paths: dict[str, Path], x: np.ndarray) -> float:
    """Largest difference between the program, stock schedules, and onnxruntime."""
    mine = program.load(paths["program"])
    weights = codec.read_weights(paths["weights"])
    rx = tvm.relax
    built = tvm.compile(rx.get_pipeline("zero")(mine.mod), tvm.target.Target("llvm"))
    arrays = [x, *(weights[param.name] for param in mine.io.params)]
    vm = rx.VirtualMachine(built, tvm.cpu())
    ours = vm["main"](*[tvm.runtime.tensor(array) for array in arrays]).numpy()
    session = onnxruntime.InferenceSession(paths["source"] / "model.onnx")
    theirs = np.asarray(session.run(None, {mine.io.inputs[0].name: x})[0])
    return float(np.abs(ours - theirs).max())


def test_magika_runs_at_any_batch_with_its_shapes_told_from_the_dims(tmp_path: Path) -> None:
    spec = InputSpec(shape=("batch", 2048), dtype="int32")
    path = package("magika") / "models/standard_v3_3/model.onnx"
    paths = imported(path, tmp_path, 64, bytes=spec)
    io = program.load_io(paths["program"])
    assert io.outputs[0].shape == ("batch", 214)
    assert {row.op for row in program.load_provenance(paths["program"])} >= {"MatMul", "Conv"}
    x = np.random.default_rng(0).integers(0, 257, (3, 2048), dtype=np.int32)
    assert difference(paths, x) < 1e-5


def test_the_text_detector_has_its_weights_beside_it(tmp_path: Path) -> None:
    spec = InputSpec(shape=("batch", 3, 64, 96), dtype="float32")
    path = package("rapidocr_onnxruntime") / "models/ch_PP-OCRv4_det_infer.onnx"
    paths = imported(path, tmp_path, 4, x=spec)
    io = program.load_io(paths["program"])
    assert len(io.params) == 234
    assert (paths["program"] / "mod.json").stat().st_size < 1_500_000
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 96), dtype=np.float32)
    assert difference(paths, x) < 1e-4
