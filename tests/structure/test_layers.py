"""Imports go one way: cli → engine → contract; rooms → shared → bottom; no room imports another."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = sorted(p.name for p in (ROOT / "stages").iterdir() if (p / "stage.py").is_file())
ENGINE = sorted((ROOT / "tapml").rglob("*.py"))
HEAVY = {"tvm", "torch", "mlflow", "onnx", "onnxruntime"}


@cache
def imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """Absolute names of the modules that a file imports, and whether at its top level."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    package = list(path.relative_to(ROOT).with_suffix("").parts)
    if package[0] == "stages":
        package[0] = "tapml_stages"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = package[: -node.level] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield ".".join([*stem, alias.name]), id(node) in top


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_engine_knows_neither_tvm_nor_the_stages_and_mlflow_only_in_the_syncer(
    path: Path,
) -> None:
    roots = {name.split(".")[0] for name, _ in imports(path)}
    forbidden = HEAVY | {"tapml_stages"}
    if path.name == "syncer.py":
        forbidden -= {"mlflow"}
    assert not roots & forbidden


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_never_import_rooms(room: str) -> None:
    for path in (ROOT / "stages" / room).rglob("*.py"):
        for name, _ in imports(path):
            parts = name.split(".")
            if parts[0] == "tapml_stages" and len(parts) > 1:
                assert parts[1] not in set(ROOMS) - {room}, f"{path}: imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda p: p.name)
def test_what_rooms_share_imports_no_room(path: Path) -> None:
    for name, _ in imports(path):
        parts = name.split(".")
        assert not (parts[0] == "tapml_stages" and len(parts) > 1 and parts[1] in ROOMS), name


@pytest.mark.parametrize("room", ROOMS)
def test_the_declaration_of_a_stage_imports_nothing_heavy(room: str) -> None:
    path = ROOT / "stages" / room / "stage.py"
    top = {name.split(".")[0] for name, at_top in imports(path) if at_top}
    assert not top & (HEAVY | {"scipy", "networkx", "joblib"})
    shared = {
        name.split(".")[1]
        for name, at_top in imports(path)
        if at_top and name.startswith("tapml_stages.") and name.split(".")[1] != room
    }
    assert not shared & {"compat", "program", "records", "target", "measure"}


def test_nothing_that_is_read_back_can_run_code() -> None:
    for path in [*ENGINE, *(ROOT / "stages").rglob("*.py")]:
        names = {name.split(".")[0] for name, _ in imports(path)}
        assert not names & {"pickle", "dill", "shelve", "marshal"}, path


def test_every_package_is_listed_in_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for name, folder in (("tapml", ROOT / "tapml"), ("tapml_stages", ROOT / "stages")):
        for init in folder.rglob("__init__.py"):
            if "shipped" not in init.parts:
                found.add(".".join([name, *init.parent.relative_to(folder).parts]))
    assert found == set(listed)


def test_there_is_no_utils() -> None:
    assert not list(ROOT.glob("tapml/**/utils.py")) + list(ROOT.glob("stages/**/utils.py"))
