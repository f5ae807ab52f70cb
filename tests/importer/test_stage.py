from __future__ import annotations

import pytest
from pydantic import ValidationError

from tapml.errors import RecipeError, RecipeErrors
from tapml_stages.importer.stage import DimBounds, InputSpec, Model, blocks, check_dims


def model(**changes: object) -> Model:
    fields: dict[str, object] = {
        "source": "onnx",
        "path": "model.onnx",
        "inputs": {"x": InputSpec(shape=("batch", 8), dtype="float32")},
        "dims": {"batch": DimBounds(min=1, max=16)},
        "buckets": ({"batch": 16},),
    }
    return Model.model_validate({**fields, **changes})


def test_dims_and_buckets_that_fit_pass() -> None:
    check_dims(model())


def test_a_symbol_without_bounds_is_an_error_at_its_place() -> None:
    with pytest.raises(RecipeErrors, match=r"'batch' has no bounds") as caught:
        check_dims(model(dims={"bath": DimBounds(max=16)}))
    assert [error.field for error in caught.value.errors] == [
        "model.inputs.x.shape.0",
        "model.dims.bath",
        "model.buckets.0.batch",
    ]
    assert "did you mean 'batch'?" in caught.value.errors[1].hint


def test_a_bucket_outside_the_bounds_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"size 32 is outside its bounds 1\.\.16") as caught:
        check_dims(model(buckets=({"batch": 1}, {"batch": 32})))
    assert caught.value.field == "model.buckets.1.batch"


@pytest.mark.parametrize("dtype", ["int46", "float8", "uint", "bfloat16"])
def test_an_input_is_of_a_type_that_there_is(dtype: str) -> None:
    with pytest.raises(ValidationError, match=r"dtype\n.*'float32'"):
        InputSpec.model_validate({"shape": (1, 4), "dtype": dtype})


def test_a_source_demands_its_own_field() -> None:
    with pytest.raises(ValidationError, match="operator needs `python`"):
        model(source="operator")


def gguf(**changes: object) -> Model:
    return Model.model_validate({"source": "gguf", "path": "model.gguf", **changes})


def test_blocks_are_kept_but_where_the_recipe_prunes_or_says_otherwise() -> None:
    assert blocks(gguf(), pruned=False) == "keep"
    assert blocks(gguf(), pruned=True) == "dequantize"
    assert blocks(gguf(blocks="dequantize"), pruned=False) == "dequantize"
    assert blocks(model(), pruned=False) == "dequantize"


def test_blocks_that_are_to_be_kept_and_pruned_are_an_error() -> None:
    with pytest.raises(RecipeError, match="pruned can not stay the integers") as caught:
        blocks(gguf(blocks="keep"), pruned=True)
    assert caught.value.field == "model.blocks"


def test_only_files_that_have_blocks_keep_them() -> None:
    with pytest.raises(ValidationError, match="source: onnx takes no `blocks`"):
        model(blocks="keep")


def test_bounds_are_ordered() -> None:
    with pytest.raises(ValidationError, match="min 4 is above max 2"):
        DimBounds(min=4, max=2)
