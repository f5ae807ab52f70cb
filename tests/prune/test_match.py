from __future__ import annotations

from functools import partial

import pytest

from tapml.errors import RecipeError, RecipeErrors
from tapml_stages.layers import Layer, prunable
from tapml_stages.layers import match as match_layers
from tapml_stages.program import Origin

match = partial(match_layers, field="sparsity.layers", can="be pruned")
SHAPES = {"w/1": (8, 16), "b/1": (1, 16), "w/2": (16, 4), "filter": (4, 2, 3, 3), "scale": (8, 8)}
PROVENANCE = (
    Origin("a", ("net/Dense_0",), "MatMul", ("w/1",)),
    Origin("b", ("net/Dense_0_bias",), "Add", ("b/1",)),
    Origin("c", ("net/Dense_1",), "Gemm", ("w/2",)),
    Origin("d", ("net/Dense_1",), "Gemm", ("b/1",)),
    Origin("e", ("net/Conv_0",), "Conv", ("filter",)),
    Origin("f", ("net/again",), "MatMul", ("w/1",)),
    Origin("g", ("net/scale",), "Mul", ("scale",)),
)
LAYERS = (
    Layer("net/Dense_0", "w/1", (8, 16)),
    Layer("net/Dense_1", "w/2", (16, 4)),
    Layer("net/Conv_0", "filter", (4, 2, 3, 3)),
)


def test_matrices_and_filters_of_multiplications_are_layers_once_each() -> None:
    assert prunable(PROVENANCE, SHAPES) == LAYERS


@pytest.mark.parametrize(
    ("patterns", "indices"),
    [
        (("*Dense_*",), [0, 1]),
        (("w/2",), [1]),
        (("filter", "net/Dense_0"), [0, 2]),
        (("*",), [0, 1, 2]),
    ],
)
def test_patterns_match_names_of_nodes_and_of_weights(
    patterns: tuple[str, ...], indices: list[int]
) -> None:
    assert match(patterns, LAYERS) == tuple(LAYERS[index] for index in indices)


def test_what_torch_multiplies_by_is_a_layer() -> None:
    linear = Origin("a", ("linear_1",), "linear", ("encoder.0.weight", "encoder.0.bias"))
    shapes = {"encoder.0.weight": (8, 16), "encoder.0.bias": (8,)}
    assert prunable((linear,), shapes) == (Layer("linear_1", "encoder.0.weight", (8, 16)),)


def test_a_pattern_without_a_layer_offers_the_nearest_and_lists_all() -> None:
    with pytest.raises(RecipeError, match=r"'\*Dense_\*2' matches no layer") as caught:
        match(("*Dense_0", "*Dense_*2"), LAYERS)
    assert caught.value.field == "sparsity.layers.1"
    assert caught.value.hint.startswith("nearest: net/Dense_1, net/Dense_0\n")
    assert all(layer.weight in caught.value.hint for layer in LAYERS)


def test_every_pattern_without_a_layer_is_reported() -> None:
    with pytest.raises(RecipeErrors) as caught:
        match(("nope", "neither"), LAYERS)
    assert [e.field for e in caught.value.errors] == ["sparsity.layers.0", "sparsity.layers.1"]
