"""Programs small enough to read, in the form in which tensorir leaves them, for the rooms below
it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tapml.stage import Device, Inputs, Target
from tapml_stages import codec, records
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


def linear_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    draw = {"lin.w": rng.standard_normal((5, 6)), "lin.b": rng.standard_normal(5)}
    return {name: value.astype("float32") for name, value in draw.items()}


def linear(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """What `linear_program` computes, in float64."""
    return np.maximum(x.astype(float) @ weights["lin.w"].T + weights["lin.b"], 0)
