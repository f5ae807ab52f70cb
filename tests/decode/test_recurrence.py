"""What recurrent layers hold is updated in place, belongs to one sequence, and has no end."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding import build, lower
from families import make

from tapml import bundle as bundles
from tapml_stages import program as programs
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.program import DECODE, Bounds

rx = tvm.relax
CALL = 8  # tokens of a call at most

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def model() -> Any:
    return make("falcon_mamba")


@pytest.fixture(scope="module")
def program(model: Any) -> Any:
    from tapml_stages.importer.huggingface.generate import decoder

    return decoder(model, CALL, Bounds(1, 4))


@pytest.fixture(scope="module")
def bundle(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made, weights = program
    return build(made, dict(weights), tmp_path_factory.mktemp("recurrent"))


def continued(model: Any, prompt: list[int], count: int) -> list[int]:
    """The likeliest tokens, by the whole sequence."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_a_state_is_written_by_one_kernel_and_nothing_else_is_as_large(
    program: Any, tmp_path: Path
) -> None:
    made = programs.load(lower(program[0], tmp_path)["program"])
    sizes = [prod(dim for dim in spec.shape if isinstance(dim, int)) for spec in made.io.states]
    in_place = 0
    for var, value in bindings(made.mod[DECODE]):
        if not isinstance(value, rx.Call):
            continue
        types = list(var.ty.fields) if isinstance(var.ty, rx.TupleType) else [var.ty]
        if op_name(value) == "relax.call_tir_inplace":
            in_place += 1
            types = types[1:]
        for ty in types:
            assert prod(int(n) for n in ty.shape.values if hasattr(n, "value")) < max(sizes), value
    assert in_place == len(made.io.states)


def test_prompts_longer_than_a_call_go_on_beyond_any_context(bundle: Any, model: Any) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, n).tolist() for n in (2 * CALL + 3, 3, CALL)]
    generator = bundles.module(bundle.folder, "generate.py").Generator(bundle)
    assert generator.context is None
    written = list(zip(*generator.generate(prompts, max_tokens=2 * CALL), strict=True))
    assert [list(row) for row in written] == [continued(model, p, 2 * CALL) for p in prompts]
    with pytest.raises(ValueError, match="say how many tokens"):
        next(generator.generate(prompts))


def test_a_sequence_knows_nothing_of_the_one_before(bundle: Any) -> None:
    ids, position, last = np.array([[5, 6, 7]]), np.array([0]), np.array([2])

    def call(session: Any) -> np.ndarray:
        return session(input_ids=ids, position=position, last=last)["logits"]

    session = bundle.session(batch=1, fill=np.nan)
    first = call(session)
    assert np.isfinite(first).all()
    assert all(np.isfinite(state).all() for state in session.states.values())
    np.testing.assert_array_equal(call(session), first)


def test_states_are_updated_in_the_callers_memory(bundle: Any) -> None:
    session = bundle.session(batch=1)
    memory = [np.from_dlpack(tensor).ctypes.data for tensor in session._tensors]
    written: list[int] = []

    def watch(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if before and name.startswith(("convolution", "selective_scan")):
            written.append(np.from_dlpack(args[0]).ctypes.data)
        return 0

    bundle._machine.set_instrument(watch)
    session(input_ids=np.array([[5]]), position=np.array([3]), last=np.array([0]))
    bundle._machine.set_instrument(lambda *_: None)
    assert written == memory
