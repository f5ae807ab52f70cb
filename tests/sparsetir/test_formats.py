"""Formats hold what they were given, and say what they cannot hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from tapml_stages.packing import pack_values, unpack_values
from tapml_stages.sparsetir.formats import (
    Format,
    FormatError,
    check_positions,
    split_rows,
    structure_of,
)

blocks = st.tuples(st.integers(1, 5), st.integers(1, 5))
formats = st.one_of(st.just(Format("csr")), blocks.map(lambda block: Format("bsr", block)))


def matrix(rows: int, columns: int, density: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.uniform(1, 2, (rows, columns))
    return (values * (random.random((rows, columns)) < density)).astype(np.float32)


matrices = st.builds(
    matrix,
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([0, 0.1, 0.5, 1]),
    st.integers(0, 9),
)


@given(formats, matrices, st.booleans())
def test_packing_and_unpacking_gives_the_weight_back(
    form: Format, weight: np.ndarray, transpose: bool
) -> None:
    spec = {"packer": form.kind, "block": form.block, "transpose": transpose}
    arrays = structure_of((weight.T if transpose else weight) != 0, form).arrays(2)
    values = pack_values(weight, arrays, spec)
    assert np.array_equal(unpack_values(values, arrays, spec, weight.shape), weight)


@given(matrices)
def test_csr_is_scipys(weight: np.ndarray) -> None:
    structure = structure_of(weight != 0, Format("csr"))
    expected = scipy.sparse.csr_matrix(weight)
    assert np.array_equal(structure.indptr, expected.indptr)
    assert np.array_equal(structure.indices, expected.indices)


def test_bsr_is_scipys_where_blocks_divide() -> None:
    weight = np.kron(matrix(6, 5, 0.4, 0), np.ones((4, 2), np.float32))
    structure = structure_of(weight != 0, Format("bsr", (4, 2)))
    expected = scipy.sparse.csr_matrix(weight).tobsr((4, 2))
    spec = {"packer": "bsr", "block": (4, 2), "transpose": False}
    values = pack_values(weight, structure.arrays(1), spec)
    assert np.array_equal(structure.indptr, expected.indptr)
    assert np.array_equal(structure.indices, expected.indices)
    assert np.array_equal(values, expected.data.transpose(0, 2, 1))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=64), st.integers(1, 9))
def test_chunks_cover_every_row_once_and_none_does_twice_its_share(
    counts: list[int], chunks: int
) -> None:
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    splits = split_rows(indptr, chunks)
    work = np.diff((indptr + np.arange(len(indptr)))[splits])
    assert splits[0] == 0
    assert splits[-1] == len(counts)
    assert (np.diff(splits) >= 0).all()
    assert work.max() <= (sum(counts) + len(counts)) / chunks + max(counts) + 1


def test_figures_count_padding() -> None:
    weight = np.zeros((16, 16), np.float32)
    weight[0, :3] = 1
    structure = structure_of(weight != 0, Format("bsr", (8, 8)))
    assert (structure.nnz, structure.stored, structure.stored_share) == (3, 64, 0.25)
    assert structure.padding == pytest.approx(64 / 3)


def test_positions_beyond_32_bits_are_refused() -> None:
    check_positions(2**31 - 1)
    with pytest.raises(FormatError, match="2147483648 elements do not fit 32-bit positions"):
        check_positions(2**31)


def test_a_structure_that_stores_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapml_stages.sparsetir.formats.INT32_MAX", 1000)
    structure_of(np.ones((10, 100), bool), Format("csr"))
    with pytest.raises(FormatError, match="1024 elements do not fit"):
        structure_of(np.eye(32, dtype=bool), Format("bsr", (32, 32)))


def test_a_nonzero_outside_of_the_structure_is_refused() -> None:
    weight = np.eye(4, dtype=np.float32)
    arrays = structure_of(weight != 0, Format("csr")).arrays(1)
    spec = {"packer": "csr", "block": (1, 1), "transpose": False}
    with pytest.raises(ValueError, match="12 blocks of the weight are not in its structure"):
        pack_values(np.ones((4, 4), np.float32), arrays, spec)
