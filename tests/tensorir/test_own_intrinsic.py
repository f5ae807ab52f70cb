"""The intrinsic of docs/tensorir.md, from a package of its own."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_integers import integers, product, run, target

from tapml.target import missing_here
from tapml_stages.tensorir.schedule import schedule
from tapml_stages.tensorir.stage import TensorIR
from tapml_stages.tensorir.tensorize import intrinsic

PAGE = Path(__file__).parents[2] / "docs" / "tensorir.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What installing the page's package leaves: its file and its entry point."""
    text = PAGE.read_text(encoding="utf-8")
    code, settings = (
        re.findall(rf"```{kind}\n(.*?)```", text, re.S)[0] for kind in ("python", "toml")
    )
    assert len(code.splitlines()) <= 100
    (tmp_path / "int16_dot.py").write_text(code, encoding="utf-8")
    (groups,) = tomllib.loads(settings)["project"].values()
    ((group, entries),) = groups.items()
    ((name, where),) = entries.items()
    info = tmp_path / "int16_dot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: int16-dot\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {where}\n")
    monkeypatch.syspath_prepend(tmp_path)
    intrinsic.installed.cache_clear()
    yield name
    intrinsic.installed.cache_clear()
    sys.modules.pop("int16_dot", None)


@pytest.mark.slow
def test_an_intrinsic_from_outside_goes_the_same_way(package: str) -> None:
    where = target("x86-64-v3")
    shape, kinds = (17, 33, 40), ("int16", "int16")
    scheduled, rule = schedule(product(shape, kinds), where)
    assert rule == "tensorize"
    assert "pmadd.wd" in scheduled.script()
    assert f"intrinsics {package}" in TensorIR.tool_versions()
    if missing_here(where):
        return
    rng = np.random.default_rng(0)
    x, w = (integers(rng, size, "int8").astype("int16") * 100 for size in ((17, 33), (33, 40)))
    expected = np.maximum(x.astype("int64") @ w.astype("int64") - 3, 0)
    assert np.array_equal(run(scheduled, where, [x, w], (17, 40)), expected)


@pytest.mark.slow
def test_without_the_package_no_rule_of_ours_knows_int16() -> None:
    _, rule = schedule(product((17, 33, 40), ("int16", "int16")), target("x86-64-v3"))
    assert rule != "tensorize"
