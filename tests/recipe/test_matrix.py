"""`matrix`: one recipe for each combination, with a name for what differs."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_recipe import HEAD, REGISTRY

from tapml import recipe as recipes
from tapml.errors import RecipeError, RecipeErrors
from tapml.recipe import Recipe
from tapml.recipe.matrix import labels

BODY = HEAD + "sparsity: {layers: [a], format: {kind: csr}}\n"


def load(folder: Path, matrix: str, *overrides: str) -> tuple[Recipe, ...]:
    path = folder / "recipe.yaml"
    path.write_text(BODY + "matrix:\n" + matrix)
    return recipes.load_all(path, overrides, REGISTRY)


def errors(folder: Path, matrix: str, *overrides: str) -> list[RecipeError]:
    with pytest.raises(RecipeError) as caught:
        load(folder, matrix, *overrides)
    error = caught.value
    return list(error.errors) if isinstance(error, RecipeErrors) else [error]


def test_every_combination_is_a_recipe_with_a_name_for_what_differs(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "  tuning.trials: [0, 8]\n  sparsity.format: [{kind: csr}, {kind: bsr, block: [4, 8]}]\n",
    )
    assert [one.label for one in found] == [
        "trials=0,format=csr",
        "trials=0,format=bsr-4x8",
        "trials=8,format=csr",
        "trials=8,format=bsr-4x8",
    ]
    assert found[3].data["sparsity"]["format"] == {"kind": "bsr", "block": [4, 8]}
    assert found[3].point == {
        "tuning.trials": 8,
        "sparsity.format": {"kind": "bsr", "block": [4, 8]},
    }
    assert "matrix" not in found[0].data


def test_combinations_are_left_out_and_added(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "  tuning.trials: [0, 8]\n  tuning.seed: [1, 2]\n"
        "  exclude: [{tuning.trials: 8, tuning.seed: 1}]\n"
        "  include: [{tuning.trials: 64, sparsity.density: 0.5}]\n",
    )
    assert [one.label for one in found] == [
        "trials=0,seed=1",
        "trials=0,seed=2",
        "trials=8,seed=2",
        "trials=64,density=0.5",
    ]


def test_a_field_set_on_the_command_line_holds_for_all_and_equal_ones_are_one(
    tmp_path: Path,
) -> None:
    matrix = "  tuning.trials: [0, 8]\n  tuning.seed: [1, 2]\n"
    found = load(tmp_path, matrix, "tuning.trials=3")
    assert [one.label for one in found] == ["seed=1", "seed=2"]
    assert {one.data["tuning"]["trials"] for one in found} == {3}


def test_a_matrix_may_be_set_varied_and_taken_away_on_the_command_line(tmp_path: Path) -> None:
    matrix = "  tuning.seed: [1, 2]\n"
    found = load(tmp_path, matrix, "matrix.tuning.trials=[4, 8]", "matrix.tuning.seed=[1]")
    assert [one.label for one in found] == ["trials=4", "trials=8"]
    assert all("matrix" not in one.data for one in found)
    assert len(load(tmp_path, matrix, "matrix={sparsity.density: [0.1, 0.2, 0.3]}")) == 3
    (only,) = load(tmp_path, matrix, "matrix=")
    assert "seed" not in only.data.get("tuning", {})


def test_a_recipe_of_one_combination_has_no_label(tmp_path: Path) -> None:
    (only,) = load(tmp_path, "  tuning.trials: [4]\n")
    assert only.label == ""


def test_a_variable_may_be_varied(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        HEAD + "vars: {n: 0}\ntuning: {trials: '${vars.n}'}\nmatrix: {vars.n: [1, 2]}\n"
    )
    found = recipes.load_all(path, (), REGISTRY)
    assert [one.data["tuning"]["trials"] for one in found] == [1, 2]
    assert [one.label for one in found] == ["n=1", "n=2"]


def test_a_wrong_value_is_told_once_at_its_place_in_the_matrix(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        "  tuning.trials: [0, many]\n  tuning.seed: [1, 2, 3]\n  sparsity.density: [0.5, 7.0]\n",
    )
    assert [(error.where.rpartition("recipe.yaml:")[2], error.field) for error in found] == [
        ("5:22", "tuning.trials"),
        ("7:27", "sparsity.density"),
    ]


def test_a_mistake_outside_the_matrix_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(HEAD + "tunning: {}\nmatrix: {tuning.seed: [1, 2, 3]}\n")
    with pytest.raises(RecipeError, match="unknown key") as caught:
        recipes.load_all(path, (), REGISTRY)
    assert not isinstance(caught.value, RecipeErrors)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("  tuning.trials: 3\n", "expected a list of values"),
        ("  tuning.trials: []\n", "expected a list of values"),
        ("  name: [a, b]\n", "a matrix cannot vary this field"),
        ("  limit: 0\n", "expected 1 to 512"),
        ("  tuning.seed: [1, 2]\n  limit: 1\n", "2 recipes; the limit is 1"),
        ("  tuning.seed: [1]\n  exclude: [{tuning.seed: 1}]\n", "no combination is left"),
        ("  exclude: 3\n", "expected a list of combinations"),
        ("  version.x: [1]\n", "a matrix cannot vary this field"),
        (
            "  tuning.seed: [1, 2]\n  exclude: [{tuning.sed: 1}]\n",
            "the matrix does not vary this field",
        ),
        ("  sparsity.layers.x: [1]\n", "sparsity.layers is a list, not a section"),
    ],
)
def test_a_mistake_in_the_matrix_is_told(tmp_path: Path, matrix: str, message: str) -> None:
    found = errors(tmp_path, matrix)
    assert any(error.message.startswith(message) for error in found), found


def test_a_huge_product_is_refused_before_it_is_made(tmp_path: Path) -> None:
    axes = "".join(f"  x{n}.y: {list(range(30))}\n" for n in range(8))
    (error,) = errors(tmp_path, axes)
    assert "combinations; at most" in error.message


def test_one_recipe_is_asked_for_and_several_found(tmp_path: Path) -> None:
    load(tmp_path, "  tuning.seed: [1, 2]\n")
    with pytest.raises(RecipeError, match="the matrix makes 2 recipes") as caught:
        recipes.load(tmp_path / "recipe.yaml", registry=REGISTRY)
    hint = shlex.split(caught.value.hint.partition("for instance ")[2])
    assert hint == ["--set", "tuning.seed=1"]
    assert recipes.load(tmp_path / "recipe.yaml", hint[1::2], REGISTRY).data["tuning"]["seed"] == 1


values = st.integers(0, 3) | st.sampled_from(["a", "a b", "ü", ""]) | st.booleans()
rows = st.lists(
    st.dictionaries(st.sampled_from(["a.x", "b.x", "c.y"]), values, min_size=1), max_size=8
)


@given(rows)
def test_labels_are_unique_short_and_plain(points: list[dict[str, object]]) -> None:
    unique = [one for i, one in enumerate(points) if one not in points[:i]]
    found = labels(unique)
    assert len(set(found)) == len(found) or len(unique) < 2
    assert all(len(one) <= 80 for one in found)
    assert all(c.isascii() and (c.isalnum() or c in "_.,=+-") for one in found for c in one)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 3))
def test_the_number_of_recipes_is_the_product_less_what_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], left_out: int
) -> None:
    names = ["tuning.trials", "tuning.seed", "sparsity.density"]
    axes = "".join(
        f"  {name}: {[(i + 1) / 8 if name.endswith('density') else i for i in range(size)]}\n"
        for name, size in zip(names, sizes, strict=False)
    )
    exclude = f"  exclude: [{{tuning.trials: {left_out}}}]\n"
    expected = math.prod(sizes) - (math.prod(sizes[1:]) if left_out < sizes[0] else 0)
    folder = tmp_path_factory.mktemp("matrix")
    if expected == 0:
        assert "no combination is left" in errors(folder, axes + exclude)[0].message
    else:
        assert len(load(folder, axes + exclude)) == expected
