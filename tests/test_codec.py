"""Files of weights, beside safetensors' own writer and reader."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file, save_file

from tapml_stages import codec

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
        st.sampled_from(DTYPES).flatmap(
            lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0))
        ),
        max_size=5,
    )
)
def test_weights_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    codec.write_weights(path, weights)
    read = load_file(path)
    assert read.keys() == weights.keys()
    for name, array in weights.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


def test_floats_are_written_as_safetensors_itself_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in (("b.weight", (3, 4)), ("a/é", (5,)), ("c", ()), ("ab", (2, 3, 1)))
    }
    weights = {name: np.asarray(array) for name, array in weights.items()}
    codec.write_weights(tmp_path / "ours", weights)
    save_file(weights, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_weights_in_another_order_are_written_in_rows(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    codec.write_weights(tmp_path / "w", {"w": array})
    np.testing.assert_array_equal(load_file(tmp_path / "w")["w"], array)


def test_writing_copies_no_array(tmp_path: Path) -> None:
    weights = {str(index): np.ones((512, 1024), np.float32) for index in range(8)}
    tracemalloc.start()
    codec.write_weights(tmp_path / "w", weights)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < weights["0"].nbytes / 2
