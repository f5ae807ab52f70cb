"""The stage on programs with regions: what it emits, what it declines, and that kernels carry the
epilogue."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.errors import StageError
from tapml.stage import Context, Inputs, Outputs, Target
from tapml_stages import codec
from tapml_stages.compat import tvm
from tapml_stages.packing import pack_values
from tapml_stages.program import Bounds, Io, Program, TensorSpec
from tapml_stages.sparsetir.stage import Bsr, Csr, Format, SparseFormat, SparseTIR

rx, op = tvm.relax, tvm.relax.op
Body = Callable[[Any, list[Any]], Any]
Run = Callable[..., Outputs]
N, K = 40, 24


def program(body: Body, params: dict[str, tuple[int, ...]]) -> Program:
    """`main(x, params…)` that calls one region with `body(x, params)` in it; x is [batch, K]."""
    batch = tvm.tirx.Var("batch", "int64")

    def variables(n: Any) -> list[Any]:
        shapes = {"x": (n, K), **params}
        return [
            rx.Var(name, rx.TensorType(list(shape), "float32")) for name, shape in shapes.items()
        ]

    builder = rx.BlockBuilder()
    inner = variables(tvm.tirx.Var("rows", "int64"))
    with builder.function("region_0", inner, private=True):
        with builder.dataflow():
            result = builder.emit_output(body(inner[0], inner[1:]))
        builder.emit_func_output(result)
    region = builder.get()["region_0"].with_attr("Composite", "tapml.region")
    builder = rx.BlockBuilder()
    called = builder.add_func(region, "region_0")
    outer = variables(batch)
    with builder.function("main", outer):
        with builder.dataflow():
            result = builder.emit_output(rx.Call(called, outer))
        builder.emit_func_output(result)
    specs = tuple(TensorSpec(f"source/{name}", shape, "float32") for name, shape in params.items())
    io = Io(
        inputs=(TensorSpec("x", ("batch", K), "float32"),),
        outputs=(TensorSpec("y", ("batch", N), "float32"),),
        params=specs,
        dims={"batch": Bounds(1, 64)},
        buckets=({"batch": 1}, {"batch": 16}),
    )
    return Program(builder.get(), io)


def pruned(shape: tuple[int, ...], block: int = 8) -> np.ndarray:
    random = np.random.default_rng(3)
    mask = random.random((shape[0] // block, shape[1] // block)) < 0.4
    mask[0, 0] = True
    return (random.standard_normal(shape) * np.kron(mask, np.ones((block, block)))).astype(
        "float32"
    )


@pytest.fixture
def run(tmp_path: Path, target: Target) -> Run:
    def stage(made: Program, weights: dict[str, np.ndarray], **params: Format) -> Outputs:
        made.save(tmp_path / "program")
        codec.write_weights(tmp_path / "weights", {f"source/{k}": v for k, v in weights.items()})
        (tmp_path / "work").mkdir()
        context = Context(tmp_path / "work", logging.getLogger(), tmp_path)
        inputs = Inputs({"program": tmp_path / "program", "weights": tmp_path / "weights"})
        return SparseTIR(target=target, **params).run(inputs, context)

    return stage


def index(outputs: Outputs) -> dict[str, Any]:
    return codec.read_json(outputs.artifacts["alternatives"] / "index.json")


def linear(x: Any, params: list[Any]) -> Any:
    return op.add(op.matmul(x, params[0]), params[1])


BSR8 = Bsr(kind="bsr", block=(8, 8))
SHAPES = {"w": (K, N), "bias": (N,)}


def test_auto_gives_every_format_that_pays_and_the_reasons_of_the_others(run: Run) -> None:
    outputs = run(program(linear, SHAPES), {"w": pruned((K, N)), "bias": np.ones(N, "float32")})
    rows = index(outputs)
    assert {row["id"] for row in rows["alternatives"]} >= {"region_0.csr", "region_0.bsr8"}
    (left_out,) = rows["declined"]
    assert left_out["format"] == "bsr32"
    assert "elements per nonzero (limit 4)" in left_out["reason"]
    assert all(error < 1e-6 for _, error in outputs.report.tables[1].rows)
    assert "sparse kernels for 1 regions" in outputs.report.summary


def test_the_index_tells_how_to_call_each_kernel(run: Run, target: Target) -> None:
    weight, bias = pruned((K, N)), np.arange(N, dtype=np.float32)
    outputs = run(program(linear, SHAPES), {"w": weight, "bias": bias}, format=BSR8)
    structure = codec.read_npz(outputs.artifacts["structure"] / "structure.npz")
    (row,) = index(outputs)["alternatives"]
    mod = codec.load_module(outputs.artifacts["alternatives"] / f"{row['id']}.json")
    x = np.random.default_rng(0).standard_normal((5, K)).astype("float32")
    own = {name.split("/")[1]: array for name, array in structure.items()}
    given = {0: x, 2: bias}
    args = [
        given[arg["input"]]
        if "input" in arg
        else structure[arg["structure"]]
        if "structure" in arg
        else pack_values({"source/w": weight}[arg["values"]], own, arg)
        for arg in row["args"]
    ]
    y = tvm.runtime.tensor(np.full((5, N), np.nan, "float32"))
    library = tvm.compile(mod, tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"}))
    library[row["kernel"]](*(tvm.runtime.tensor(arg) for arg in args), y)
    assert np.allclose(y.numpy(), x @ weight + bias, atol=1e-5)
    assert row["sizes"] is None
    assert row["nnz"] == np.count_nonzero(weight)


def test_structure_holds_no_values_and_stays_when_only_values_change(
    run: Run, tmp_path: Path
) -> None:
    weight, bias = pruned((K, N)), np.ones(N, "float32")
    first = run(program(linear, SHAPES), {"w": weight, "bias": bias}, format=BSR8)
    before = (first.artifacts["structure"] / "structure.npz").read_bytes()
    (tmp_path / "work").rename(tmp_path / "before")
    second = run(program(linear, SHAPES), {"w": weight * 2, "bias": bias}, format=BSR8)
    path = second.artifacts["structure"] / "structure.npz"
    assert path.read_bytes() == before
    assert {array.dtype for array in codec.read_npz(path).values()} == {np.dtype(np.int32)}
    assert first.report.metrics == second.report.metrics


EPILOGUES: dict[str, tuple[Body, dict[str, tuple[int, ...]]]] = {
    "bare": (lambda x, p: op.matmul(x, p[0]), {"w": (K, N)}),
    "weight as [N, K]": (
        lambda x, p: op.nn.relu(op.add(op.matmul(x, op.permute_dims(p[0])), p[1])),
        {"w": (N, K), "bias": (N,)},
    ),
    "gelu": (lambda x, p: op.nn.gelu(op.add(op.matmul(x, p[0]), p[1])), SHAPES),
    "operands in the other order": (
        lambda x, p: op.multiply(p[1], op.tanh(op.matmul(x, p[0]))),
        {"w": (K, N), "scale": (1, N)},
    ),
    "bias that is reshaped": (
        lambda x, p: op.add(op.reshape(p[1], (N,)), op.matmul(x, p[0])),
        {"w": (K, N), "bias": (1, 1, N)},
    ),
    "rows of activations": (
        lambda x, p: op.add(op.matmul(x, p[0]), x),
        {"w": (K, K)},
    ),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_epilogues_are_part_of_the_kernel(name: str, run: Run) -> None:
    body, shapes = EPILOGUES[name]
    weights = {k: pruned(s) if k == "w" else np.ones(s, "float32") for k, s in shapes.items()}
    outputs = run(program(body, shapes), weights, format=BSR8)
    ((_, error),) = outputs.report.tables[1].rows
    assert error < 1e-6


DECLINED: dict[str, tuple[Body, str]] = {
    "the epilogue is not elementwise": (
        lambda x, p: op.nn.softmax(op.matmul(x, p[0])),
        "the epilogue is not elementwise",
    ),
    "activations are computed": (
        lambda x, p: op.matmul(op.exp(x), p[0]),
        "the activations are computed inside the region",
    ),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_has_no_kernel_is_declined_with_its_reason(name: str, run: Run) -> None:
    body, reason = DECLINED[name]

    outputs = run(program(body, {"w": (K, N)}), {"w": pruned((K, N))})
    assert index(outputs)["declined"] == [{"region": "region_0", "format": "*", "reason": reason}]
    assert outputs.report.summary == "no region has a sparse kernel: dense is kept"


def test_a_format_asked_for_by_name_that_fits_nowhere_is_an_error(run: Run) -> None:
    weights = {"w": np.ones((K, N), "float32"), "bias": np.ones(N, "float32")}
    with pytest.raises(StageError, match="no region of the model can be stored as csr") as caught:
        run(program(linear, SHAPES), weights, format=Csr(kind="csr"))
    assert "region_0: the weight has no zeros" in caught.value.hint


def test_the_declaration_is_plain_data() -> None:
    made = SparseFormat.model_validate({"format": {"kind": "bsr"}})
    assert json.loads(made.model_dump_json()) == {"format": {"kind": "bsr", "block": [16, 16]}}
