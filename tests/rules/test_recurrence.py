"""The fast kernels of recurrences against NumPy in float64: outputs poisoned, and the states of
rows that begin.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules.kernels import BASELINE, assert_close, build

from tapml_stages.compat import tvm
from tapml_stages.recurrence import RECURRENCES, recurrence
from tapml_stages.tensorir.rules.recurrence import UNROLLED
from tapml_stages.tensorir.schedule import schedule

pytestmark = pytest.mark.slow


@cache
def kernel(kind: str, channels: int, held: int) -> tuple[Any, str]:
    fast, rule = schedule(recurrence(kind, None, channels, held), BASELINE)
    return build(fast, BASELINE), rule


def inputs(kind: str, rows: int, tokens: int, channels: int, held: int) -> dict[str, np.ndarray]:
    of, rng = RECURRENCES[kind], np.random.default_rng([rows, tokens, channels, held])
    shapes = dict.fromkeys(of.own, (rows, tokens, channels))
    shapes |= dict.fromkeys(of.shared, (rows, tokens, held))
    shapes |= dict.fromkeys(of.fixed, (held, channels))
    arrays = {name: rng.uniform(-1, 1, shape) for name, shape in shapes.items()}
    if kind == "selective_scan":  # as in a model: steps forward that decay
        arrays["step"], arrays["decay"] = np.abs(arrays["step"]), -np.abs(arrays["decay"])
    return {name: array.astype("float32") for name, array in arrays.items()}


def expected(
    kind: str, state: np.ndarray, given: dict[str, np.ndarray], position: list[int], last: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """State after the call, and what it gives, row by row and token by token."""
    wide = {name: one.astype("float64") for name, one in given.items()}
    out = np.zeros(wide["x"].shape)
    after = np.where(np.array(position)[:, None, None] > 0, state, 0).astype("float64")
    for row, end in enumerate(last):
        for i in range(end + 1):
            x = wide["x"][row, i]
            if kind == "convolution":
                after[row] = np.concatenate([after[row, 1:], x[None]])
                out[row, i] = (after[row] * wide["weight"]).sum(0)
            else:
                step = wide["step"][row, i]
                after[row] *= np.exp(step * wide["decay"])
                after[row] += step * x * wide["into"][row, i, :, None]
                out[row, i] = wide["out_of"][row, i] @ after[row]
    return after, out


@pytest.mark.parametrize("kind", RECURRENCES)
@pytest.mark.parametrize(("channels", "held"), [(48, 4), (5, 16), (8, 1), (8, UNROLLED + 1)])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 8)), min_size=1, max_size=3))
def test_each_row_goes_on_to_its_own_last_token(
    kind: str, channels: int, held: int, rows: list[tuple[int, int]]
) -> None:
    compiled, rule = kernel(kind, channels, held)
    assert rule == ("recurrence" if held <= UNROLLED else "fallback")
    position, last = (list(one) for one in zip(*rows, strict=True))
    tokens = max(1, max(last) + 1)
    given = inputs(kind, len(rows), tokens, channels, held)
    state = np.random.default_rng(0).uniform(-1, 1, (len(rows), held, channels)).astype("float32")
    state[np.array(position) == 0] = np.nan  # of a row that begins it is not read
    out = np.full((len(rows), tokens, channels), np.nan, "float32")
    tensors = [tvm.runtime.tensor(one) for one in (state, np.array(position), np.array(last))]
    results = [*map(tvm.runtime.tensor, given.values()), tvm.runtime.tensor(out)]
    compiled(*tensors, *results)
    after, gave = expected(kind, state, given, position, last)
    assert_close(tensors[0].numpy(), after)
    assert_close(results[-1].numpy(), gave)
