"""Relax modules in files: TVMScript and TVM JSON give one program, and run as TVM runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tapml.errors import StageError
from tapml.stage import Context, File, Inputs
from tapml_stages import codec, program
from tapml_stages.compat import tvm
from tapml_stages.importer.relax_file import read
from tapml_stages.importer.stage import DimBounds, Import, InputSpec
from tapml_stages.reference.runners import runner

rx = tvm.relax
WEIGHT = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def module() -> Any:
    batch = tvm.tirx.Var("batch", "int64")
    x = rx.Var("x", rx.TensorType([batch, 8], "float32"))
    w = rx.Var("w", rx.TensorType([8, 4], "float32"))
    builder = rx.BlockBuilder()
    with builder.function("main", [x, w]):
        with builder.dataflow():
            y = builder.emit(rx.op.matmul(x, w))
            out = builder.emit_output(rx.op.nn.relu(y))
        builder.emit_func_output(out)
    return builder.get()


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"model{suffix}"
    text = module().script() if suffix == ".py" else tvm.ir.save_json(module())
    path.write_text(text, encoding="utf-8")
    safetensors.numpy.save_file({"w": WEIGHT}, folder / "model.safetensors")
    return path


@pytest.mark.parametrize("suffix", [".py", ".json"])
def test_a_module_in_a_file_is_imported_with_its_weights(
    tmp_path: Path, context: Context, suffix: str
) -> None:
    path = written(tmp_path, suffix)
    weights = tmp_path / "model.safetensors"
    stage = Import(
        source="relax",
        file=File(path=str(path), sha256="0"),
        files={weights.name: File(path=str(weights), sha256="0")},
        signature={"x": InputSpec(shape=("batch", 8), dtype="float32")},
        dims={"batch": DimBounds(min=1, max=5)},
    )
    outputs = stage.run(Inputs({}), context).artifacts
    made = program.load(outputs["program"])
    assert [spec.name for spec in made.io.params] == ["w"]
    np.testing.assert_array_equal(codec.read_weights(outputs["weights"])["w"], WEIGHT)
    facts = codec.read_json(outputs["source"] / "source.json")
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    made_by_tvm = runner.make(facts, outputs["source"], 1)
    for optimize in (True, False):
        run = made_by_tvm({"w": WEIGHT}, optimize=optimize)
        np.testing.assert_allclose(
            run({"x": x})["output"], np.maximum(x.astype(np.float64) @ WEIGHT, 0), atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.json", "{", "no readable TVM JSON"),
        ("model.json", '{"root_index": 9, "nodes": []}', "no readable TVM JSON"),
        ("model.py", "def main(:", "no readable TVMScript"),
    ],
)
def test_what_is_no_module_is_refused_with_its_name(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StageError, match=said):
        read(path)


def test_a_module_without_main_is_refused_and_told_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    mod = module()
    path.write_text(tvm.ir.save_json(tvm.IRModule({"other": mod["main"]})))
    with pytest.raises(StageError, match="no Relax function `main`; it has other"):
        read(path)
