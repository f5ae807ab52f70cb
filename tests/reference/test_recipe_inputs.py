"""The inputs and metrics that the shipped recipes bring."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def magika() -> ModuleType:
    return load("magika_inputs")


@pytest.fixture
def ocr() -> ModuleType:
    return load("ocr_inputs")


@pytest.fixture
def magika_files() -> Iterator[ModuleType]:
    sys.path.insert(0, str(RECIPES))
    yield load("magika_files")
    sys.path.remove(str(RECIPES))


def test_the_manifest_lists_500_files_of_40_extensions(magika: ModuleType) -> None:
    rows = [line.split(maxsplit=2) for line in magika.MANIFEST.read_text().splitlines()]
    assert len(rows) >= 500
    assert len({Path(name).suffix.lower() for _, _, name in rows}) >= 40


def test_every_listed_file_is_there_as_the_manifest_says(magika: ModuleType) -> None:
    rows = magika.files()["bytes"]
    assert (rows.dtype, rows.shape[1]) == (np.int32, 2048)
    assert len(np.unique(rows, axis=0)) > 500


def test_listed_packages_are_what_the_recipes_extra_installs(
    magika: ModuleType, magika_files: ModuleType
) -> None:
    listed = {line.split()[1] for line in magika.MANIFEST.read_text().splitlines()}
    assert listed <= magika_files.packages()


def test_a_file_that_changed_is_named(
    magika: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "manifest.txt"
    manifest.write_text(f"{'0' * 64} numpy numpy/__init__.py\n")
    monkeypatch.setattr(magika, "MANIFEST", manifest)
    version = metadata.version("numpy")
    with pytest.raises(ValueError, match=rf"numpy/__init__\.py of numpy {version} is not the file"):
        magika.files()


@pytest.mark.parametrize(
    "content",
    [b"x" * 8, b"  spaces at both ends  \n", b"a" * 1024, bytes(range(256)) * 40, b"\n" * 9000],
)
def test_features_are_those_of_the_magika_package(magika: ModuleType, content: bytes) -> None:
    from magika import Magika
    from magika.types.seekable import Seekable

    stream = Seekable(io.BytesIO(content))
    theirs = Magika._extract_features_from_seekable(stream, 1024, 0, 1024, 256, 4096, False)
    assert magika.features(content).tolist() == [*theirs.beg, *theirs.end]


def test_the_label_is_the_largest_score(magika: ModuleType) -> None:
    ours = {"target_label": np.array([[0.1, 0.9], [0.6, 0.4]])}
    theirs = {"target_label": np.array([[0.4, 0.6], [0.2, 0.8]])}
    assert magika.same_label(ours, theirs, {}) == 0.5


def test_pages_fit_the_detector_and_differ(ocr: ModuleType) -> None:
    pages = ocr.pages()["x"]
    assert (pages.dtype, pages.shape) == (np.float32, (9, 3, 192, 384))
    assert pages.min() >= -1
    assert pages.max() <= 1
    assert len({page.tobytes() for page in pages}) == 9


def test_overlap_is_intersection_over_union(ocr: ModuleType) -> None:
    ours, theirs = np.array([0.9, 0.9, 0.1]), np.array([0.1, 0.9, 0.1])
    assert ocr.overlap({"y": ours}, {"y": theirs}, {}) == 0.5
    assert ocr.overlap({"y": ours * 0}, {"y": ours * 0}, {}) == 1.0
