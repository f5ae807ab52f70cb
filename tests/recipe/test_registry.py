from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tapml import registry, shipped
from tapml.errors import EnvironmentalError, RecipeError
from tapml.stage import Stage


def test_the_built_in_stages_are_found_by_entry_point() -> None:
    assert {"import", "prune", "tensorir", "validation"} <= set(registry.stage_names())


def test_an_unknown_stage_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown stage 'tensorrir'\n.*'tensorir'"):
        registry.stage_class("tensorrir")


@pytest.mark.parametrize(
    ("value", "message"),
    [("no_such_module:X", "cannot be loaded"), ("json:loads", "is registered as a stage and is")],
)
def test_a_broken_plug_in_is_named(value: str, message: str) -> None:
    point = metadata.EntryPoint("odd", value, registry.GROUP)
    with pytest.raises(EnvironmentalError, match=message):
        registry._load(point)  # pyright: ignore[reportPrivateUsage]


def test_the_code_of_a_plug_in_has_a_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "counter_plugin"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "stage.py").write_text(
        "from tapml.stage import Stage\nclass Count(Stage):\n    name = 'count'\n    version = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = metadata.EntryPoint("count", "counter_plugin.stage:Count", registry.GROUP).load()
    first = registry.package_digest(cls)
    (package / "deep" / "helper.py").write_text("x = 1\n")
    assert first is not None
    assert registry.package_digest(cls) != first


def test_what_another_package_registers_has_the_digest_of_its_sources_unimported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = tmp_path / "fast_rules", tmp_path / "fast_rules-1.dist-info"
    for folder in (package, info):
        folder.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "shim.c").write_text("int one;\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-rules\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tapml.schedule_rules]\nfast = fast_rules:rule\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = registry.stage_class("tensorir").tool_versions()
    assert set(before) == {"fast"}  # and none of tapml's own
    (package / "shim.c").write_text("int two;\n")
    assert registry.stage_class("tensorir").tool_versions() != before


def test_tapmls_own_stages_have_no_code_digest() -> None:
    assert registry.package_digest(Stage) is None


def test_shipped_recipes_are_found_by_name() -> None:
    assert shipped.workflows().is_file()
    for name, path in shipped.recipes().items():
        assert shipped.recipe(name) == path
    with pytest.raises(RecipeError, match="no recipe 'magikaa' ships with tapml"):
        shipped.recipe("magikaa")


def test_a_recipe_is_loaded_without_heavy_packages() -> None:
    heavy = ["tvm", "networkx", "mlflow", "torch", "onnx", "numpy", "joblib"]
    code = (
        "import sys, tapml.recipe, tapml.workflow, tapml.registry\n"
        "tapml.registry.stage_names()\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
