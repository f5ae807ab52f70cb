"""LSTM, GRU and RNN from a file to scheduled kernels, against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import quantised
from graphs import V3
from onnx import helper
from rules.kernels import assert_close

from tapml_stages.metaschedule.kernels import find_kernels

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WIDTH = 5


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def walked(
    kind: str, x: np.ndarray, w: np.ndarray, r: np.ndarray, b: np.ndarray, reset_after: bool
) -> np.ndarray:
    """All states of one direction, as ONNX defines them."""
    size = r.shape[1]
    h = c = np.zeros((x.shape[1], size))
    ours, theirs = np.split(b, 2)
    result = []
    for step in x:
        of_x = np.split(step @ w.T + ours, GATES[kind], -1)
        of_h = np.split(h @ r.T + theirs, GATES[kind], -1)
        if kind == "LSTM":
            i, o, f = (sigmoid(a + d) for a, d in zip(of_x[:3], of_h[:3], strict=True))
            c = f * c + i * np.tanh(of_x[3] + of_h[3])
            h = o * np.tanh(c)
        elif kind == "GRU":
            z, reset = (sigmoid(a + d) for a, d in zip(of_x[:2], of_h[:2], strict=True))
            late = reset * of_h[2]
            early = (reset * h) @ r[2 * size :].T + theirs[2 * size :]
            h = (1 - z) * np.tanh(of_x[2] + (late if reset_after else early)) + z * h
        else:
            h = np.tanh(of_x[0] + of_h[0])
        result.append(h)
    return np.stack(result)


def test_a_cell_is_timed_as_any_kernel_is(tmp_path: Path) -> None:
    """Unlike those on the states of a program, it has no position."""
    shapes = {"w": (1, 32, WIDTH), "r": (1, 32, 8), "b": (1, 64)}
    weights = {name: np.zeros(shape, "float32") for name, shape in shapes.items()}
    node = helper.make_node("LSTM", ["x", *weights], ["y"], hidden_size=8)
    made = quantised.model([node], {"x": ((7, 3, WIDTH), "float32")}, weights)
    model = quantised.lowered(quantised.save(made, tmp_path / "cell.onnx"), V3, {})
    found = {kernel.name: kernel for kernel in find_kernels(model.program, list(model.defaults))}
    (cell,) = [one for name, one in found.items() if "lstm_steps" in name]
    assert [site.outputs for site in cell.sites] == [3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "hidden", "reset_after"),
    [
        ("LSTM", 64, False),
        ("LSTM", 9, False),
        ("GRU", 32, True),
        ("GRU", 20, False),
        ("RNN", 24, False),
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_cells_are_vectors_and_right(
    tmp_path: Path, kind: str, hidden: int, reset_after: bool, both: bool
) -> None:
    rng = np.random.default_rng(hidden)
    ways, rows = 1 + both, GATES[kind] * hidden
    shapes = {"w": (ways, rows, WIDTH), "r": (ways, rows, hidden), "b": (ways, 2 * rows)}
    weights = {name: rng.uniform(-0.5, 0.5, s).astype("float32") for name, s in shapes.items()}
    extra = {"linear_before_reset": int(reset_after)} if kind == "GRU" else {}
    direction = "bidirectional" if both else "forward"
    node = helper.make_node(
        kind, ["x", *weights], ["y"], hidden_size=hidden, direction=direction, **extra
    )
    x = rng.standard_normal((7, 3, WIDTH)).astype("float32")
    made = quantised.model([node], {"x": (x.shape, "float32")}, weights)
    built = quantised.build(quantised.save(made, tmp_path / "cell.onnx"), V3, {})
    assert "fallback" not in built.rules.values()
    wide = [one.astype("float64") for one in weights.values()]
    expected = []
    for way in range(ways):
        own = x.astype("float64")[::-1] if way else x.astype("float64")
        states = walked(kind, own, *(one[way] for one in wide), reset_after)
        expected.append(states[::-1] if way else states)
    assert_close(built.call({"x": x})[0], np.stack(expected, 1), 3e-6)  # of tanh: 3e-7 a step
