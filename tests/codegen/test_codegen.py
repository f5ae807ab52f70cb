"""Codegen on a small program with a bucket: choices applied, weights packed once, a bundle that
refuses what it was not built for.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from small_programs import HOST, linear, linear_program, linear_weights, write_inputs

from tapml.errors import StageError
from tapml.stage import Context
from tapml_stages import records
from tapml_stages.codegen.stage import Codegen


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codegen")
    inputs = write_inputs(folder, linear_program(), linear_weights())
    (folder / "work").mkdir()
    ctx = Context(folder / "work", logging.getLogger("test"), folder / "db")
    stage = Codegen(target=HOST, opt_level=2, recipe_name="linear")
    return Path(stage.run(inputs, ctx).artifacts["bundle"])


def bundle_module(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle_run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_bundle_computes_what_numpy_computes_at_buckets_and_elsewhere(
    bundle_folder: Path, batch: int
) -> None:
    bundle = bundle_module(bundle_folder).load(bundle_folder)
    x = np.random.default_rng(batch).standard_normal((batch, 6)).astype("float32")
    np.testing.assert_allclose(bundle(x=x)["y"], linear(x, linear_weights()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 6), "float32"), "batch is 1..8, got 9"),
        (np.zeros((2, 6), "float64"), "dtype is float32, got float64"),
        ([[0.0] * 6], "x: takes a NumPy array, got a list"),
        (np.zeros((2, 7), "float32"), r"shape is \['batch', 6\], got \[2, 7\]"),
    ],
)
def test_a_bundle_refuses_in_words_what_it_was_not_built_for(
    bundle_folder: Path, array: object, message: str
) -> None:
    run = bundle_module(bundle_folder)
    with pytest.raises(run.BundleError, match=message):
        run.load(bundle_folder)(x=array)


def test_a_bundle_refuses_a_wrong_input_name(bundle_folder: Path) -> None:
    run = bundle_module(bundle_folder)
    with pytest.raises(run.BundleError, match="inputs are x; got y"):
        run.load(bundle_folder)(y=np.zeros((1, 6), "float32"))


def test_a_bundle_refuses_a_cpu_without_its_features(bundle_folder: Path) -> None:
    run = bundle_module(bundle_folder)
    manifest = {**run.read_manifest(bundle_folder), "cpu_features": ["avx2", "avx9000"]}
    with pytest.raises(run.BundleError, match="this CPU has no avx9000"):
        run.check_cpu(manifest)


def test_a_damaged_file_is_named_before_anything_is_loaded(
    bundle_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle_folder, tmp_path / "copy"))
    data = bytearray((copy / "lib.so").read_bytes())
    data[100] ^= 1
    (copy / "lib.so").write_bytes(data)
    run = bundle_module(copy)
    with pytest.raises(run.BundleError, match=r"lib\.so is damaged"):
        run.load(copy)


def test_a_bundle_runs_from_the_shell_with_the_runtime_alone(
    bundle_folder: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((3, 6), "float32"))
    command = [sys.executable, bundle_folder / "run.py", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 5)


def test_loading_a_bundle_leaves_the_environment_of_later_processes_alone(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVM_USE_RUNTIME_LIB", raising=False)
    bundle_module(bundle_folder).load(bundle_folder)
    assert "TVM_USE_RUNTIME_LIB" not in os.environ


def test_the_manifest_says_what_the_bundle_takes_and_gives(bundle_folder: Path) -> None:
    manifest = json.loads((bundle_folder / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "x", "shape": ["batch", 6], "dtype": "float32"}]
    assert manifest["dims"] == {"batch": {"min": 1, "max": 8}}
    assert manifest["params"]["bytes"] == 4 * (5 * 6 + 5)


def test_a_choice_of_a_record_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path, linear_program(), linear_weights())
    records.Choices((records.KernelChoice("transpose", "no-such-record", ()),)).save(
        inputs["choices"]
    )
    (tmp_path / "work").mkdir()
    ctx = Context(tmp_path / "work", logging.getLogger("test"), tmp_path / "db")
    with pytest.raises(StageError, match="record no-such-record is not among the records"):
        Codegen(target=HOST, opt_level=2, recipe_name="linear").run(inputs, ctx)
