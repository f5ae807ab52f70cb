from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from onnx import ModelProto, helper

from tapml.errors import StageError

MakeModel = Callable[..., ModelProto]
Difference = Callable[..., float]
RNG = np.random.default_rng(3)
HIDDEN, WIDTH = 12, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TOLERANCE = 5e-6  # relative to the largest output; sums of 12 products, TVM's rational tanh


def weights(kind: str, directions: int) -> dict[str, np.ndarray]:
    rows = GATES[kind] * HIDDEN
    shapes = {
        "w": (directions, rows, WIDTH),
        "r": (directions, rows, HIDDEN),
        "b": (directions, 2 * rows),
    }
    return {k: RNG.standard_normal(s, dtype=np.float32) / 2 for k, s in shapes.items()}


def layer(
    make: MakeModel, kind: str, extra: Sequence[str] = (), direction: str = "forward", **attrs: int
) -> ModelProto:
    """A layer whose length and batch are open, with outputs for all steps and for the last."""
    directions = 2 if direction == "bidirectional" else 1
    states = {name: [directions, "n", HIDDEN] for name in extra}
    node = helper.make_node(
        kind,
        ["x", "w", "r", "b", "", *extra],
        ["y", "last"],
        name="layer",
        hidden_size=HIDDEN,
        direction=direction,
        **attrs,
    )
    inputs = {"x": ["t", "n", WIDTH], **states}
    return make([node], inputs, weights(kind, directions), ("y", "last"))


def call(steps: int, batch: int, states: Sequence[str] = (), directions: int = 1) -> dict:
    x = RNG.standard_normal((steps, batch, WIDTH), dtype=np.float32)
    shape = (directions, batch, HIDDEN)
    return {"x": x, **{name: RNG.standard_normal(shape, dtype=np.float32) for name in states}}


DIMS = {"t": (1, 20), "n": (1, 8)}
X = {"x": (("t", "n", WIDTH), "float32")}


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_is_right_at_any_length_and_batch(
    make_model: MakeModel, difference: Difference, kind: str, direction: str
) -> None:
    model = layer(make_model, kind, direction=direction)
    assert difference(model, [call(7, 3), call(1, 1), call(20, 8)], X, **DIMS) < TOLERANCE


@pytest.mark.slow
def test_states_that_are_given_are_where_it_begins(
    make_model: MakeModel, difference: Difference
) -> None:
    model = layer(make_model, "LSTM", ("h", "c"))
    state = (1, "n", HIDDEN), "float32"
    inputs = {**X, "h": state, "c": state}
    assert difference(model, [call(6, 2, ("h", "c"))], inputs, **DIMS) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1])
def test_a_gru_scales_its_state_before_or_after_the_product(
    make_model: MakeModel, difference: Difference, before: int
) -> None:
    model = layer(make_model, "GRU", ("h",), linear_before_reset=before)
    inputs = {**X, "h": ((1, "n", HIDDEN), "float32")}
    assert difference(model, [call(6, 2, ("h",))], inputs, **DIMS) < TOLERANCE


def test_what_would_compute_something_else_is_refused(
    make_model: MakeModel, difference: Difference
) -> None:
    model = layer(make_model, "LSTM", input_forget=1)
    with pytest.raises(StageError, match=r"node layer .*the attribute input_forget"):
        difference(model, [], X, **DIMS)
