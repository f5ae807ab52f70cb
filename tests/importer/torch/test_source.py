"""The import stage on a recipe's function and on `.pt2` files, and the reference after it."""

from __future__ import annotations

import hashlib
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tapml.errors import RecipeError, StageError
from tapml.stage import Context, File, Inputs, PythonFunction
from tapml_stages import codec
from tapml_stages.importer.stage import DimBounds, Import, InputSpec
from tapml_stages.reference.runners import runner

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NET = """
import torch
from torch import Tensor, nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.head = nn.Linear(8, 3)
        self.scale = nn.Buffer(torch.tensor([0.5, 2.0, 1.0]), persistent=False)

    def forward(self, ids, mask=None, reverse=False):
        x = self.embed(ids).mean(1)
        logits = self.head(x) * self.scale
        return {"logits": logits, "pooled": x, "best": logits.argmax(-1)}

def net():
    torch.manual_seed(0)
    return Net(), {"ids": torch.randint(0, 100, (2, 5)), "reverse": False}

def fixed():
    return nn.Sequential(nn.Linear(5, 3)), (torch.ones(4, 5),)

class Unrolled(nn.Module):
    def forward(self, x):
        for row in range(x.shape[0]):
            x = x * (row + 1)
        return x

class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x

def unrolled(): return Unrolled(), (torch.ones(4, 5),)
def branching(): return Branching(), (torch.ones(4, 5),)
def no_pair(): return nn.Linear(2, 2)
def wrong_inputs(): return Net(), (torch.ones(2, 5), None, True, 3)
def raises(): raise OSError("no weights here")
"""

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, context: Context) -> Load:
    """Imports a function of NET, or a file."""

    def run(
        function: str = "net",
        file: Path | None = None,
        inputs: dict[str, tuple[tuple[int | str, ...], str]] | None = None,
        keep: tuple[str, ...] = (),
        **dims: tuple[int, int],
    ) -> Any:
        python = None
        if file is None:
            path = tmp_path / "recipe" / "net.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(NET)
            digest = hashlib.sha256(NET.encode()).hexdigest()
            python = PythonFunction(path=str(path), function=function, sha256=digest)
        stage = Import(
            source="torch",
            python=python,
            file=None if file is None else File(path=str(file), sha256="0"),
            signature={n: InputSpec(shape=s, dtype=d) for n, (s, d) in (inputs or {}).items()},
            dims={name: DimBounds(min=low, max=high) for name, (low, high) in dims.items()},
            keep=keep,
        )
        return stage.run(Inputs({}), context).artifacts

    return run


def saved(folder: Path, *, dynamic: bool = True) -> Path:
    """A `.pt2` of a dense layer, its batch dynamic."""
    module = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.ReLU())
    dims = ({0: torch.export.Dim("rows", min=1, max=64)},) if dynamic else None
    exported = torch.export.export(module.eval(), (torch.ones(4, 5),), dynamic_shapes=dims)
    torch.export.save(exported, folder / "model.pt2")
    return folder / "model.pt2"


IDS = {"ids": (("batch", "length"), "int64")}
DIMS = {"batch": (1, 8), "length": (1, 32)}


@pytest.mark.parametrize("optimize", [True, False])
def test_the_reference_runs_the_recipes_module_with_other_weights(
    load: Load, optimize: bool
) -> None:
    outputs = load(inputs=IDS, keep=("logits", "best"), **DIMS)
    facts = codec.read_json(outputs["source"] / "source.json")
    assert [one["name"] for one in facts["io"]["outputs"]] == ["logits", "best"]
    weights = codec.read_weights(outputs["weights"])
    weights = {name: value * 2 for name, value in weights.items()}
    run = runner.make(facts, outputs["source"], 1)(weights, optimize=optimize)
    ids = np.random.default_rng(1).integers(0, 100, (3, 7))
    answer = run({"ids": ids})
    pooled = weights["embed.weight"].astype(np.float64)[ids].mean(1)
    want = (pooled @ weights["head.weight"].T + weights["head.bias"]) * weights["scale"]
    np.testing.assert_allclose(answer["logits"], want, rtol=0, atol=1e-5)
    assert answer["best"].dtype == np.int64
    assert (answer["best"] == want.argmax(-1)).all()


def test_a_saved_program_is_imported_and_run_by_the_reference(load: Load, tmp_path: Path) -> None:
    path = saved(tmp_path)
    outputs = load(file=path, inputs={"input": (("batch", 5), "float32")}, batch=(1, 64))
    facts = codec.read_json(outputs["source"] / "source.json")
    assert facts["io"]["inputs"] == [{"name": "input", "shape": ["batch", 5], "dtype": "float32"}]
    weights = {n: value * 3 for n, value in codec.read_weights(outputs["weights"]).items()}
    assert sorted(weights) == ["0.bias", "0.weight"]
    x = np.random.default_rng(2).standard_normal((9, 5), dtype=np.float32)
    for optimize in (True, False):
        run = runner.make(facts, outputs["source"], 1)(weights, optimize=optimize)
        want = np.maximum(x.astype(np.float64) @ weights["0.weight"].T + weights["0.bias"], 0)
        np.testing.assert_allclose(run({"input": x})["output"], want, rtol=0, atol=1e-5)


def test_a_dynamic_axis_may_be_fixed_by_the_recipe(load: Load, tmp_path: Path) -> None:
    outputs = load(file=saved(tmp_path), inputs={"input": ((7, 5), "float32")})
    io = codec.read_json(outputs["program"] / "io.json")
    assert [one["shape"] for one in io["outputs"]] == [[7, 3]]


@pytest.mark.parametrize(
    ("inputs", "dims", "field", "message"),
    [
        ({"id": (("batch", 5), "int64")}, {"batch": (1, 8)}, "model.inputs.id", "no input 'id'"),
        (
            {"ids": (("batch", 5), "int32")},
            {"batch": (1, 8)},
            "model.inputs.ids.dtype",
            "not int32",
        ),
        ({"ids": (("batch",), "int64")}, {"batch": (1, 8)}, "model.inputs.ids.shape", "2 dims"),
        (
            {"ids": (("batch", 6), "int64")},
            {"batch": (1, 8)},
            "model.inputs.ids.shape",
            "dim 1 is 5",
        ),
        (IDS, {"batch": (1, 1), "length": (1, 32)}, "model.dims.batch", "can only be 1"),
    ],
)
def test_what_does_not_fit_is_told_by_its_field(
    load: Load, inputs: Any, dims: Any, field: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as told:
        load(inputs=inputs, **dims)
    errors = getattr(told.value, "errors", (told.value,))
    assert field in [one.field for one in errors]


def test_an_unknown_output_is_told_with_those_there(load: Load) -> None:
    with pytest.raises(RecipeError, match="no output 'logit'") as told:
        load(inputs=IDS, keep=("logit",), **DIMS)
    assert told.value.field == "model.outputs.0"
    assert "logits" in told.value.hint


ROWS = {"x": (("rows", 5), "float32")}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("unrolled", "fixes dim 'rows'"),
        ("branching", "branches on data"),
        ("no_pair", "returned a Linear"),
        ("wrong_inputs", r"forward\(\) does not take its inputs"),
        ("raises", "raised OSError: no weights here"),
    ],
)
def test_a_module_that_cannot_be_exported_is_told_why(
    load: Load, function: str, message: str
) -> None:
    with pytest.raises(StageError, match=message):
        load(function, inputs=ROWS, rows=(1, 8))


# --- files that would run code, or take memory


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.path,))  # pyright: ignore[reportReturnType]  # as pickle wants it


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with members changed, stored as torch stores them."""
    with zipfile.ZipFile(path) as source:
        members = {name: change(name, source.read(name)) for name in source.namelist()}
    target = path.with_name("hostile.pt2")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return target


@pytest.mark.parametrize("member", ["sample_inputs/model.pt", "weights/weight_0"])
def test_a_pickle_inside_a_saved_program_is_never_run(
    load: Load, tmp_path: Path, member: str
) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))

    def change(name: str, data: bytes) -> bytes:
        if name.endswith(member):
            return trap
        if name.endswith("weights_config.json") and member.startswith("weights"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return data

    path = rewritten(saved(tmp_path), change)
    before = time.monotonic()
    with pytest.raises(StageError, match=r"is refused|cannot be loaded"):
        load(file=path, inputs={"input": (("batch", 5), "float32")}, batch=(1, 64))
    assert not sprung.exists()
    assert time.monotonic() - before < 60  # 5 s on a machine of its own


def test_torchs_own_loader_finds_no_pickle_to_run(tmp_path: Path) -> None:
    """The second lock: what the checks of the file would miss."""
    from torch.export.pt2_archive import _package as package

    from tapml_stages import torch_model

    sprung = tmp_path / "sprung"
    trap = tmp_path / "trap.pt"
    torch.save(Trap(sprung), trap)
    with torch_model._no_pickles():
        with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
            torch.load(trap, weights_only=False)
        with pytest.raises(StageError, match="may run code"):
            vars(package)["pickle"].loads(pickle.dumps(Trap(sprung)))
        with pytest.raises(StageError, match="may run code"):
            torch._C._pickle_load_obj(b"")
        from torch._export.serde.serialize import deserialize_torch_artifact

        with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
            deserialize_torch_artifact(trap.read_bytes())
    assert not sprung.exists()
    assert torch.load.__module__ == "torch.serialization"  # all as it was


def test_sizes_in_a_saved_program_are_not_run_as_python(load: Load, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    code = f"__import__('pathlib').Path('{sprung}').touch()".encode()

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        changed = re.sub(rb'("expr_str": *)"[^"]*"', rb'\1"' + code + b'"', data)
        assert code in changed
        return changed

    path = rewritten(saved(tmp_path), change)
    with pytest.raises(StageError, match="would be run as Python"):
        load(file=path, inputs={"input": (("batch", 5), "float32")}, batch=(1, 64))
    assert not sprung.exists()


def test_a_zip_bomb_is_refused(load: Load, tmp_path: Path) -> None:
    path = saved(tmp_path)
    target = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            data = bytes(1 << 28) if name.endswith("weight_0") else source.read(name)
            out.writestr(name, data)
    assert target.stat().st_size < 1 << 20
    with pytest.raises(StageError, match="torch packs nothing"):
        load(file=target, inputs={"input": (("batch", 5), "float32")}, batch=(1, 64))


def test_a_pickle_of_torch_save_is_refused_with_advice(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(StageError, match=r"pickle of torch\.save") as told:
        load(file=path)
    assert "torch.export.save" in told.value.hint
