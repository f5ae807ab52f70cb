"""Codegen on a two-layer program with a bucket: choices applied, weights packed once, a bundle
that refuses bad calls.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tapml.errors import StageError
from tapml.stage import Context, Device, Inputs, Target
from tapml_stages import codec, records
from tapml_stages.codegen.stage import Codegen
from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Io, Program, TensorSpec

relax = tvm.relax
HOST = Target(
    kind="llvm", mcpu="x86-64-v3", features=("avx2", "fma"), cores=2, device=Device(threads=1)
)


def linear_program() -> Program:
    """`relu(x @ W.T + b)` with symbolic batch 1..8 and a clone for 4, lowered as tensorir does."""
    builder = relax.BlockBuilder()
    batch = tvm.tirx.Var("batch", "int64")
    x = relax.Var("x", relax.TensorType((batch, 6), "float32"))
    w = relax.Var("w", relax.TensorType((5, 6), "float32"))
    b = relax.Var("b", relax.TensorType((5,), "float32"))
    with builder.function("main", [x, w, b], attrs={"num_input": 1}):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(x, builder.emit(relax.op.permute_dims(w))))
            out = builder.emit_output(relax.op.nn.relu(builder.emit(relax.op.add(y, b))))
        builder.emit_func_output(out)
    mod = relax.transform.LiftTransformParams()(builder.get())
    mod = with_bucket(mod, 4)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(2),
        relax.transform.FuseTIR(),
    ]
    with tvm.target.Target("llvm"):
        mod = tvm.transform.Sequential(passes)(mod)
    io = Io(
        inputs=(TensorSpec("x", ("batch", 6), "float32"),),
        outputs=(TensorSpec("y", ("batch", 5), "float32"),),
        params=(TensorSpec("lin.w", (5, 6), "float32"), TensorSpec("lin.b", (5,), "float32")),
        dims={"batch": Bounds(1, 8)},
        buckets=({"batch": 4},),
    )
    return Program(mod, io)


def with_bucket(mod: tvm.IRModule, size: int) -> tvm.IRModule:
    """`main` dispatches on its batch: `main_b4` at 4, `main_dyn` elsewhere."""
    clone = relax.transform.BindSymbolicVars({"batch": size}, "main")(mod)["main"]
    body = mod["main"]
    out = tvm.IRModule({gv: func for gv, func in mod.functions_items() if gv.name_hint != "main"})
    private = ("global_symbol",)
    for name, func in (("main_b4", clone), ("main_dyn", body)):
        for attr in private:
            func = relax.utils.copy_with_new_vars(func.without_attr(attr))
        out.update_func(tvm.ir.GlobalVar(name), func)
    builder = relax.BlockBuilder(out)
    batch = tvm.tirx.Var("batch", "int64")
    params = [relax.Var("x", relax.TensorType((batch, 6), "float32"))]
    params += [relax.Var(p.name, p.ty) for p in body.params[1:]]
    names = {gv.name_hint: gv for gv in out.get_global_vars()}
    for name in ("main_b4", "main_dyn"):
        relax.expr._update_type(names[name], out[names[name]].ty)
    with builder.function("main", params, attrs={"num_input": 1, "global_symbol": "main"}):
        fixed = relax.TensorType((size, 6), "float32")
        result = relax.TensorType((batch, 5), "float32")

        def branch(name: str, cast: bool) -> relax.Expr:
            builder.begin_scope()
            builder._begin_binding_block()
            first = builder.match_cast(params[0], fixed) if cast else params[0]
            call = builder.emit(relax.Call(names[name], [first, *params[1:]]))
            last = builder.match_cast(call, result)
            block = builder._end_block()
            builder.end_scope()
            return relax.SeqExpr([block], last)

        cond = relax.PrimValue(batch == size) if hasattr(relax, "PrimValue") else batch == size
        builder.emit_func_output(
            builder.emit(relax.If(cond, branch("main_b4", True), branch("main_dyn", False)))
        )
    return builder.get()


def write_inputs(folder: Path, program: Program, weights: dict[str, np.ndarray]) -> Inputs:
    shipped = [
        records.make(gv.name_hint, func, func, kind="default", rule="none")
        for gv, func in program.mod.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc)
    ]
    choices = records.Choices(tuple(records.KernelChoice(r.kernel, r.id, ()) for r in shipped))
    return Inputs(
        {
            "program": program.save(folder / "program"),
            "records": records.save(folder / "records.jsonl", shipped),
            "choices": choices.save(folder / "choices.json"),
            "weights": save_weights(folder / "weights.safetensors", weights),
        }
    )


def save_weights(path: Path, weights: dict[str, np.ndarray]) -> Path:
    codec.write_weights(path, weights)
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    draw = {"lin.w": rng.standard_normal((5, 6)), "lin.b": rng.standard_normal(5)}
    return {name: value.astype("float32") for name, value in draw.items()}


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    folder = tmp_path_factory.mktemp("codegen")
    inputs = write_inputs(folder, linear_program(), weights)
    import logging

    (folder / "work").mkdir()
    ctx = Context(folder / "work", logging.getLogger("test"), folder / "db")
    stage = Codegen(target=HOST, opt_level=2, recipe_name="linear")
    return Path(stage.run(inputs, ctx).artifacts["bundle"])


def bundle_module(folder: Path):
    spec = importlib.util.spec_from_file_location("bundle_run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_bundle_computes_what_numpy_computes_at_buckets_and_elsewhere(
    bundle_folder, weights, batch
):
    bundle = bundle_module(bundle_folder).load(bundle_folder)
    x = np.random.default_rng(batch).standard_normal((batch, 6)).astype("float32")
    expected = np.maximum(x.astype(float) @ weights["lin.w"].T + weights["lin.b"], 0)
    np.testing.assert_allclose(bundle(x=x)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 6), "float32"), "batch is 1..8, got 9"),
        (np.zeros((2, 6), "float64"), "dtype is float32, got float64"),
        (np.zeros((2, 7), "float32"), r"shape is \['batch', 6\], got \[2, 7\]"),
    ],
)
def test_a_bundle_refuses_in_words_what_it_was_not_built_for(bundle_folder, array, message):
    run = bundle_module(bundle_folder)
    with pytest.raises(run.BundleError, match=message):
        run.load(bundle_folder)(x=array)


def test_a_bundle_refuses_a_wrong_input_name(bundle_folder):
    run = bundle_module(bundle_folder)
    with pytest.raises(run.BundleError, match="inputs are x; got y"):
        run.load(bundle_folder)(y=np.zeros((1, 6), "float32"))


def test_a_bundle_refuses_a_cpu_without_its_features(bundle_folder):
    run = bundle_module(bundle_folder)
    manifest = {**run.read_manifest(bundle_folder), "cpu_features": ["avx2", "avx9000"]}
    with pytest.raises(run.BundleError, match="this CPU has no avx9000"):
        run.check_cpu(manifest)


def test_a_damaged_file_is_named_before_anything_is_loaded(bundle_folder, tmp_path):
    import shutil

    copy = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    data = bytearray((copy / "lib.so").read_bytes())
    data[100] ^= 1
    (copy / "lib.so").write_bytes(data)
    run = bundle_module(copy)
    with pytest.raises(run.BundleError, match=r"lib\.so is damaged"):
        run.load(copy)


def test_a_bundle_runs_from_the_shell_with_the_runtime_alone(bundle_folder, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.ones((3, 6), "float32"))
    command = [sys.executable, bundle_folder / "run.py", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 5)


def test_the_manifest_says_what_the_bundle_takes_and_gives(bundle_folder):
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "x", "shape": ["batch", 6], "dtype": "float32"}]
    assert manifest["dims"] == {"batch": {"min": 1, "max": 8}}
    assert manifest["params"]["bytes"] == 4 * (5 * 6 + 5)


def test_a_choice_of_a_record_that_is_not_there_is_an_error(tmp_path, weights):
    inputs = write_inputs(tmp_path, linear_program(), weights)
    records.Choices((records.KernelChoice("transpose", "no-such-record", ()),)).save(
        inputs["choices"]
    )
    import logging

    (tmp_path / "work").mkdir()
    ctx = Context(tmp_path / "work", logging.getLogger("test"), tmp_path / "db")
    with pytest.raises(StageError, match="record no-such-record is not among the records"):
        Codegen(target=HOST, opt_level=2, recipe_name="linear").run(inputs, ctx)
