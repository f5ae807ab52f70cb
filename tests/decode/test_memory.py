"""No prefix is computed again, and no call writes as much as a cache: on the IR, and as it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from decoding import assemble, lower
from families import CONTEXT, make

from tapml_stages import program as programs
from tapml_stages.attention import UPDATE
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, kernel_of, op_name
from tapml_stages.opaque import KERNEL
from tapml_stages.program import DECODE, PREFILL, Program

rx, tirx = tvm.relax, tvm.tirx
FAMILIES = ("llama", "mistral", "gpt2", "gemma2", "phi3", "gptj", "falcon", "bloom")
HEADS = {"falcon": 1, "gpt2": 4, "gptj": 4, "bloom": 4}  # that are cached; of the others 2
WIDTH = 16
VOCABULARY = 263  # no other size is that

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@dataclass(frozen=True)
class Made:
    """What tensorir made of a family, the elements of one of its states, and its library."""

    program: Program
    cache: int
    bundle: Any

    def calls(self, name: str) -> Iterator[tuple[Any, Any]]:
        return ((var, one) for var, one in bindings(self.program.mod[name]) if _is_call(one))


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    from tapml_stages.importer.huggingface.generate import decoder

    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    program, weights = decoder(make(name, vocab_size=VOCABULARY), CONTEXT, where=name)
    lowered = lower(program, folder)
    return Made(
        programs.load(lowered["program"]),
        HEADS.get(name, 2) * CONTEXT * WIDTH,
        assemble(lowered, dict(weights), folder),
    )


def test_nothing_but_the_states_is_as_large_as_a_cache(made: Made) -> None:
    states = [value for _, value in made.calls(DECODE) if _is_in_place(value)]
    assert len(states) == len(made.program.io.states)
    for var, value in made.calls(DECODE):
        if _is_in_place(value):
            continue
        assert op_name(value) in ("relax.call_tir", "relax.reshape"), value
        for ty in var.ty.fields if isinstance(var.ty, rx.TupleType) else [var.ty]:
            assert prod(int(dim) for dim in ty.shape.values) < made.cache, value


def test_an_update_stores_the_new_tokens_and_no_more(made: Made) -> None:
    updates = {kernel_of(value) for _, value in made.calls(DECODE) if _is_in_place(value)}
    assert updates
    for name in updates:
        func = made.program.mod[name]
        assert func.attrs[KERNEL] == UPDATE
        state = func.params[0]
        (extents,) = _stores(func.body, state)
        assert sum(not isinstance(one, tirx.IntImm) for one in extents) == 1  # the tokens
        known = [int(one) for one in extents if isinstance(one, tirx.IntImm)]
        assert prod(known) == made.cache // CONTEXT


def test_what_decode_allocates_is_known_beforehand(made: Made) -> None:
    sizes = [*_storages(made.program.mod, DECODE)]
    assert sizes
    assert all(isinstance(size, tirx.IntImm) for size in sizes)
    assert max(int(size) for size in sizes) < 4 * made.cache  # bytes


def test_a_state_is_updated_in_the_callers_memory(made: Made) -> None:
    session = made.bundle.session(fill=np.nan)
    memory = {np.from_dlpack(tensor).ctypes.data for tensor in session._tensors}
    written: list[int] = []

    def watch(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if before and name.startswith(UPDATE):
            written.append(np.from_dlpack(args[0]).ctypes.data)
        return 0

    ids = np.array([[5, 6, 7]])
    made.bundle._machine.set_instrument(watch)
    session(input_ids=ids, position=np.array([0]), last=np.array([2]))
    made.bundle._machine.set_instrument(lambda *_: None)
    assert len(written) == len(memory)
    assert set(written) == memory
    after = session.states
    for state in after.values():
        assert np.isfinite(state[:, :, :3]).all()
        assert np.isnan(state[:, :, 3:]).all()
    session(input_ids=ids[:, :1], position=np.array([3]), last=np.array([0]))
    for name, state in session.states.items():
        np.testing.assert_array_equal(state[:, :, :3], after[name][:, :, :3])
        assert np.isfinite(state[:, :, 3]).all()
        assert np.isnan(state[:, :, 4:]).all()


def test_a_full_cache_is_an_error_and_the_states_stay(made: Made) -> None:
    session = made.bundle.session(fill=0)
    ids, last = np.array([[5, 6]]), np.array([1])
    session(input_ids=ids, position=np.array([CONTEXT - 2]), last=last)
    before = session.states
    for position in (CONTEXT - 1, -1):
        with pytest.raises(Exception, match="above the context of the cache"):
            session(input_ids=ids, position=np.array([position]), last=last)
    for name, state in session.states.items():
        np.testing.assert_array_equal(state, before[name])


def test_prefill_computes_the_logits_of_one_token_a_row(made: Made) -> None:
    sizes = [
        var.ty.shape.values for var, _ in bindings(made.program.mod[PREFILL]) if _is_tensor(var)
    ]
    logits = [dims for dims in sizes if len(dims) and _known(dims[-1]) == VOCABULARY]
    assert logits
    for dims in logits:
        assert prod(_known(dim) or 0 for dim in dims) == VOCABULARY


def _is_tensor(var: Any) -> bool:
    return isinstance(var.ty, rx.TensorType)


def _known(dim: Any) -> int | None:
    return int(dim) if isinstance(dim, tirx.IntImm) else None


def _is_call(value: Any) -> bool:
    return isinstance(value, rx.Call)


def _is_in_place(value: Any) -> bool:
    return op_name(value) == "relax.call_tir_inplace"


def _stores(body: Any, buffer: Any) -> list[list[Any]]:
    """Extents of the loops around each store to `buffer`."""
    loops = _within(body, tirx.For)
    stores = [one for one in _within(body, tirx.BufferStore) if one.buffer.same_as(buffer)]

    def inside(loop: Any, store: Any) -> bool:
        return any(one.same_as(store) for one in _within(loop.body, tirx.BufferStore))

    return [[loop.extent for loop in loops if inside(loop, store)] for store in stores]


def _within(node: Any, kind: type) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(node, (kind, found.append))
    return found


def _storages(mod: Any, name: str) -> Iterator[Any]:
    """Sizes that a function asks the VM's allocator for."""
    transform = rx.transform
    passes = (
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
    )
    planned = tvm.transform.Sequential(passes)(mod)
    for _, value in bindings(planned[name]):
        if op_name(value) == "relax.memory.alloc_storage":
            yield value.args[0].values[0]
