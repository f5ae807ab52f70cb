"""Paths of a recipe stay in its folder, however they are written, and name regular files."""

from __future__ import annotations

from collections.abc import Callable
from glob import glob
from pathlib import Path

import pytest

from tapml.recipe import resolve

Cli = Callable[..., tuple[int, str, str]]
HEAD = "version: 1\nname: x\nworkflow: deploy\n"
OUT = {
    "parents": "../../../../../../etc/passwd",
    "inside and out": "folder/../../../../../../../etc/passwd",
    "absolute": "/etc/passwd",
    "a link": "outside",
    "a folder that is a link": "away/passwd",
    "out of a package": "${package:tapml}/../../../../../../../../etc/passwd",
}
NO_FILE = {
    "a pipe": "pipe",
    "a folder": "folder",
    "a loop": "loop",
    "nothing": "no-such-file",
    "a name that is too long": "a" * 5000,
    "a null byte": "x\\0y",
}
FIELDS = {  # `@` is the path
    "model.path": 'model: {source: onnx, path: "@"}\n',
    "validation.inputs.reads": "extends: magika.yaml\n"
    'validation: {inputs: {python: "magika_inputs.py:files", reads: ["@"]}}\n',
    "extends": 'extends: "@"\n',
}
PYTHON = {
    "model.python": 'model: {source: operator, python: "@:f"}\n',
    "validation.inputs.python": 'extends: magika.yaml\nvalidation: {inputs: {python: "@:f"}}\n',
    "validation.metric.python": 'extends: magika.yaml\nvalidation: {metric: {python: "@:f"}}\n',
}


@pytest.fixture
def refused(cli: Cli, stranger: Path) -> Callable[[str], str]:
    """What is said of a recipe that has to be refused."""
    (stranger / "away").symlink_to("/etc")
    (stranger.parent / "secret.py").write_text("def f(): ...\n")
    (stranger / "linked.py").symlink_to("../secret.py")

    def check(body: str) -> str:
        (stranger / "recipe.yaml").write_text(HEAD + body)
        code, _, err = cli("validate", "recipe.yaml")
        assert code == 2, err
        assert "root:" not in err
        return err

    return check


@pytest.mark.parametrize("path", OUT.values(), ids=OUT)
@pytest.mark.parametrize("field", FIELDS)
def test_no_file_of_a_recipe_lies_outside_its_folder(
    refused: Callable[[str], str], field: str, path: str
) -> None:
    assert "leaves" in refused(FIELDS[field].replace("@", path))


@pytest.mark.parametrize("path", ["../secret.py", "linked.py", "/tmp/x.py", "folder/../../x.py"])
@pytest.mark.parametrize("field", PYTHON)
def test_no_python_of_a_recipe_lies_outside_its_folder(
    refused: Callable[[str], str], field: str, path: str
) -> None:
    assert "leaves" in refused(PYTHON[field].replace("@", path))


@pytest.mark.parametrize("path", NO_FILE.values(), ids=NO_FILE)
@pytest.mark.parametrize("field", FIELDS)
def test_what_is_no_regular_file_is_refused_at_once(
    refused: Callable[[str], str], field: str, path: str
) -> None:
    assert "recipe.yaml:" in refused(FIELDS[field].replace("@", path))


def test_a_glob_does_not_follow_links_out(refused: Callable[[str], str]) -> None:
    assert "leaves" in refused(FIELDS["validation.inputs.reads"].replace("@", "away/*"))


@pytest.mark.parametrize("pattern", ["**", "**/x", "*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/x", "ring*/**"])
def test_links_in_a_ring_make_no_glob_endless(
    refused: Callable[[str], str], stranger: Path, pattern: str
) -> None:
    for name in ("ring1", "ring2"):
        (stranger / "folder" / name).symlink_to(".")
    body = FIELDS["validation.inputs.reads"].replace("@", f"folder/{pattern}")
    assert "is a link to a folder, which no wildcard follows" in refused(body)


def test_a_glob_names_the_files_that_it_names_for_a_shell(tmp_path: Path) -> None:
    files = ("a.txt", "b.md", "d/a.txt", "d/e/a.txt", "d/e/b.txt", "d/.hidden/a.txt", ".a.txt")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = ("*", "*.txt", "**", "**/*.txt", "d/*", "d/**/b*", "d/e/[ab].txt", "d/*/a.txt")
    for pattern in (*patterns, "**/e/**", "**/**/a.txt", ".*", "d/.h*/*", "./*.md", "d//e/*"):
        wanted = {Path(one) for one in glob(pattern, root_dir=tmp_path, recursive=True)}
        found = resolve.expand_glob(pattern, tmp_path, may_be_absolute=False)
        assert set(found.values()) == {p for one in wanted if (p := tmp_path / one).is_file()}


def test_a_glob_that_would_look_at_too_much_is_refused(
    refused: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "MAX_ENTRIES", 3)
    body = FIELDS["validation.inputs.reads"].replace("@", "*.txt")
    assert "more than 3 files would have to be looked at" in refused(body)


def test_recipes_extend_one_another_up_to_the_workflow_file(cli: Cli, stranger: Path) -> None:
    (stranger / "below").mkdir()
    recipe = stranger / "below" / "recipe.yaml"
    recipe.write_text("extends: ../operator_sparse.yaml\nname: below\n")
    code, _, err = cli("validate", str(recipe))
    assert code == 0, err
    (stranger.parent / "above.yaml").write_text(HEAD)
    recipe.write_text("extends: ../../above.yaml\n")
    code, _, err = cli("validate", str(recipe))
    assert code == 2
    assert "leaves the recipes' folder" in err


def test_a_link_within_the_folder_is_followed(cli: Cli, stranger: Path) -> None:
    (stranger / "model.onnx").write_bytes(b"x")
    (stranger / "folder" / "link.onnx").symlink_to("../model.onnx")
    code, _, err = cli("validate", "magika.yaml", "--set=model.path=folder/link.onnx")
    assert code == 0, err
