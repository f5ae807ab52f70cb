"""Products with weights stored as integers: against float64, and what a processor executes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import asm
from rules.kernels import BASELINE, assert_close, lower_typed, run

from tapml_stages.compat import tvm
from tapml_stages.quantization import Scheme, dequantize
from tapml_stages.tensorir.quantized import product, rows
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.te_ops import PANEL

WIDE = BASELINE.model_copy(
    update={"mcpu": "sapphirerapids", "vector_bits": 512, "vector_registers": 32}
)
SCHEMES = [Scheme(8, 32, 1), Scheme(4, 32, 1), Scheme(4, 32, 1, minima=True)]


class Weight:
    """A random weight [N, K] as integers, as kernels read it and in float64."""

    def __init__(self, columns: int, depth: int, how: Scheme, scale: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        panels, groups = -(-columns // PANEL), -(-depth // how.group)
        least, most = how.range
        integers = rng.integers(least, most + 1, (panels * PANEL, groups * how.group))
        numbers = [
            (rng.standard_normal((panels * PANEL, groups)) / 8).astype(scale)
            for _ in range(1 + how.minima)
        ]
        self.values = dequantize(integers, numbers[0].astype(np.float64), how, *numbers[1:])[
            :columns, :depth
        ].astype(np.float64)
        packed = _panels(integers[:, :depth] if how.bits == 8 else integers).astype(np.int8)
        if how.bits == 4:
            shape = (panels, groups, 2, how.group // 2, PANEL)
            halves = (packed - how.range[0]).astype(np.uint8).reshape(shape)
            packed = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(panels, -1, PANEL)
        self.arguments = [packed, *(_panels(one) for one in numbers)]


def _panels(matrix: np.ndarray) -> np.ndarray:
    """[N, K] → [N/P, K, P]"""
    return np.ascontiguousarray(matrix.reshape(-1, PANEL, matrix.shape[1]).transpose(0, 2, 1))


def multiply(how: Scheme, columns: int, x: Any, weight: Weight, *, relu: bool = False) -> Any:
    """The unscheduled kernel; `x`: its shape."""
    op = tvm.relax.op

    def build(builder: Any, x: Any, *held: Any) -> Any:
        y = builder.emit_te(
            lambda *args: product(*args, columns=columns, how=how),
            x,
            *held,
            primfunc_attrs={"op_pattern": 4},
        )
        return builder.emit(op.nn.relu(y)) if relu else y

    return lower_typed(build, (x, "float32"), *_types(weight.arguments))


def _types(arrays: Sequence[np.ndarray]) -> list[tuple[tuple[int, ...], str]]:
    return [(one.shape, str(one.dtype)) for one in arrays]


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([*SCHEMES, Scheme(4, 96, 1), Scheme(8, 2, 1)]),
    st.sampled_from([1, 2, 7, 33]),
    st.sampled_from([32, 96, 70]),
    st.sampled_from([1, 16, 37, 96]),
    st.sampled_from(["float16", "float32"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_products_with_integers_are_those_with_the_values_they_stand_for(
    how, count, depth, columns, scale, relu, seed
):
    weight = Weight(columns, depth, how, scale, seed)
    x = np.random.default_rng(seed).standard_normal((count, depth)).astype(np.float32)
    kernel, rule = schedule(multiply(how, columns, x.shape, weight, relu=relu), BASELINE)
    assert rule == "dense"
    expected = x.astype(np.float64) @ weight.values.T
    bound = np.abs(x).astype(np.float64) @ np.abs(weight.values).T  # of what is summed
    found = run(kernel, [x, *weight.arguments], expected.shape)
    expected = np.maximum(expected, 0) if relu else expected
    assert np.isfinite(found).all()
    # minima come as one number a group: roundings are of terms up to 16 times a weight
    assert (np.abs(found - expected) <= 1e-5 * bound.max()).all()


@pytest.mark.slow
@pytest.mark.parametrize("how", SCHEMES, ids=str)
def test_one_kernel_takes_any_number_of_rows(how):
    weight = Weight(40, 64, how, "float16", 0)
    symbolic = (tvm.tirx.Var("m", "int64"), 64)
    kernel, _ = schedule(multiply(how, 40, symbolic, weight), BASELINE)
    for count in (1, 3, 130):
        x = np.random.default_rng(count).standard_normal((count, 64)).astype(np.float32)
        expected = x.astype(np.float64) @ weight.values.T
        assert_close(run(kernel, [x, *weight.arguments], expected.shape), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", SCHEMES, ids=str)
def test_rows_are_read_out_of_panels(how):
    weight = Weight(40, 64, how, "float16", 1)
    indices = np.array([[3, 39, 0], [17, 40, -1]])  # of the last two there is no row

    def build(builder: Any, *args: Any) -> Any:
        return builder.emit_te(lambda *args: rows(*args, shape=(40, 64), how=how), *args)

    func = lower_typed(build, (indices.shape, "int64"), *_types(weight.arguments))
    kernel, _ = schedule(func, BASELINE)
    found = run(kernel, [indices, *weight.arguments], (2, 3, 64))
    # scale times integer, and a sum: two roundings
    expected = weight.values[indices % 40]
    expected[1, 1:] = np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "register"), [(BASELINE, "ymm"), (WIDE, "zmm")])
@pytest.mark.parametrize("how", SCHEMES, ids=str)
def test_an_integer_costs_its_conversion_and_one_multiply_add(how, target, register):
    weight = Weight(576, 576, how, "float16", 0)
    kernel, _ = schedule(multiply(how, 576, (1, 576), weight), target)
    inner = max(asm.innermost_loops(asm.assembly(kernel, target)), key=lambda loop: _adds(loop))
    adds, vectors = _adds(inner), [line for line in inner if f"%{register}" in line]
    assert adds >= 2
    assert not any("mulps" in line for line in inner)  # scales are applied outside
    assert sum("vcvtdq2ps" in line for line in vectors) == adds
    unpacking = sum(op in line for line in vectors for op in ("vpmov", "vpand", "vpsrl"))
    assert unpacking <= (2 if how.bits == 8 else 1.5) * adds
    assert not any("(%rsp)" in line for line in inner)  # nothing is spilled


def _adds(loop: list[str]) -> int:
    return sum("vfmadd" in line for line in loop)
