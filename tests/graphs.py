"""Small programs as import writes them, and ways to run them before and after lowering."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tapml.stage import Device, Target
from tapml_stages.compat import tvm
from tapml_stages.program import Bounds, Io, Origin, Program, TensorSpec
from tapml_stages.records import Record

rx = tvm.relax
V3 = Target(
    kind="llvm",
    mcpu="x86-64-v3",
    features=("avx2", "fma"),
    cores=2,
    vector_bits=256,
    vector_registers=16,
    device=Device(threads=2),
)
TVM_TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2})
GOLDEN = Path(__file__).parent / "golden"

Shape = tuple[int | str, ...]
Body = Callable[..., Any]


def graph(
    body: Body,
    inputs: Mapping[str, Shape],
    weights: Mapping[str, Shape] | None = None,
    *,
    batch: tuple[int, int] = (1, 8),
    buckets: Sequence[dict[str, int]] = (),
    dtype: str = "float32",
    weight_dtype: str = "float32",
) -> Program:
    """A program whose `main` is `body(emit, *inputs, *weights)`; "batch" in a shape is symbolic."""
    weights = dict(weights or {})
    symbol = tvm.tirx.Var("batch", "int64")

    def var(name: str, shape: Shape, kind: str) -> Any:
        return rx.Var(name, rx.TensorType([symbol if n == "batch" else n for n in shape], kind))

    variables = [var(name, shape, dtype) for name, shape in inputs.items()]
    variables += [var(name, shape, weight_dtype) for name, shape in weights.items()]
    symbolic = any("batch" in shape for shape in inputs.values())
    attrs: dict[str, Any] = {"num_input": len(inputs)}
    if symbolic:
        attrs["tir_var_lower_bound"] = {"batch": batch[0]}
        attrs["tir_var_upper_bound"] = {"batch": batch[1]}
    builder = rx.BlockBuilder()
    with builder.function("main", variables, attrs=attrs):
        with builder.dataflow():
            out = builder.emit_output(body(builder.emit, *variables))
        builder.emit_func_output(out)
    io = Io(
        inputs=tuple(TensorSpec(name, shape, dtype) for name, shape in inputs.items()),
        outputs=(TensorSpec("out", (), "float32"),),
        params=tuple(TensorSpec(name, shape, weight_dtype) for name, shape in weights.items()),
        dims={"batch": Bounds(*batch)} if symbolic else {},
        buckets=tuple(buckets),
    )
    mod = builder.get()
    values = [binding.var.name for block in mod["main"].body.blocks for binding in block.bindings]
    return Program(mod, io, tuple(Origin(value, (f"node/{value}",), "Op") for value in values))


def assert_same(mod: Any, expected: Any, name: str = "main") -> None:
    """Functions of two modules are the same, names of values and attributes of functions aside."""
    pair = [rx.Function(f.params, f.body, f.ret_ty, f.is_pure) for f in (mod[name], expected[name])]
    tvm.ir.assert_structural_equal(*pair, map_free_vars=True)


def random_weights(program: Program, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.asarray(rng.uniform(-0.5, 0.5, spec.shape), dtype="float32")
        for spec in program.io.params
    ]


def run(mod: Any, inputs: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """The result of `main(inputs, weights)` of a module of Relax operators."""
    vm = _machine(mod)
    return vm["main"](*map(tvm.runtime.tensor, [*inputs, *weights])).numpy()


def lowered_runner(
    program: Program, weights: Sequence[np.ndarray], records: Sequence[Record] = ()
) -> Callable[..., np.ndarray]:
    """The result of a lowered program as a function of its inputs; `records` schedule kernels."""
    mod = tvm.IRModule(program.mod.functions)
    for record in records:
        mod.update_func(mod.get_global_var(record.kernel), record.module()[record.kernel])
    vm = _machine(mod)
    packed = vm["main_transform_params"]([tvm.runtime.tensor(weight) for weight in weights])
    return lambda *inputs: vm["main"](*map(tvm.runtime.tensor, inputs), *packed).numpy()


def _machine(mod: Any) -> Any:
    return rx.VirtualMachine(tvm.compile(mod, TVM_TARGET), tvm.cpu())


def assert_golden(stage: str, version: int, name: str, mod: Any) -> None:
    """The printed module is the file's text; `TAPML_UPDATE_GOLDEN=1` writes the file instead."""
    path = GOLDEN / stage / f"v{version}" / f"{name}.txt"
    text = re.sub(r"[ \t]+\n", "\n", mod.script()) + "\n"
    if os.environ.get("TAPML_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
