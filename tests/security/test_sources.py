"""Nothing in the sources can run what it reads: no pickle, no eval, no unsafe loader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("tapml", "stages", "recipes", "benchmarks", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
MODULES = {"pickle", "cPickle", "_pickle", "dill", "shelve", "marshal", "cloudpickle", "jsonpickle"}
CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "joblib.load",
    "joblib.dump",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "numpy.fromfile",
}
RUNS_FILES = {  # where a file is run on purpose: after its digest was checked, or the author's own
    "tapml/stage.py",  # PythonFunction.load, only in a stage's `run`
    "tapml/bundle.py",  # after `verify`
    "stages/platforms/runner.py",  # the bundle that was just built
    "stages/tensorir/tensorize/x86.py",  # a module of the TVM that is installed
}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a dotted name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> Iterator[str]:
    """What in a source could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names if one.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield module
            case ast.Call(func=func, keywords=keywords):
                name = name_of(func)
                given = {one.arg: one.value for one in keywords}
                if name in CALLS:
                    yield name
                if name in ("np.load", "numpy.load"):
                    allowed = given.get("allow_pickle")
                    if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                        yield name
                if name == "torch.load":
                    only = given.get("weights_only")
                    if not (isinstance(only, ast.Constant) and only.value is True):
                        yield name
                if name.startswith("subprocess."):
                    shell = given.get("shell")
                    if shell is not None and not (
                        isinstance(shell, ast.Constant) and shell.value is False
                    ):
                        yield f"{name} with a shell"
                if name.endswith((".extractall", ".unpack_archive")):
                    yield name
                if name.endswith(".exec_module"):
                    yield "exec_module"
            case _:
                pass


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_run_what_it_reads(path: Path) -> None:
    found = set(dangers(path.read_text(encoding="utf-8")))
    if str(path.relative_to(ROOT)) in RUNS_FILES:
        assert "exec_module" in found
        found.remove("exec_module")
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "yaml.load(x)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "joblib.load(x)",
        "subprocess.run(x, shell=True)",
        "tar.extractall(x)",
        "spec.loader.exec_module(m)",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert list(dangers(source))
