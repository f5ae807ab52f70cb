"""Validation on a small program: NaN never passes, carved tests name the kernel that is wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from small_programs import HOST, linear, linear_program, linear_weights, write_inputs

from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages import codec, records
from tapml_stages.codegen.stage import Codegen
from tapml_stages.compat import tvm
from tapml_stages.validation.carve import Recorder, poisoned
from tapml_stages.validation.compare import relative_error, tolerance, within_a_step
from tapml_stages.validation.stage import Validation

te = tvm.te
KERNEL = "fused_matmul_add_relu"  # the clone for batch 4


def write_reference(folder: Path, weights: dict[str, np.ndarray]) -> Path:
    """A reference in float64, at the bucket and at one other size."""
    folder.mkdir()
    inputs, outputs, rows = {}, {}, []
    for batch, kind in ((4, "real"), (3, "random")):
        case = f"{kind}/{batch}"
        x = np.random.default_rng(batch).standard_normal((batch, 6)).astype("float32")
        inputs[f"{case}/x"] = x
        outputs[f"{case}/y"] = linear(x, weights).astype("float32")
        rows.append(
            {
                "id": case,
                "kind": kind,
                "sizes": {"batch": batch},
                "after": "",
                "inputs": {"x": f"{case}/x"},
            }
        )
    codec.write_npz(folder / "inputs.npz", inputs)
    for kind in ("original", "pruned", "unoptimized"):
        codec.write_npz(folder / f"outputs_{kind}.npz", outputs)
    codec.write_json(folder / "cases.json", rows)
    codec.write_json(folder / "meta.json", {"peer": None, "model": None})
    return folder


def built(folder: Path, faulty: tvm.tirx.PrimFunc | None = None) -> Inputs:
    """Inputs of validation for a bundle whose kernel for the bucket is `faulty`."""
    program, weights = linear_program(), linear_weights()
    inputs = dict(write_inputs(folder, program, weights))
    if faulty is not None:
        shipped = records.load(inputs["records"])
        wrong = records.make(
            KERNEL, program.mod[KERNEL], faulty, kind="default", rule="seeded fault"
        )
        records.save(inputs["records"], [r for r in shipped if r.kernel != KERNEL] + [wrong])
        kept = records.load_choices(inputs["choices"]).kernels
        choice = records.KernelChoice(KERNEL, wrong.id, ())
        records.Choices((*(k for k in kept if k.kernel != KERNEL), choice)).save(inputs["choices"])
    stage = Codegen(target=HOST, opt_level=2, recipe_name="linear")
    inputs["bundle"] = stage.run(Inputs(inputs), context(folder / "codegen")).artifacts["bundle"]
    inputs["reference"] = write_reference(folder / "reference", weights)
    return Inputs(inputs)


def context(folder: Path) -> Context:
    folder.mkdir()
    return Context(folder, logging.getLogger("test"), folder / "db")


def validated(inputs: Inputs, folder: Path) -> dict[str, object]:
    stage = Validation(target=HOST, metric=None, repeats=10, max_seconds=5.0)
    outputs = stage.run(inputs, context(folder / "validation"))
    return json.loads(outputs.artifacts["facts"].read_text())


def linear_kernel(*, terms: int = 6, shift: int = 0, relu: bool = True, nan: bool = False):
    """The bucket's kernel, written anew: right by default, or with one fault."""
    x, w = te.placeholder((4, 6), name="x"), te.placeholder((6, 5), name="w")
    b = te.placeholder((5,), name="b")
    k = te.reduce_axis((0, terms), name="k")
    product = te.compute((4, 5), lambda i, j: te.sum(x[i, k] * w[k, j], axis=k), name="product")

    def epilogue(i: tvm.tirx.Var, j: tvm.tirx.Var) -> tvm.tirx.PrimExpr:
        value = product[i, j] + b[(j + shift) % 5]
        value = te.max(value, tvm.tirx.const(0, "float32")) if relu else value
        return tvm.tirx.log(value - 1e6) if nan else value

    return te.create_prim_func([x, w, b, te.compute((4, 5), epilogue, name="y")])


def test_facts_hold_errors_timings_and_carved_tests_of_every_size(tmp_path: Path) -> None:
    facts = validated(built(tmp_path, linear_kernel()), tmp_path)
    assert facts["error"]["passed"]
    assert 0 < facts["error"]["relative"] < 1e-5
    assert [row["sizes"] for row in facts["latency"]] == [{"batch": 4}, {"batch": 3}]
    assert all(0 < row["ours_ms"]["p50"] < 1000 for row in facts["latency"])
    assert facts["carve"]["checked"] == 2
    assert facts["carve"]["failed"] == []
    index = json.loads((tmp_path / "validation" / "carved" / "index.json").read_text())
    carved = np.load(tmp_path / "validation" / "carved" / index["tests"][0]["file"])
    assert carved["arg0"].shape[1] == 6


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"terms": 5}, id="short sum"),
        pytest.param({"shift": 1}, id="index", marks=pytest.mark.slow),
        pytest.param({"relu": False}, id="epilogue", marks=pytest.mark.slow),
    ],
)
def test_a_fault_in_one_scheduled_kernel_is_named_by_it(
    tmp_path: Path, fault: dict[str, int]
) -> None:
    facts = validated(built(tmp_path, linear_kernel(**fault)), tmp_path)
    assert {row["kernel"] for row in facts["carve"]["failed"]} == {KERNEL}
    assert not facts["error"]["passed"]


@pytest.mark.slow
def test_nan_never_passes_and_the_kernel_that_made_it_is_named(tmp_path: Path) -> None:
    inputs = built(tmp_path, linear_kernel(nan=True))
    with pytest.raises(StageError, match=rf"NaN or Inf(.|\n)*{KERNEL}"):
        validated(inputs, tmp_path)


def test_scalar_arguments_of_a_kernel_keep_their_place(tmp_path: Path) -> None:
    def scaled(x: tvm.runtime.Tensor, factor: int, out: tvm.runtime.Tensor) -> None:
        out.copyfrom(x.numpy() * factor)

    recorder = Recorder({"scaled": scaled}, {}, {"scaled": (-1,)}, {}, tmp_path, {})
    x, out = np.ones(3, "float32"), np.full(3, 5, "float32")
    args = (tvm.runtime.tensor(x), 5, tvm.runtime.tensor(out))
    recorder(None, "scaled", False, None, *args)
    assert [one.relative for one in recorder.found] == [0.0]


def test_a_kernel_that_writes_nan_or_not_everything_never_passes(tmp_path: Path) -> None:
    def spoilt(x: tvm.runtime.Tensor, out: tvm.runtime.Tensor) -> None:
        out.copyfrom(np.array([np.nan, 2, 3], "float32"))

    def lazy(x: tvm.runtime.Tensor, out: tvm.runtime.Tensor) -> None: ...

    lazy_one = f"fused_{'reshape_' * 200}"  # longer than a file's name may be
    written = {"spoilt": (-1,), lazy_one: (-1,)}
    mod = dict.fromkeys(written, linear_kernel())
    recorder = Recorder({"spoilt": spoilt, lazy_one: lazy}, {}, written, {}, tmp_path, mod)
    args = [tvm.runtime.tensor(np.ones(3, "float32")) for _ in range(2)]
    for name in written:
        recorder(None, name, False, None, *args)
    assert [one.kernel for one in recorder.found if not one.passed] == [*written]


STEP = 0.05  # of the integers that the values stand for


def levels(count: int = 200, dtype: str = "float32") -> np.ndarray:
    whole = np.arange(count) % 100 - 50
    return (whole * STEP).astype(dtype) if dtype.startswith("float") else whole.astype(dtype)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_step_in_few_elements_is_what_rounding_may_do(dtype: str) -> None:
    expected = levels(dtype=dtype)
    step = STEP if dtype == "float32" else 1
    for apart, elements, allowed in ((1, 1, True), (1, 10, True), (1, 20, False), (2, 1, False)):
        got = expected.copy()
        got[:elements] += np.array(apart * step, dtype)
        assert within_a_step(got, expected) is allowed


def test_a_step_is_told_from_numbers_that_were_not_rounded() -> None:
    expected = np.random.default_rng(0).standard_normal(4000).astype("float32")
    got = expected.copy()
    got[0] += 0.01
    assert not within_a_step(got, expected)
    assert not within_a_step(np.where(levels() > 0, np.nan, levels()), levels())
    assert not within_a_step(poisoned(levels(dtype="int8")), levels(dtype="int8"))


@pytest.mark.parametrize("rounds", [True, False])
def test_only_a_kernel_that_rounds_may_be_a_step_apart(tmp_path: Path, rounds: bool) -> None:
    expected = levels()
    got = expected.copy()
    got[3] += STEP

    def shipped(x: tvm.runtime.Tensor, out: tvm.runtime.Tensor) -> None:
        out.copyfrom(got)

    x = te.placeholder((200,), name="x")
    body = tvm.tirx.round if rounds else tvm.tirx.floor
    func = te.create_prim_func([x, te.compute((200,), lambda i: body(x[i] * 20) * STEP)])
    mod = tvm.IRModule({"k": func})
    recorder = Recorder({"k": shipped}, {}, {"k": (-1,)}, {}, tmp_path, mod)
    args = [tvm.runtime.tensor(one) for one in (expected, expected)]
    recorder(None, "k", False, None, *args)
    (found,) = recorder.found
    assert found.relative > 1e-2
    assert (found.rounded, found.passed) == (rounds, rounds)


def test_an_error_is_relative_to_the_range_of_the_output() -> None:
    assert relative_error(np.array([100.0, 1.0]), np.array([100.0, 2.0]), "y") == (1.0, 0.01)


def test_nan_in_both_is_equal_and_nan_in_one_is_an_error() -> None:
    nan = np.array([np.nan, 1.0])
    assert relative_error(nan, nan, "y") == (0.0, 0.0)
    with pytest.raises(StageError, match="1 of 2 values are NaN"):
        relative_error(nan, np.array([0.0, 1.0]), "y")
    with pytest.raises(StageError, match="finite where the reference is NaN"):
        relative_error(np.array([0.0, 1.0]), nan, "y")


def test_the_tolerance_follows_the_references_own_difference() -> None:
    assert tolerance(1e-6, 1e-5) == 1e-4
    assert tolerance(1e-3, 2e-3) == 4e-3
    assert tolerance(1e-6, 2e-3) == 2e-3
