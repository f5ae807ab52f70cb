"""Inputs of the recipe against those of the model, whatever holds it."""

from __future__ import annotations

import pytest

from tapml.errors import RecipeError, RecipeErrors
from tapml_stages.importer.signature import Wanted, match_inputs

FILE = {"x": Wanted(("N", 8), "float32")}
EXAMPLE = {"x": Wanted((2, 8), "float32")}


def test_a_wrong_input_name_offers_the_nearest() -> None:
    with pytest.raises(RecipeErrors, match="no input 'xx'") as caught:
        match_inputs(FILE, {"xx": Wanted(("batch", 8), "float32")}, dims=["batch"])
    first, second = caught.value.errors
    assert (first.field, first.hint) == ("model.inputs.xx", "did you mean 'x'?")
    assert "input 'x' (float32[N, 8]) has no shape in the recipe" in second.message


@pytest.mark.parametrize(
    ("shape", "dtype", "field", "message"),
    [
        (("batch", 9), "float32", "shape", "dim 1 is 8 in the model, not 9"),
        (("batch", "n"), "float32", "shape", "dim 1 is 8 in the model, not n"),
        (("batch", 8, 1), "float32", "shape", "has 2 dims, not 3"),
        (("batch", 8), "int32", "dtype", "is float32, not int32"),
    ],
)
def test_a_shape_or_dtype_that_the_file_contradicts_is_an_error(
    shape: tuple[int | str, ...], dtype: str, field: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        match_inputs(FILE, {"x": Wanted(shape, dtype)}, hint="what to do")
    assert caught.value.field == f"model.inputs.x.{field}"
    assert caught.value.hint == ("what to do" if "dim 1" in message else "")


def test_a_dim_may_stand_for_a_size_of_an_example_or_one_that_does_not_count() -> None:
    wanted = {"x": Wanted(("batch", "n"), "float32")}
    assert match_inputs(EXAMPLE, wanted, examples=True) == wanted
    assert match_inputs(EXAMPLE, wanted, free=["x"]) == wanted
    with pytest.raises(RecipeError, match="dim 0 is 2 in the module, not 3"):
        match_inputs(EXAMPLE, {"x": Wanted((3, 8), "float32")}, what="the module", examples=True)


def test_without_inputs_in_the_recipe_the_models_fixed_shapes_are_taken() -> None:
    assert match_inputs(EXAMPLE, {}) == EXAMPLE
    assert match_inputs(FILE, {}, dims=["N"]) == FILE
    with pytest.raises(RecipeError, match="has no shape in the recipe"):
        match_inputs(FILE, {})


def test_a_size_of_zero_is_refused() -> None:
    with pytest.raises(RecipeError, match="input 'x' has a dim of size 0 in the model"):
        match_inputs({"x": Wanted((0, 8), "float32")}, {})
