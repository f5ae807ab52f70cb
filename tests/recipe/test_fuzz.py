"""Whatever the text, a recipe loads or fails as a TapmlError that is safe to print."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapml import recipe as recipes
from tapml.errors import TapmlError
from tapml.recipe import loader, text
from tapml.recipe.positions import Source
from tapml.registry import Registry
from tapml.terminal import columns

quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(TEXT, max_size=12)
    | st.sampled_from(["no", "1e3", "012", "~", "<<", "=", "null", "0x1", " a ", "a: b", "- x"])
)
KEYS = st.text(TEXT, min_size=1, max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
YAML_TEXT = st.text("{}[]:,-?#&*!|>'\"%@` \n\tab0.~<\\$é\x07\u202e", max_size=60)


def load(content: bytes, overrides: Sequence[str], registry: Registry) -> recipes.Recipe | None:
    """The recipe, or None when it is refused by a TapmlError that is safe to print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_bytes(content)
        try:
            return recipes.load(path, overrides, registry)
        except TapmlError as error:
            shown = str(error)
            assert shown.strip()
            for line in shown.split("\n"):
                assert line.isprintable()
                if " | " in line[:12]:
                    assert columns(line) <= 160
            return None


@quick
@given(st.binary(max_size=80))
def test_random_bytes_are_no_traceback(registry: Registry, content: bytes) -> None:
    load(content, (), registry)


@quick
@given(YAML_TEXT)
def test_random_yaml_is_no_traceback(registry: Registry, body: str) -> None:
    load(f"version: 1\nname: x\n{body}".encode(), (), registry)


@quick
@given(YAML_TEXT, st.sampled_from(["tuning", "model.path", "target.mcpu", "sparsity.format.kind"]))
def test_random_overrides_are_no_traceback(
    registry: Registry, whole: str, body: str, key: str
) -> None:
    load(whole.encode(), [f"{key}={body}"], registry)
    load(whole.encode(), [body], registry)


@quick
@given(st.data())
def test_mutated_recipes_are_no_traceback(registry: Registry, whole: str, data: Any) -> None:
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 6))
    noise = data.draw(YAML_TEXT)
    load((whole[:start] + noise + whole[start + length :]).encode(), (), registry)


@quick
@given(st.data(), VALUES)
def test_a_value_of_any_type_anywhere_is_no_traceback(
    registry: Registry, whole: str, data: Any, value: object
) -> None:
    tree: Any = yaml.safe_load(whole)
    spot, parent, key = tree, None, None
    while isinstance(spot, dict | list) and spot and (parent is None or data.draw(st.booleans())):
        parent = spot
        key = data.draw(st.sampled_from(list(spot) if isinstance(spot, dict) else range(len(spot))))
        spot = parent[key]
    parent[key] = value
    load(text.dump(tree).encode(), (), registry)


@quick
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_dumped_data_reads_back(data: dict[str, Any]) -> None:
    dumped = text.dump(data)
    document = loader.parse(Source("f", dumped))
    assert not document.errors
    assert document.root.data == data


@pytest.mark.parametrize("word", ["no", "1e3", "012", "~", "", "0x1F", "<<", "true", ".inf"])
def test_strings_that_look_like_other_types_are_quoted(word: str) -> None:
    assert loader.parse(Source("f", text.dump({"k": word}))).root.data == {"k": word}
