"""Weights in files beside the model: read where they lie, keyed, and refused when out of bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tapml import recipe
from tapml.errors import RecipeError, StageError
from tapml.formats import onnx_wire
from tapml.stage import File, Inputs
from tapml_stages import codec, onnx_file
from tapml_stages.importer.stage import Import

MakeModel = Callable[..., ModelProto]
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((128, 64), dtype=np.float32)


@pytest.fixture
def beside(tmp_path: Path, make_model: MakeModel) -> Callable[..., Path]:
    """A model whose weight is said to lie in `location`; writes weights.bin."""

    def write(location: str = "weights.bin", offset: int = 0, length: int | None = None) -> Path:
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")
        model = make_model([node], {"x": [2, 128]}, {"w": WEIGHT})
        (tensor,) = model.graph.initializer
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        size = WEIGHT.nbytes if length is None else length
        for key, value in (("location", location), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"\0" * offset + WEIGHT.tobytes())
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder / "model.onnx"

    return write


def test_weights_are_views_of_the_mapped_file(beside: Callable[..., Path]) -> None:
    model = onnx_file.read(beside(offset=4096))
    array = model.array(model.proto.graph.initializer[0])
    assert not array.flags.owndata
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, WEIGHT)


def test_large_tensors_of_the_file_itself_never_pass_through_protobuf(
    tmp_path: Path, make_model: MakeModel
) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")
    content = make_model([node], {"x": [2, 128]}, {"w": WEIGHT}).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content)
    assert len(onnx_wire.skeleton(tmp_path, content)) < 1000 < WEIGHT.nbytes
    model = onnx_file.read(tmp_path / "model.onnx")
    np.testing.assert_array_equal(model.array(model.proto.graph.initializer[0]), WEIGHT)


def test_what_is_written_onnx_reads_with_other_weights(
    beside: Callable[..., Path], tmp_path: Path
) -> None:
    model = onnx_file.read(beside())
    path = onnx_file.write(model, tmp_path / "out", {"w": -WEIGHT, "unknown": WEIGHT})
    loaded = onnx.load(path)
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), -WEIGHT)


@pytest.mark.parametrize(
    ("location", "offset", "length", "why"),
    [
        ("../outside.bin", 0, None, "is no file of it"),
        ("link.bin", 0, None, "leads out of the model's folder"),
        ("/etc/hostname", 0, None, "is no file of it"),
        ("", 0, None, "is no file of it"),
        ("missing.bin", 0, None, "cannot be read: No such file"),
        ("weights.bin", 0, 2 * WEIGHT.nbytes, "it has 32768 bytes"),
        ("weights.bin", 0, 100, "100 bytes there, 32768 in float32"),
    ],
)
def test_a_path_or_place_out_of_bounds_is_refused_naming_tensor_and_file(
    beside: Callable[..., Path], location: str, offset: int, length: int | None, why: str
) -> None:
    path = beside(location, offset, length)
    (path.parents[1] / "outside.bin").write_bytes(WEIGHT.tobytes())
    (path.parent / "link.bin").symlink_to("../outside.bin")
    with pytest.raises(StageError, match=why) as caught:
        onnx_file.read(path)
    assert "tensor 'w'" in caught.value.message
    assert repr(location) in caught.value.message


@pytest.mark.parametrize(
    ("dtype", "why"), [(999, "of unknown type 999"), (TensorProto.STRING, "texts cannot lie there")]
)
def test_data_outside_of_no_numbers_are_refused(
    beside: Callable[..., Path], dtype: int, why: str
) -> None:
    path = beside()
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.initializer[0].data_type = dtype
    path.write_bytes(model.SerializeToString())
    with pytest.raises(StageError, match=why):
        onnx_file.read(path)


def test_data_that_do_not_fit_their_shape_are_refused_in_the_file_too(tmp_path: Path) -> None:
    """Of a Constant in a branch, which nothing reads before shapes are folded."""
    value = TensorProto(name="c", data_type=TensorProto.INT64, dims=[3], int64_data=[1, 2])
    body = helper.make_graph([helper.make_node("Constant", [], ["o"], value=value)], "b", [], [])
    choose = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    model = helper.make_model(helper.make_graph([choose], "g", [], []))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StageError, match=r"model\.onnx.*'c'"):
        onnx_file.read(tmp_path / "model.onnx")


def test_a_shape_without_end_is_refused_before_protobuf_reads_it(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1] * 100_000)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StageError, match=r"model\.onnx is refused at byte \d+: a shape of more"):
        onnx_file.read(tmp_path / "model.onnx")


def test_a_file_beside_the_model_is_found_without_reading_the_model(
    beside: Callable[..., Path],
) -> None:
    path = beside()
    assert onnx_wire.external_files(path, onnx_wire.mapped(path)) == {"weights.bin": "w"}


def test_the_stage_imports_it(beside: Callable[..., Path], context: object, tmp_path: Path) -> None:
    stage = Import(source="onnx", file=File(path=str(beside()), sha256="0"))
    paths = stage.run(Inputs({}), context).artifacts  # type: ignore[arg-type]
    np.testing.assert_array_equal(codec.read_weights(paths["weights"])["w"], WEIGHT)
    assert {one.name for one in paths["source"].iterdir()} >= {"model.onnx", "weights.bin"}


RECIPE = """
version: 1
name: beside
workflow: deploy
model: {source: onnx, path: model/model.onnx, inputs: {x: {shape: [2, 128], dtype: float32}}}
target: {preset: cpu}
"""


def planned(folder: Path, text: str = RECIPE) -> Import:
    (folder / "recipe.yaml").write_text(text)
    return Import.from_recipe(recipe.load(folder / "recipe.yaml"))


def test_its_digest_is_in_the_key(beside: Callable[..., Path], tmp_path: Path) -> None:
    weights = beside().with_name("weights.bin")
    before = planned(tmp_path).model_dump()
    assert set(before["files"]) == {"weights.bin"}
    weights.write_bytes((WEIGHT + 1).tobytes())
    after = planned(tmp_path).model_dump()
    assert after["files"] != before["files"]
    assert after["file"] == before["file"]


def test_one_outside_is_a_mistake_that_a_plan_tells(
    beside: Callable[..., Path], tmp_path: Path
) -> None:
    beside("../outside.bin")
    with pytest.raises(RecipeError, match="tensor 'w' of the model has its data in") as caught:
        planned(tmp_path)
    assert caught.value.field == "model.path"


def test_an_input_that_the_model_lacks_is_a_mistake_that_a_plan_tells(
    beside: Callable[..., Path], tmp_path: Path
) -> None:
    beside()
    with pytest.raises(RecipeError, match="the model has no input 'xx'") as told:
        planned(tmp_path, RECIPE.replace("{x:", "{xx:"))
    assert told.value.field == "model.inputs.xx"
    assert "'x'" in (told.value.hint or "")
    inputs = "{x: {shape: [2, 128], dtype: float32}}"
    both = f"{{a: {inputs[4:-1]}, b: {inputs[4:-1]}}}"
    with pytest.raises(RecipeError, match=r"(?s)no input 'a'.*no input 'b'"):
        planned(tmp_path, RECIPE.replace(inputs, both))
