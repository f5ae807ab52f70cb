"""Action keys: canonical, complete, and pinned."""

import enum
import json
import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml import keys
from tapml.errors import EnvironmentalError
from tapml.stage import File, Stage

SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    SCALARS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)
DIGEST = "ab" * 32


class Plain(Stage):
    """A stage of tapml's own, as far as the key can tell."""

    __module__ = "tapml_stages.plain"
    name: ClassVar[str] = "plain"
    version: ClassVar[int] = 3
    level: int = 2
    ratio: float = 0.5
    layers: tuple[str, ...] = ("a", "b")


class Tooled(Plain):
    tools: ClassVar[tuple[str, ...]] = ("pydantic",)

    @classmethod
    def tool_versions(cls):
        return {"linker": "ld 2.40"}


class Timed(Plain):
    measures: ClassVar[bool] = True


class WithFile(Plain):
    model: File


@given(VALUES)
def test_canonical_json_is_the_value_and_does_not_depend_on_order(value):
    text = keys.canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert keys.canonical_json(dict(reversed(value.items()))) == text


@given(VALUES, VALUES)
def test_values_that_print_differently_have_different_keys(one, two):
    assert (keys.digest(one) == keys.digest(two)) == (json.dumps(one) == json.dumps(two)) or (
        json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [1.0, math.nan]}])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="no canonical form"):
        keys.canonical_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},
        {"a": {2}},
        b"bytes",
        np.float64(1.0),
        np.int64(1),
        enum.IntEnum("E", ["A"]).A,
        object(),
    ],
)
def test_types_without_one_text_are_refused(value):
    with pytest.raises(TypeError, match=r"canonical form|no string"):
        keys.canonical_json(value)


def test_keys_are_pinned():
    """A change here makes every stored result of every user a miss: it needs a reason."""
    assert keys.action_key(Plain(), {"program": DIGEST}) == (
        "a2947049e51a51195fe91efa6a69f4e8a9ed31eca21f0c30523693d258dfd9d9"
    )
    value = {"b": [1, 1.5, None, True], "a": "ä"}
    assert keys.canonical_json(value) == '{"a":"ä","b":[1,1.5,null,true]}'.encode()
    assert keys.digest(value) == (
        "8396d0a885bee2d7f4b07661cd149afb0ff187110cbc4154a1f3412a49364162"
    )


def test_every_part_of_the_preimage_changes_the_key():
    base = keys.action_key(Plain(), {"program": DIGEST})
    others = [
        keys.action_key(Plain(level=1), {"program": DIGEST}),
        keys.action_key(Plain(), {"program": "cd" * 32}),
        keys.action_key(Plain(), {"other": DIGEST}),
        keys.action_key(Plain(), {}),
        keys.action_key(Tooled(), {"program": DIGEST}),
        keys.action_key(Timed(), {"program": DIGEST}),
    ]
    assert len({base, *others}) == len(others) + 1


def test_versions_of_tools_are_in_the_key_and_tapmls_own_is_not():
    import pydantic

    facts = keys.preimage(Tooled(), {})
    assert facts["tools"] == {"pydantic": pydantic.__version__, "linker": "ld 2.40"}
    assert "tapml" not in facts["tools"]


def test_a_stage_that_times_something_has_the_host_in_its_key():
    assert set(keys.preimage(Timed(), {})["host"]) == {"cpu", "cores", "threads"}
    assert "host" not in keys.preimage(Plain(), {})


def test_a_file_is_keyed_by_its_bytes_and_not_by_its_path():
    one = WithFile(model=File(path="/a/model.onnx", sha256=DIGEST))
    two = WithFile(model=File(path="/b/other.onnx", sha256=DIGEST))
    assert keys.action_key(one, {}) == keys.action_key(two, {})
    assert "/a/model.onnx" not in str(keys.preimage(one, {}))


def test_a_stage_of_another_package_has_its_code_in_its_key(stages):
    assert "package" in keys.preimage(stages.Text(), {})
    assert "package" not in keys.preimage(Plain(), {})


def test_a_tool_that_is_not_installed_is_told_with_the_command_that_mends_it():
    class Missing(Plain):
        tools: ClassVar[tuple[str, ...]] = ("no-such-distribution",)

    Missing.__module__ = Plain.__module__
    with pytest.raises(EnvironmentalError, match="pip install no-such-distribution"):
        keys.preimage(Missing(), {})
