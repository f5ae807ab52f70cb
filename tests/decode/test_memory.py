"""No prefix is computed again, and no call writes as much as a cache: on the IR, and as it runs."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from decoding import build, lower
from families import CONTEXT, make

from tapml_stages import program as programs
from tapml_stages.attention import KERNEL, UPDATE
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, kernel_of, op_name
from tapml_stages.program import DECODE, PREFILL, Io

rx, tirx = tvm.relax, tvm.tirx
FAMILIES = ("llama", "mistral", "gpt2", "gemma2", "phi3", "gptj", "falcon", "bloom")
HEADS = {"falcon": 1, "gpt2": 4, "gptj": 4, "bloom": 4}  # that are cached; of the others 2
WIDTH = 16

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module", params=FAMILIES)
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tapml_stages.importer.huggingface.generate import decoder

    program, _ = decoder(make(request.param), CONTEXT, where=request.param)
    folder = tmp_path_factory.mktemp(request.param)
    made = programs.load(lower(program, folder)["program"])
    return made, HEADS.get(request.param, 2) * CONTEXT * WIDTH


def test_nothing_but_the_states_is_as_large_as_a_cache(lowered: Any) -> None:
    program, cache = lowered
    calls = [value for _, value in bindings(program.mod[DECODE]) if isinstance(value, rx.Call)]
    in_place = [value for value in calls if op_name(value) == "relax.call_tir_inplace"]
    assert len(in_place) == len(program.io.states)
    for var, value in bindings(program.mod[DECODE]):
        if value in in_place or not isinstance(value, rx.Call):
            continue
        assert op_name(value) in ("relax.call_tir", "relax.reshape"), value
        for ty in var.ty.fields if isinstance(var.ty, rx.TupleType) else [var.ty]:
            assert prod(int(dim) for dim in ty.shape.values) < cache, value


def test_an_update_stores_the_new_tokens_and_no_more(lowered: Any) -> None:
    program, cache = lowered
    updates = {
        kernel_of(value)
        for _, value in bindings(program.mod[DECODE])
        if op_name(value) == "relax.call_tir_inplace"
    }
    for name in updates:
        func = program.mod[name]
        assert func.attrs[KERNEL] == UPDATE
        state = func.params[0]
        (extents,) = _stores(func.body, state)
        assert sum(not isinstance(one, tirx.IntImm) for one in extents) == 1  # the tokens
        known = [int(one) for one in extents if isinstance(one, tirx.IntImm)]
        assert prod(known) == cache // CONTEXT


def test_what_decode_allocates_is_known_beforehand(lowered: Any) -> None:
    program, cache = lowered
    sizes = [*_storages(program.mod, DECODE)]
    assert sizes
    assert all(isinstance(size, tirx.IntImm) for size in sizes)
    assert max(int(size) for size in sizes) < 4 * cache  # bytes


def test_a_state_is_updated_in_the_callers_memory(tmp_path: Path) -> None:
    from tapml_stages.importer.huggingface.generate import decoder

    program, weights = decoder(make("llama"), CONTEXT)
    bundle = build(program, dict(weights), tmp_path)
    session = bundle.session(fill=np.nan)
    memory = {np.from_dlpack(tensor).ctypes.data for tensor in session._tensors}
    written: list[int] = []

    def watch(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> int:
        if before and name.startswith(UPDATE):
            written.append(np.from_dlpack(args[0]).ctypes.data)
        return 0

    bundle._machine.set_instrument(watch)
    ids = np.array([[5, 6, 7]])
    session(input_ids=ids, position=np.array([0]), last=np.array([2]))
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


def test_a_full_cache_is_an_error_and_the_states_stay(tmp_path: Path) -> None:
    from tapml_stages.importer.huggingface.generate import decoder

    program, weights = decoder(make("llama"), CONTEXT)
    session = build(program, dict(weights), tmp_path).session(fill=0)
    ids, last = np.array([[5, 6]]), np.array([1])
    session(input_ids=ids, position=np.array([CONTEXT - 2]), last=last)
    before = session.states
    for position in (CONTEXT - 1, -1):
        with pytest.raises(Exception, match="above the context of the cache"):
            session(input_ids=ids, position=np.array([position]), last=last)
    for name, state in session.states.items():
        np.testing.assert_array_equal(state, before[name])


def test_prefill_computes_the_logits_of_one_token_a_row(lowered: Any) -> None:
    program, _ = lowered
    io: Io = program.io
    vocabulary = io.outputs[0].shape[-1]
    for var, _ in bindings(program.mod[PREFILL]):
        if isinstance(var.ty, rx.TensorType) and _last(var.ty) == vocabulary:
            assert prod(int(dim) for dim in var.ty.shape.values) == vocabulary


def _last(ty: Any) -> int | None:
    dims = ty.shape.values
    return int(dims[-1]) if len(dims) and isinstance(dims[-1], tirx.IntImm) else None


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
