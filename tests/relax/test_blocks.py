"""Weights that the source keeps as integers: they are found again, and stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from graphs import V3, graph, lowered_runner, rx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.program import LOOKUP, QUANTIZED, Program, TensorSpec, minima_name, scales_name
from tapml_stages.quantization import Scheme, dequantize, integers_of, scheme
from tapml_stages.quantize.rounding import round_weights
from tapml_stages.relax.passes import passes
from tapml_stages.relax.quantize import keep_blocks, quantize
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records

op = rx.op
SCHEMES = [
    Scheme(4, 32, 1, given=True),
    Scheme(4, 32, 1, minima=True, given=True),
    Scheme(8, 32, 1, given=True),
]
HALVES = arrays.arrays(np.float16, (3, 2), elements=st.floats(-8, 8, width=16))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SCHEMES), HALVES, HALVES, st.integers(0, 99))
def test_integers_are_found_again_in_the_values_that_they_stand_for(how, scales, low, seed):
    least, most = how.range
    integers = np.random.default_rng(seed).integers(least, most + 1, (3, 64)).astype(np.int8)
    minima = low if how.minima else None
    weight = dequantize(integers, scales, how, minima)
    found = integers_of(weight, scales, minima, how)
    np.testing.assert_array_equal(dequantize(found, scales, how, minima), weight)
    # a scale that is not lost beside its minimum tells every integer apart
    size = 0 if minima is None else np.abs(minima.astype(np.float32))
    apart = np.abs(scales.astype(np.float32)) > size * 2.0**-20
    apart = np.repeat(apart, 32, axis=1)
    np.testing.assert_array_equal(found[apart], integers[apart])


def stored(program: Program, how: Scheme, *, rounded: bool = False) -> tuple[Program, Any, Any]:
    """The program after relax with its weight `w` [N, K] kept, the weights that it takes, and the
    integers.
    """
    rng = np.random.default_rng(5)
    ((name, shape),) = [(one.name, one.shape) for one in program.io.params]
    rows, depth = (int(size) for size in shape)
    least, most = how.range
    integers = rng.integers(least, most + 1, (rows, depth)).astype(np.int8)
    numbers = [rng.uniform(-1, 1, (rows, depth // 32)).astype(np.float16) for _ in range(2)]
    numbers = numbers[: 1 + how.minima]
    names = [scales_name(name), minima_name(name)][: 1 + how.minima]
    specs = [TensorSpec(n, one.shape, "float16") for n, one in zip(names, numbers, strict=True)]
    func, mod = program.mod["main"], program.mod.clone()
    added = [rx.Var(f"n{k}", rx.TensorType(s.shape, s.dtype)) for k, s in enumerate(specs)]
    mod["main"] = rx.Function([*func.params, *added], func.body, func.ret_ty, True, func.attrs)
    io = replace(program.io, params=(*program.io.params, *specs), blocks={name: how})
    for _, transform in passes():
        mod = transform(mod)
    if rounded:
        mod = quantize(mod, io, program.provenance, ("*",), 8, 32)
    mod = keep_blocks(mod, io)
    weight = dequantize(integers, numbers[0], how, *numbers[1:])
    return replace(program, mod=mod, io=io), [weight, *numbers], integers


def tied(emit: Any, ids: Any, w: Any) -> Any:
    rows = emit(op.take(w, emit(op.astype(ids, "int64")), axis=0))
    return op.matmul(rows, emit(op.permute_dims(w)))


def model() -> Program:
    return graph(tied, {"ids": ("batch",)}, {"w": (40, 64)}, buckets=({"batch": 1},))


def test_a_region_and_a_lookup_read_the_same_integers():
    program, _, _ = stored(model(), SCHEMES[1])
    functions = {gvar.name_hint: func for gvar, func in program.mod.functions.items()}
    found = {n: f for n, f in functions.items() if f.attrs and LOOKUP in f.attrs}
    ((name, lookup),) = found.items()
    assert scheme(str(lookup.attrs[LOOKUP])) == SCHEMES[1]
    assert scheme(str(functions["region_0"].attrs[QUANTIZED])) == SCHEMES[1]
    calls = {op_name(value): value for _, value in bindings(program.mod["main"])}
    held = [str(arg.ty.dtype) for arg in calls[name].args]
    assert held == ["int64", "int8", "float16", "float16"]
    assert [one.name for one in calls["region_0"].args[1:]] == [
        one.name for one in calls[name].args[1:]
    ]


def test_what_is_rounded_by_the_recipe_is_not_kept_and_what_is_kept_is_not_rounded():
    rounded, weights, _ = stored(model(), SCHEMES[2], rounded=True)
    (row,) = round_weights(rounded, {"w": weights[0].copy()})
    assert not row.how.given
    kept, weights, _ = stored(model(), SCHEMES[2])
    assert round_weights(kept, {"w": weights[0].copy()}) == []


def test_a_weight_that_is_multiplied_along_the_other_axis_stays_float():
    def across(emit: Any, x: Any, w: Any) -> Any:
        return op.matmul(x, w)

    program, _, _ = stored(graph(across, {"x": ("batch", 32)}, {"w": (32, 64)}), SCHEMES[0])
    assert not any(f.attrs and QUANTIZED in f.attrs for f in program.mod.functions.values())


@pytest.mark.slow
@pytest.mark.parametrize("how", SCHEMES, ids=str)
def test_one_copy_of_the_integers_serves_products_and_lookups(how):
    program, weights, integers = stored(model(), how)
    lowered = lower(program, V3)
    machine = rx.VirtualMachine(tvm.compile(lowered.mod, "llvm"), tvm.cpu())
    packed = machine["main_transform_params"]([tvm.runtime.tensor(one) for one in weights])
    kept = [one.numpy() for one in packed]
    halves = [one for one in kept if one.dtype == np.float16]
    (small,) = [one for one in kept if one.dtype != np.float16]  # no float32, and one copy
    assert len(halves) == 1 + how.minima
    if how.bits == 4:
        small = small.reshape(3, 2, 16, 16).astype(int)
        small = np.stack([small & 15, small >> 4], axis=2).reshape(3, 64, 16) + how.range[0]
    flat = small.transpose(0, 2, 1).reshape(48, 64)[:40]
    np.testing.assert_array_equal(flat, integers)

    run = lowered_runner(lowered, weights, default_records(lowered.mod, V3))
    for ids in ([7], [3, 0, 39]):
        expected = weights[0].astype(float)[ids] @ weights[0].T.astype(float)
        found = run(np.array(ids, np.float32))
        # float32 sums of 64 products, of numbers up to 16 times a weight where there are minima
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
