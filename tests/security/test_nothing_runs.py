"""Looking at a stranger's recipe runs nothing of theirs; what `run` would run is named before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tapml import recipe as recipes
from tapml.errors import RecipeError
from tapml.stage import PythonFunction

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
LOOKS = (
    ("validate",),
    ("plan",),
    ("plan", "--json"),
    ("show",),
    ("show", "--resolved"),
    ("explain",),
)
Cli = Callable[..., tuple[int, str, str]]


EVERY = [  # each look at one recipe, one look at each recipe; the others are slow together
    pytest.param(
        look,
        name,
        id=f"{' '.join(look)}-{name}",
        marks=() if name == "magika" or look == ("plan",) else pytest.mark.slow,
    )
    for look in LOOKS
    for name in SHIPPED
]


@pytest.mark.parametrize(("look", "name"), EVERY)
def test_looking_at_a_recipe_runs_no_python_of_it(
    cli: Cli, ran: Callable[[], bool], look: tuple[str, ...], name: str
) -> None:
    stage = ("import",) if look == ("explain",) else ()
    code, _, err = cli(look[0], f"{name}.yaml", *stage, *look[1:])
    assert code == 0, err
    assert not ran()


def test_python_of_a_recipe_would_tell_if_it_ran(stranger: Path, ran: Callable[[], bool]) -> None:
    path = stranger / "magika_inputs.py"
    PythonFunction(path=str(path), function="files", sha256="0" * 64).load()
    assert ran()


def test_a_package_that_a_recipe_points_at_is_not_imported(
    cli: Cli, stranger: Path, ran: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = stranger / "site" / "canary_package"
    package.mkdir(parents=True)
    mark = f"open({str(stranger / 'pwned')!r}, 'w').close()\n"
    (package / "__init__.py").write_text(mark)
    (package / "build.py").write_text(mark + "def f(): ...\n")
    monkeypatch.syspath_prepend(str(stranger / "site"))
    option = "--set=validation.inputs.python=${package:canary_package}/build.py:f"
    code, out, err = cli("plan", "magika.yaml", option)
    assert code == 0, err
    assert "canary_package/build.py:f" in out
    assert not ran()


def test_a_model_is_digested_and_not_read(cli: Cli, stranger: Path) -> None:
    (stranger / "m.onnx").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.")
    code, _, err = cli("plan", "magika.yaml", "--set=model.path=m.onnx")
    assert code == 0, err


def test_planning_imports_no_reader_of_models(stranger: Path) -> None:
    script = (
        "import sys, tapml.cli\n"
        "sys.argv = ['tapml', 'plan', 'magika.yaml']\n"
        "try: tapml.cli.main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "readers = {'tvm', 'onnx', 'onnxruntime', 'torch', 'mlflow', 'magika'}\n"
        "print('read by', *sorted(readers & {*sys.modules}))"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "read by"


@pytest.mark.parametrize(
    ("name", "functions"),
    [
        ("operator_sparse", ["operator_sparse.py:linear"]),
        ("magika", ["magika_inputs.py:files", "magika_inputs.py:same_label"]),
    ],
)
def test_the_plan_names_the_python_that_a_run_would_run(
    cli: Cli, name: str, functions: list[str]
) -> None:
    code, out, err = cli("plan", f"{name}.yaml")
    assert code == 0, err
    for function in functions:
        assert function in out


def test_yaml_makes_no_objects(stranger: Path, ran: Callable[[], bool]) -> None:
    text = "version: 1\nname: x\nx-a: !!python/object/apply:builtins.open [pwned, w]\n"
    (stranger / "tagged.yaml").write_text(text)
    with pytest.raises(RecipeError, match="tag"):
        recipes.load(stranger / "tagged.yaml")
    assert not ran()
