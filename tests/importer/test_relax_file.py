"""Relax modules in files: TVMScript and TVM JSON give one program, and run as TVM runs them."""

from __future__ import annotations

from collections.abc import Callable
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
from tapml_stages.program import Io
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


MAIN = "@I.ir_module\nclass Module:\n    @R.function\n    def main"
TWO = 'x: R.Tensor((2,), "float32")'


@pytest.fixture
def main(tmp_path: Path, context: Context) -> Callable[..., Io]:
    """What a module is imported as whose `main` has this text; its weights are 8 floats."""

    def run(text: str, weights: tuple[str, ...] = ()) -> Io:
        path = tmp_path / "model.py"
        path.write_text(MAIN + text)
        files = {}
        if weights:
            held = tmp_path / "model.safetensors"
            safetensors.numpy.save_file({name: np.ones(8, np.float32) for name in weights}, held)
            files = {held.name: File(path=str(held), sha256="0")}
        dims = {"n": DimBounds(min=1, max=8)} if '"n"' in text else {}
        stage = Import(
            source="relax", file=File(path=str(path), sha256="0"), files=files, dims=dims
        )
        return program.load_io(stage.run(Inputs({}), context).artifacts["program"])

    return run


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('(x: R.Tensor(ndim=2, dtype="float32")): return R.abs(x)', "'x' is of unknown shape"),
        ("(x: R.Tensor((2,))): return R.abs(x)", "'x' is of unknown type"),
        (f"({TWO}, s: R.Shape([3])): return R.abs(x)", "'s' is a shape"),
        ('(x: R.Tuple(R.Tensor((2,), "float32"))): return x[0]', "'x' is a tuple"),
        (f"({TWO}): return (x, (x, x))", "output 1 is a tuple in a tuple"),
        (
            f'(c: R.Tensor((), "bool"), {TWO}):\n'
            "        if c: y = R.abs(x)\n        else: y = R.negative(x)\n        return y",
            "'y' is an `if`",
        ),
    ],
)
def test_a_main_that_is_no_graph_of_tensors_is_told_by_name(
    main: Callable[..., Io], text: str, said: str
) -> None:
    with pytest.raises(StageError, match=f"model.py: main is no graph from tensors .*{said}"):
        main(text)


def test_every_operator_without_a_kernel_is_told_at_once(main: Callable[..., Io]) -> None:
    body = "\n".join(
        f"        {line}"
        for line in ("a = R.nonzero(x)", "b = R.unique(x)", "c = R.nonzero(x)", "return (a, b, c)")
    )
    with pytest.raises(StageError, match=r"model\.py: 2 operators cannot be imported") as told:
        main(f"({TWO}):\n{body}")
    assert "relax.nonzero ×2: a, c" in str(told.value)
    assert "relax.unique ×1" in str(told.value)


def test_a_weight_has_a_fixed_size(main: Callable[..., Io]) -> None:
    text = '(x: R.Tensor(("n",), "float32"), w: R.Tensor(("n",), "float32")): return R.add(x, w)'
    with pytest.raises(StageError, match=r"'w' is float32\[8\], main takes float32\[n\]"):
        main(text, weights=("w",))


def test_outputs_are_as_the_body_tells_though_less_is_declared(main: Callable[..., Io]) -> None:
    less = 'R.Tensor(ndim=1, dtype="float32")'
    io = main(f"({TWO}) -> R.Tuple({less}, {less}):\n        y = R.abs(x)\n        return (x, y)")
    assert [(one.name, one.shape) for one in io.outputs] == [("output_0", (2,)), ("output_1", (2,))]
