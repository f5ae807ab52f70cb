from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml_stages.prune.magnitude import largest, masks
from tapml_stages.prune.stage import Existing, Magnitude

SHAPES = st.lists(st.integers(1, 12), min_size=2, max_size=3)
WEIGHTS = st.builds(  # few distinct values, so that ties are common
    lambda shape, seed: np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32),
    SHAPES,
    st.integers(0, 99),
)
DENSITIES = st.floats(0.01, 1.0)


@settings(deadline=None)
@given(WEIGHTS, DENSITIES)
def test_the_density_is_met_to_one_entry(weight: np.ndarray, density: float) -> None:
    mask = masks(weight, Magnitude(method="magnitude", density=density, block=None))
    assert mask.shape == weight.shape
    assert abs(mask.sum() - density * weight.size) <= 1


@settings(deadline=None)
@given(WEIGHTS, DENSITIES)
def test_nothing_kept_is_smaller_than_anything_dropped(weight: np.ndarray, density: float) -> None:
    mask = masks(weight, Magnitude(method="magnitude", density=density, block=None))
    dropped = np.abs(weight[~mask])
    assert not dropped.size or np.abs(weight[mask]).min() >= dropped.max()


@settings(deadline=None)
@given(WEIGHTS, DENSITIES, st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_blocks_live_or_die_together_edges_included(
    weight: np.ndarray, density: float, block: tuple[int, int]
) -> None:
    mask = masks(weight, Magnitude(method="magnitude", density=density, block=block))
    matrix = mask.reshape(weight.shape[0], -1)
    blocks = [
        matrix[row : row + block[0], column : column + block[1]]
        for row in range(0, matrix.shape[0], block[0])
        for column in range(0, matrix.shape[1], block[1])
    ]
    assert all(one.all() or not one.any() for one in blocks)
    assert sum(bool(one.all()) for one in blocks) == max(1, round(density * len(blocks)))


def test_an_edge_block_competes_by_its_mean() -> None:
    weight = np.full((4, 5), 1.0, np.float32)
    weight[:, 4] = 1.5  # the edge: one column wide, largest per entry, smallest in sum
    mask = masks(weight, Magnitude(method="magnitude", density=0.34, block=(4, 2)))
    np.testing.assert_array_equal(mask.any(axis=0), [False, False, False, False, True])


def test_the_earlier_of_equals_is_kept() -> None:
    np.testing.assert_array_equal(largest(np.ones((2, 2)), 0.5), [[True, True], [False, False]])


def test_zeros_that_are_there_are_the_mask_of_method_none() -> None:
    weight = np.array([[0, 1], [-2, 0]], np.float32)
    mask = masks(weight, Existing(method="none"))
    np.testing.assert_array_equal(mask, [[False, True], [True, False]])


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_is_a_share(density: float) -> None:
    with pytest.raises(ValueError, match="density"):
        Magnitude(method="magnitude", density=density, block=None)
