"""Little programs as tensorir leaves them, with records and alternatives, for the tests here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tapml_stages import codec, records
from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Io, Program, TensorSpec

relax = tvm.relax


def matmul(m: Any, k: int, n: int) -> Any:
    a, b = tvm.te.placeholder((m, k), name="a"), tvm.te.placeholder((k, n), name="b")
    axis = tvm.te.reduce_axis((0, k), name="axis")
    c = tvm.te.compute((m, n), lambda i, j: tvm.te.sum(a[i, axis] * b[axis, j], axis), name="c")
    return tvm.te.create_prim_func([a, b, c])


def softplus(m: Any, n: int) -> Any:
    a = tvm.te.placeholder((m, n), name="a")
    c = tvm.te.compute((m, n), lambda i, j: tvm.tirx.exp(a[i, j]) + a[i, j], name="c")
    return tvm.te.create_prim_func([a, c])


def two_clones(k: int = 64, n: int = 64) -> Program:
    """`main_b32` with static kernels (the elementwise one called twice), `main_dyn` symbolic."""
    builder = relax.BlockBuilder()
    batch = tvm.tirx.Var("batch", "int64")
    for clone, m in (("main_b32", 32), ("main_dyn", batch)):
        x = relax.Var("x", relax.TensorType([m, k], "float32"))
        w = relax.Var("w", relax.TensorType([k, n], "float32"))
        rows = m if isinstance(m, int) else tvm.tirx.Var("rows", "int64")
        region = matmul(rows, k, n).with_attrs({"tapml.region": "region_0", "tapml.clone": clone})
        with builder.function(clone, [x, w]):
            dense = builder.add_func(region, f"dense_{clone}")
            act = builder.add_func(softplus(rows, n), f"act_{clone}")
            out = relax.TensorType([m, n], "float32")
            y = builder.emit(relax.call_tir(dense, [x, w], out))
            y = builder.emit(relax.call_tir(act, [y], out))
            y = builder.emit(relax.call_tir(act, [y], out))
            builder.emit_func_output(y)
    io = Io(
        inputs=(TensorSpec("x", ("batch", k), "float32"),),
        outputs=(TensorSpec("y", ("batch", n), "float32"),),
        params=(TensorSpec("w", (k, n), "float32"),),
        dims={"batch": Bounds(1, 64)},
        buckets=({"batch": 32},),
    )
    return Program(builder.get(), io)


def unscheduled(program: Program) -> list[records.Record]:
    """Default records that schedule nothing: slow, right, and easy to beat."""
    return [
        records.make(gv.name_hint, func, func, kind="default", rule="none")
        for gv, func in program.mod.functions_items()
        if not isinstance(func, relax.Function)
    ]


def save(folder: Path, program: Program, defaults: list[records.Record]) -> dict[str, Path]:
    """The stage's inputs in a folder."""
    program.save(folder / "program")
    records.save(folder / "records.jsonl", defaults)
    return {"program": folder / "program", "records": folder / "records.jsonl"}


def gathered(m: int, k: int, n: int, kept: int, *, work: int = 1) -> Any:
    """A column-sparse matmul: `kept` rows of the weight and their numbers in `indices`."""
    x = tvm.te.placeholder((m, k), name="x")
    indices = tvm.te.placeholder((kept,), name="indices", dtype="int32")
    values = tvm.te.placeholder((kept, n), name="values")
    axis, again = tvm.te.reduce_axis((0, kept), name="axis"), tvm.te.reduce_axis((0, work))
    c = tvm.te.compute(
        (m, n),
        lambda i, j: tvm.te.sum(x[i, indices[axis]] * values[axis, j], [again, axis]),
        name="c",
    )
    return tvm.te.create_prim_func([x, indices, values, c])


def save_alternatives(folder: Path, funcs: dict[str, Any], kept: dict[str, int]) -> dict[str, Path]:
    """The artifacts of sparsetir, with the given kernels as alternatives of region_0."""
    (folder / "alternatives").mkdir(parents=True)
    (folder / "structure").mkdir()
    rows, arrays = [], {}
    for name, func in funcs.items():
        key = f"region_0.{name}"
        arrays[f"{key}/indices"] = np.arange(kept[name], dtype=np.int32)
        args = [{"input": 0}, {"structure": f"{key}/indices"}, {"values": "w", "packer": "rows"}]
        row = {"id": key, "region": "region_0", "kind": "sparse", "kernel": name, "args": args}
        rows.append(row)
        mod = tvm.IRModule({name: func.with_attr("global_symbol", name)})
        codec.save_module(folder / "alternatives" / f"{key}.json", mod)
    index = {"alternatives": rows, "declined": []}
    codec.write_json(folder / "alternatives" / "index.json", index)
    codec.write_npz(folder / "structure" / "structure.npz", arrays)
    return {"alternatives": folder / "alternatives", "structure": folder / "structure"}
