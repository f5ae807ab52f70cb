"""The wheel, the editable install and a bundle, each in a fresh environment, away from the
repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from small_programs import HOST, linear_program, linear_weights, write_inputs

pytestmark = pytest.mark.install
ROOT = Path(__file__).parents[2]


def run(command: list[str | Path], cwd: Path) -> str:
    answer = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def fresh_environment(folder: Path) -> Path:
    """A new environment; returns its Python."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def pip_install(python: Path, *what: str, cwd: Path) -> None:
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--constraint", str(ROOT / "constraints.txt"), *what], cwd)


@pytest.fixture(scope="module")
def somewhere_else(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `stages` package of its own, which must not be taken for ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "stages").mkdir()
    (folder / "stages" / "__init__.py").write_text("raise ImportError('the wrong stages')\n")
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
    run(build, folder)
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_install_works_outside_the_repository(
    kind: str, wheel: Path, somewhere_else: Path, tmp_path: Path
) -> None:
    python = fresh_environment(tmp_path / "env")
    what = ["--editable", f"{ROOT}[recipes]"] if kind == "editable" else [f"{wheel}[recipes]"]
    pip_install(python, *what, cwd=somewhere_else)
    tapml = python.with_name("tapml")
    assert "run" in run([tapml, "--help"], somewhere_else)
    run([tapml, "new", "--from", "magika", "mine"], somewhere_else)
    (recipe,) = (somewhere_else / "mine").glob("*.yaml")
    plan = json.loads(run([tapml, "plan", recipe, "--json"], somewhere_else))
    assert plan["stages"][0]["state"] == "run"
    shutil.rmtree(somewhere_else / "mine")


def test_a_bundle_runs_with_the_tvm_runtime_and_numpy_alone(tmp_path: Path) -> None:
    import logging

    import numpy as np

    from tapml.stage import Context
    from tapml_stages.codegen.stage import Codegen

    inputs = write_inputs(tmp_path, linear_program(), linear_weights())
    (tmp_path / "work").mkdir()
    ctx = Context(tmp_path / "work", logging.getLogger("test"), tmp_path / "db")
    stage = Codegen(target=HOST, opt_level=2, recipe_name="linear")
    bundle = stage.run(inputs, ctx).artifacts["bundle"]
    python = fresh_environment(tmp_path / "env")
    pip_install(python, "apache-tvm", "apache-tvm-ffi", "numpy", cwd=tmp_path)
    np.savez(tmp_path / "in.npz", x=np.ones((3, 6), "float32"))
    run([python, bundle / "run.py", tmp_path / "in.npz", tmp_path / "out.npz"], tmp_path)
    assert np.load(tmp_path / "out.npz")["y"].shape == (3, 5)
    assert "linear" in run([python, bundle / "run.py"], tmp_path)
    run(
        [python, "-c", "import importlib.util as u, sys; sys.exit(bool(u.find_spec('tapml')))"],
        tmp_path,
    )
