"""Weights as small integers: what the pass makes, and that kernels compute with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import V3, assert_same, graph, lowered_runner, random_weights, rx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tapml.errors import RecipeError, StageError
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.program import QUANTIZED, Origin, Program
from tapml_stages.quantization import Scheme, dequantize, scheme, stored_bytes
from tapml_stages.quantization import quantize as to_integers
from tapml_stages.quantize.rounding import round_weights
from tapml_stages.relax.passes import passes
from tapml_stages.relax.quantize import quantize
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records

op = rx.op
SHAPE = {False: (70, 40), True: (40, 70)}  # transposed: as torch and Gemm keep it


def linear(transposed: bool, buckets: tuple[dict[str, int], ...] = ()) -> Program:
    """`relu(x @ W + b)`, W [70, 40] or its transpose [40, 70]; 70 is no multiple of a group."""

    def body(emit: Any, x: Any, w: Any, b: Any) -> Any:
        matrix = emit(op.permute_dims(w)) if transposed else w
        return op.nn.relu(emit(op.add(emit(op.matmul(x, matrix)), b)))

    weights = {"w": SHAPE[transposed], "b": (40,)}
    return graph(body, {"x": ("batch", 70)}, weights, buckets=buckets)


def quantized(program: Program, bits: Any = 8, *patterns: str, group: int = 32) -> Program:
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    mod = quantize(mod, program.io, program.provenance, patterns or ("*",), bits, group)
    return program.with_mod(mod)


def test_a_region_decodes_integers_and_main_makes_them_once():
    mod = quantized(linear(transposed=True)).mod
    assert scheme(str(mod["region_0"].attrs[QUANTIZED])) == Scheme(8, 32, 1)

    def call(kernel: str, args: Any, shape: Any, dtype: str = "float32") -> Any:
        out = rx.TensorType(shape, dtype)
        return rx.call_tir(mod.get_global_var(kernel), args, out_ty=out)

    def main(emit: Any, x: Any, w: Any, b: Any) -> Any:
        scales = emit(call("scales", (w,), (40, 3)))
        integers = emit(call("quantize", (w, scales), (40, 70), "int8"))
        return rx.Call(mod.get_global_var("region_0"), [x, integers, scales, b])

    inputs = {"x": ("batch", 70)}
    assert_same(mod, graph(main, inputs, {"w": (40, 70), "b": (40,)}).mod)

    region = mod["region_0"]
    assert [op_name(value).removeprefix("relax.") for _, value in bindings(region)] == [
        *("call_tir", "permute_dims", "matmul", "add", "nn.relu")
    ]
    assert [str(param.ty.dtype) for param in region.params] == [
        *("float32", "int8", "float32", "float32")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_one_kernel_reads_integers_decodes_and_multiplies_at_any_number_of_rows(bits, transposed):
    program = quantized(linear(transposed, ({"batch": 1},)), bits)
    lowered = lower(program, V3)
    records = default_records(lowered.mod, V3)
    assert {record.rule for record in records} == {"dense"}
    kernels = {row["kernel"] for rows in lowered.call_sites().values() for row in rows}
    assert kernels == {"region_0__main_b1", "region_0__main_dyn"}  # nothing is decoded beside them
    weights = random_weights(program)
    run = lowered_runner(lowered, weights, records)
    how = Scheme(bits, 32, int(transposed))
    matrix = dequantize(*to_integers(weights[0], how), how).astype(np.float64)
    for rows in (1, 3, 8):
        x = np.random.default_rng(rows).standard_normal((rows, 70)).astype(np.float32)
        expected = np.maximum(
            x.astype(float) @ (matrix.T if transposed else matrix) + weights[1], 0
        )
        # float32 sums of 70 products
        np.testing.assert_allclose(run(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_what_is_kept_are_the_integers_that_numpy_rounds_to():
    program = quantized(linear(transposed=False))
    lowered, weights = lower(program, V3), random_weights(program)
    machine = rx.VirtualMachine(tvm.compile(lowered.mod, "llvm"), tvm.cpu())
    kept = machine["main_transform_params"]([tvm.runtime.tensor(one) for one in weights])
    integers = next(one.numpy() for one in kept if str(one.dtype) == "int8")
    expected, _ = to_integers(weights[0], Scheme(8, 32, 0))
    panels, depth, lanes = integers.shape
    flat = integers.transpose(1, 0, 2).reshape(depth, panels * lanes)[:, :40]
    np.testing.assert_array_equal(flat, expected)
    assert not any(str(one.dtype) == "float32" and one.numpy().size >= 70 * 40 for one in kept)


def test_two_integers_of_four_bits_share_a_byte():
    program = quantized(linear(transposed=False), 4)
    types = [param.ty for param in lower(program, V3).mod["main"].params]
    (packed,) = [ty for ty in types if str(ty.dtype) == "uint8"]
    assert int(np.prod([int(n) for n in packed.shape.values])) == 3 * (96 // 2) * 16


@pytest.mark.slow
def test_what_else_reads_the_weight_reads_the_values_that_the_integers_stand_for():
    def tied(emit: Any, ids: Any, w: Any) -> Any:
        rows = emit(op.take(w, emit(op.astype(ids, "int64")), axis=0))
        return op.matmul(rows, emit(op.permute_dims(w)))

    program = graph(tied, {"ids": ("batch",)}, {"w": (40, 64)})
    program = quantized(program)
    lowered, weights = lower(program, V3), random_weights(program)
    run = lowered_runner(lowered, weights, default_records(lowered.mod, V3))
    rounded = {"w": weights[0].copy()}
    (row,) = round_weights(program, rounded)
    assert row.weight == "w"
    assert 0 < row.error < 0.01
    ids = np.array([3, 0, 39], np.float32)
    expected = rounded["w"].astype(float)[[3, 0, 39]] @ rounded["w"].T
    np.testing.assert_allclose(run(ids), expected, atol=1e-5 * np.abs(expected).max())


def test_layers_are_matched_by_node_and_weight_and_others_stay_floats():
    def two(emit: Any, x: Any, a: Any, b: Any) -> Any:
        return op.matmul(emit(op.nn.relu(emit(op.matmul(x, a)))), b)

    program = graph(two, {"x": ("batch", 8)}, {"a": (8, 8), "b": (8, 8)})
    nodes = {"lv": "first/MatMul", "lv1": "relu", "gv": "second/MatMul"}
    origins = tuple(Origin(value, (node,), "MatMul") for value, node in nodes.items())
    program = replace(program, provenance=origins)

    def of(*patterns: str) -> set[str]:
        mod = quantized(program, 8, *patterns).mod
        marked = (f for f in mod.functions.values() if f.attrs and QUANTIZED in f.attrs)
        return {str(func.attrs["tapml.weight"]) for func in marked}

    assert of("second/*") == {"b"}
    assert of("a") == {"a"}
    with pytest.raises(RecipeError, match=r"pattern 'third\*' matches no layer") as caught:
        of("third*")
    assert caught.value.field == "relax.quantize.layers.0"
    assert "layers that can be quantized" in caught.value.hint


def test_a_weight_multiplied_along_both_axes_is_refused():
    def both(emit: Any, x: Any, w: Any) -> Any:
        return op.matmul(emit(op.matmul(x, w)), emit(op.permute_dims(w)))

    program = graph(both, {"x": ("batch", 8)}, {"w": (8, 8)})
    with pytest.raises(StageError, match="w is multiplied along both of its axes"):
        quantized(program)


FLOATS = st.floats(-1e3, 1e3, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=FLOATS
)


@settings(deadline=None, max_examples=30)
@given(WEIGHTS, st.sampled_from([4, 8]), st.sampled_from([2, 4, 32]), st.sampled_from([0, 1]))
def test_rounding_is_within_half_a_step_and_rounding_twice_changes_nothing(
    weight, bits, group, axis
):
    how = Scheme(bits, group, axis)
    integers, scales = to_integers(weight, how)
    rounded = dequantize(integers, scales, how)
    steps = np.repeat(scales, group, axis=axis).take(range(weight.shape[axis]), axis=axis)
    assert (np.abs(rounded - weight) <= steps * 0.5001).all()
    again, _ = to_integers(rounded, how)
    np.testing.assert_array_equal(again, integers)
    assert (rounded[weight == 0] == 0).all()


def test_the_bytes_of_a_stored_weight():
    assert stored_bytes((768, 3072), Scheme(8, 32, 0)) == 768 * 3072 + 4 * 24 * 3072
    assert stored_bytes((768, 3072), Scheme(4, 32, 0)) == 768 * 3072 // 2 + 4 * 24 * 3072
