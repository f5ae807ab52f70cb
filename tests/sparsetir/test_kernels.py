"""Kernels give the product, for every structure and size, and spread no NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapml.stage import Target
from tapml_stages.sparsetir.formats import Format, structure_of
from tapml_stages.sparsetir.kernels import make_kernel
from tapml_stages.sparsetir.schedules import BlockTile

Multiply = Callable[..., np.ndarray]
CSR = Format("csr")
FORMATS = [CSR, *(Format("bsr", (size, size)) for size in (8, 16, 32))]
by_format = pytest.mark.parametrize(
    "form",
    [
        pytest.param(one, id=one.name, marks=pytest.mark.slow if one in FORMATS[2:] else ())
        for one in FORMATS
    ],
)


def weights(rows: int, columns: int, density: float, block: int = 8) -> np.ndarray:
    """Random weights with zero blocks, an empty row of blocks and an empty column of blocks."""
    random = np.random.default_rng(rows * columns)
    mask = random.random((-(-rows // block), -(-columns // block))) < density
    mask[len(mask) // 2] = False
    mask[:, 0] &= density == 1
    mask[-1, -1] |= density > 0
    kept = np.kron(mask, np.ones((block, block)))[:rows, :columns]
    return (random.standard_normal((rows, columns)) * kept).astype(np.float32)


def activations(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


def error(actual: np.ndarray, weight: np.ndarray, x: np.ndarray) -> float:
    """Against SciPy in float64, relative to the largest result."""
    expected = (scipy.sparse.csr_matrix(weight.astype(np.float64)) @ x.T.astype(np.float64)).T
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-9))


@by_format
@pytest.mark.parametrize("rows", [2, 24])
def test_products_of_an_exact_size_are_scipys(
    form: Format, rows: int, multiply: Multiply, target: Target
) -> None:
    weight, x = weights(100, 70, 0.4), activations(rows, 70)
    assert error(multiply(form, weight, x, target), weight, x) < 1e-6


@pytest.mark.parametrize("form", [CSR, FORMATS[1], FORMATS[3]], ids=["csr", "bsr8", "bsr32"])
@pytest.mark.parametrize("rows", [19])
def test_symbolic_products_of_any_size_are_scipys(
    form: Format, rows: int, multiply: Multiply, wide_target: Target
) -> None:
    weight, x = weights(100, 70, 0.4), activations(rows, 70)
    assert error(multiply(form, weight, x, wide_target, rows=(1, 5000)), weight, x) < 1e-6


@pytest.mark.parametrize("form", [CSR, FORMATS[2]], ids=lambda form: form.name)
def test_many_rows_are_cut_into_parallel_runs_of_rows(
    form: Format, multiply: Multiply, target: Target
) -> None:
    weight, x = weights(48, 64, 0.5), activations(1037, 64)
    assert error(multiply(form, weight, x, target, rows=(512, 4096)), weight, x) < 1e-6


@pytest.mark.parametrize("form", [CSR, FORMATS[1]], ids=lambda form: form.name)
@pytest.mark.parametrize("density", [0, 1], ids=["all zero", "full"])
def test_empty_and_full_weights_work(
    form: Format, density: int, multiply: Multiply, target: Target
) -> None:
    weight, x = np.full((20, 12), density, np.float32), activations(3, 12)
    assert error(multiply(form, weight, x, target), weight, x) < 1e-6


@by_format
def test_nan_touches_only_the_outputs_that_store_its_input(
    form: Format, multiply: Multiply, wide_target: Target
) -> None:
    weight, x = weights(44, 37, 0.6), activations(21, 37)  # padded in both directions
    x[20, 36] = np.nan  # last row, last column: what tails and edges repeat
    x[3, 20] = np.inf
    y = multiply(form, weight, x, wide_target, rows=(1, 64))
    structure = structure_of(weight != 0, form)
    row_of = np.repeat(np.arange(len(structure.indptr) - 1), np.diff(structure.indptr))
    for row, column in ((20, 36), (3, 20)):
        hit = row_of[structure.indices == column // form.block[1]]
        outputs = {
            out
            for one in hit
            for out in range(one * form.block[0], (one + 1) * form.block[0])
            if out < len(weight)
        }
        assert set(np.flatnonzero(~np.isfinite(y[row]))) <= outputs
        assert outputs
    assert np.isfinite(np.delete(y, [3, 20], axis=0)).all()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([(1, 8), (8, 1), (3, 5), (24, 4), (12, 12)]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_blocks_of_any_shape_keep_the_numbers(
    multiply: Multiply, target: Target, block: tuple[int, int], n: int, k: int, m: int
) -> None:
    weight, x = weights(n, k, 0.6, block=3), activations(m, k)
    assert error(multiply(Format("bsr", block), weight, x, target), weight, x) < 1e-6


def test_no_workspace_is_allocated_inside_the_loops_of_a_chunk(wide_target: Target) -> None:
    from tapml_stages.compat import tvm

    structure = structure_of(weights(512, 512, 0.5) != 0, Format("bsr", (16, 16)))
    kernel = make_kernel(structure, (1, 128), wide_target)
    depth: list[int] = []

    def visit(stmt: Any, inside: int) -> None:
        if isinstance(stmt, tvm.tirx.AllocBuffer):
            depth.append(inside)
        elif isinstance(stmt, tvm.tirx.SeqStmt):
            for one in stmt.seq:
                visit(one, inside)
        elif isinstance(stmt, tvm.tirx.For):
            parallel = stmt.kind == tvm.tirx.ForKind.PARALLEL
            visit(stmt.body, inside + (not parallel))

    visit(kernel.func.body, 0)
    assert depth
    assert set(depth) == {0}


def test_a_register_tile_leaves_registers_for_the_operands(
    target: Target, wide_target: Target
) -> None:
    structure = structure_of(np.ones((64, 64), bool), Format("bsr", (16, 16)))
    for machine in (target, wide_target):
        schedule = make_kernel(structure, (1, 64), machine).schedule
        assert isinstance(schedule, BlockTile)
        vectors = schedule.rows[0] * -(-16 // (machine.vector_bits // 32))
        assert 8 <= vectors <= machine.vector_registers - 4


@by_format
def test_a_schedule_keeps_the_numbers_of_the_unscheduled_program(
    form: Format, multiply: Multiply, target: Target
) -> None:
    from tapml_stages.compat import tvm
    from tapml_stages.packing import pack_values
    from tapml_stages.sparsetir.emit import Emitter, prim_func, unscheduled

    weight, x = weights(20, 33, 0.5), activations(3, 33)
    structure = structure_of(weight != 0, form)
    kernel = make_kernel(structure, (3, 3), target)
    stored = structure.stored_blocks
    emitter = Emitter(kernel.positions, {"nnz_KO": stored, "nnz_KS": stored})
    body, names = unscheduled(emitter), ("X", "indptr", "indices", "A", "Y")
    func = prim_func([emitter.buffer(name) for name in names], body, "main")
    arrays = structure.arrays(1)
    spec = {"packer": form.kind, "block": form.block, "transpose": False}
    args = (x, arrays["indptr"], arrays["indices"], pack_values(weight, arrays, spec))
    y = tvm.runtime.tensor(np.full((3, 20), np.nan, np.float32))
    library = tvm.compile(tvm.IRModule({"main": func}), tvm.target.Target("llvm"))
    library["main"](*map(tvm.runtime.tensor, args), y)
    assert np.allclose(y.numpy(), multiply(form, weight, x, target), atol=1e-5)
