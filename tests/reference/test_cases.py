from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.errors import RecipeError, StageError
from tapml.stage import File, PythonFunction
from tapml_stages.program import Bounds
from tapml_stages.reference import cases


def io(dtype: str = "float32", shape: tuple[int | str, ...] = ("batch", 3)) -> dict[str, Any]:
    return {
        "inputs": [{"name": "x", "shape": list(shape), "dtype": dtype}],
        "outputs": [],
        "states": [],
        "dims": {"batch": {"min": 1, "max": 64}},
        "buckets": [{"batch": 1}, {"batch": 16}],
    }


def function(folder: Path, body: str) -> PythonFunction:
    path = folder / "inputs.py"
    path.write_text(f"import numpy as np\ndef fn():\n    {body}\n")
    digest = hashlib.sha256(body.encode()).hexdigest()
    return PythonFunction(path=str(path), function="fn", sha256=digest)


@settings(deadline=None)
@given(st.integers(1, 600), st.integers(1, 8), st.integers(0, 60), st.sets(st.integers(1, 64)))
def test_chunks_cover_every_sample_within_the_bounds(
    count: int, least: int, more: int, sizes: set[int]
) -> None:
    bounds = Bounds(least, least + more)
    buckets = [{"batch": size} for size in sorted(sizes) if bounds.min <= size <= bounds.max]
    rows = cases.chunks(count, "batch", bounds, buckets)
    covered = {index for start, size in rows for index in range(start, start + size)}
    assert covered == set(range(count))
    if count >= least:
        assert all(bounds.min <= size <= bounds.max for _, size in rows)


def test_chunks_hold_every_bucket_and_two_other_sizes() -> None:
    rows = cases.chunks(200, "batch", Bounds(1, 64), [{"batch": 1}, {"batch": 16}])
    assert {size for _, size in rows} >= {1, 16, 64, 5}


def test_random_sizes_are_every_bucket_the_largest_and_an_odd_one() -> None:
    sizes = cases.sizes_to_try({"m": Bounds(1, 128)}, [{"m": 128}, {"m": 1}])
    assert sizes == [{"m": 128}, {"m": 1}, {"m": 127}, {"m": 5}]


def test_without_dims_there_is_one_random_case() -> None:
    assert cases.sizes_to_try({}, []) == [{}]


def test_one_dict_is_split_along_its_leading_dim(tmp_path: Path) -> None:
    given_ = function(tmp_path, "return {'x': np.ones((30, 3), np.float32)}")
    made = cases.make(io(), cases.real_inputs(given_, None), {})
    real = [case.sizes["batch"] for case in made if case.kind == "real"]
    assert real == [1, 16, 5, 8]
    assert [case.sizes["batch"] for case in made if case.kind == "random"] == [1, 16, 64, 5]


def test_a_list_of_dicts_is_taken_call_by_call(tmp_path: Path) -> None:
    body = "return [{'x': np.full((n, 3), n, np.float32)} for n in (2, 7)]"
    made = cases.make(io(), cases.real_inputs(function(tmp_path, body), None), {})
    assert [case.sizes for case in made if case.kind == "real"] == [{"batch": 2}, {"batch": 7}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise OSError('no such file')", r"inputs\.py: fn\(\) raised OSError: no such file"),
        ("return 3", r"inputs\.py: fn\(\) returned a int"),
        ("return {'y': np.ones((2, 3), np.float32)}", r"gave inputs \['y'\], the model takes"),
        ("return {'x': np.ones((2, 3))}", r"is float64\[1, 3\], the model takes float32\[batch"),
        ("return {'x': np.ones((2, 4), np.float32)}", r"is float32\[1, 4\], the model takes"),
        ("return {'x': np.full((2, 3), np.nan, np.float32)}", "holds 3 NaN or infinite values"),
        ("return [{'x': np.ones((65, 3), np.float32)}]", r"batch is 65, outside 1\.\.64"),
        ("return {'x': np.ones((0, 3), np.float32)}", "gave no samples"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_their_function(
    tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        cases.make(io(), cases.real_inputs(function(tmp_path, body), None), {})


def test_the_input_function_is_called_once(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    log.mkdir()
    call = f"__import__('tempfile').mkdtemp(dir={str(log)!r})"
    given_ = function(tmp_path, f"{call}; return {{'x': np.ones((99, 3), np.float32)}}")
    cases.make(io(), cases.real_inputs(given_, None), {})
    assert len(list(log.iterdir())) == 1


def test_a_broken_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(StageError, match=r"data\.npz is no readable \.npz"):
        cases.real_inputs(None, File(path=str(path), sha256="0"))


def test_random_integers_stay_in_the_range_of_the_real_ones(tmp_path: Path) -> None:
    body = "return {'x': np.array([[3, 4, 5]], np.int32)}"
    made = cases.make(io("int32"), cases.real_inputs(function(tmp_path, body), None), {})
    values = np.concatenate([case.inputs["x"].ravel() for case in made if case.kind == "random"])
    assert set(values) == {3, 4, 5}


def test_integers_without_a_range_are_a_mistake_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match="which values are valid"):
        cases.make(io("int32"), None, {})
    made = cases.make(io("int32"), None, {"x": (0, 9)})
    assert {case.inputs["x"].dtype for case in made} == {np.dtype("int32")}


def test_a_range_of_an_unknown_input_offers_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no input 'xs'") as caught:
        cases.make(io(), None, {"xs": (0, 1)})
    assert (caught.value.field, caught.value.hint) == ("validation.random.xs", "did you mean 'x'?")


def test_random_inputs_are_the_same_every_time() -> None:
    first, second = (cases.make(io(), None, {}) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.inputs["x"], other.inputs["x"])
