"""The memory of a call: workspaces lifted, storages shared, and what the allocator holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from graphs import TVM_TARGET, V3, graph, rx
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml_stages.codegen import memory
from tapml_stages.codegen.build import CUDA_GRAPH, build_executable, lower
from tapml_stages.codegen.footprint import held_bytes
from tapml_stages.codegen.memory import plan_memory
from tapml_stages.codegen.tuples import open_tuples
from tapml_stages.codegen.workspace import lift_workspaces, shared_buffers
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower as lower_operators
from tapml_stages.tensorir.schedule import default_records

op = rx.op
STOCK = rx.transform.StaticPlanBlockMemory()


def scheduled(
    body: Callable[..., Any], inputs: dict[str, tuple[int | str, ...]], **how: Any
) -> Any:
    """A program as codegen gets it, with its default schedules."""
    program = graph(body, inputs, **how)
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    lowered = lower_operators(replace(program, mod=mod), V3).mod
    out = tvm.IRModule(lowered.functions)
    for record in default_records(lowered, V3):
        func = record.module()[record.kernel].without_attr("global_symbol")
        out.update_func(out.get_global_var(record.kernel), func)
    return rx.transform.DeadCodeElimination(["main"])(out)


def attention_like(emit: Any, x: Any, y: Any) -> Any:
    """A product with a matrix that is computed: its kernel packs it first."""
    scores = emit(op.matmul(x, emit(op.permute_dims(y, [0, 2, 1]))))
    return op.multiply(scores, rx.const(0.5))


PRODUCT = {"x": ("batch", 40, 64), "y": ("batch", 1000, 64)}


def chain(emit: Any, x: Any) -> Any:
    """Tensors of changing size, each read once or twice."""
    wide = emit(op.concat([x, x, x], axis=1))
    summed = emit(op.sum(wide, axis=[1], keepdims=True))
    back = emit(op.subtract(x, emit(op.exp(summed))))
    again = emit(op.concat([back, x], axis=1))
    return op.sum(emit(op.concat([again, again], axis=1)), axis=[1])


def test_a_workspace_becomes_an_output_that_nobody_reads():
    mod = scheduled(attention_like, PRODUCT)
    (kernel,) = [g.name_hint for g, f in mod.functions_items() if shared_buffers_of(f)]
    (buffer,) = shared_buffers(mod[kernel])
    lifted = lift_workspaces(mod)
    assert not shared_buffers(lifted[kernel])
    assert len(lifted[kernel].params) == len(mod[kernel].params) + 1
    call = next(
        value
        for _, value in bindings(lifted["main"])
        if op_name(value) == "relax.call_tir" and value.args[0].name_hint == kernel
    )
    workspace = call.ty_args[0].fields[-1]
    assert str(workspace.shape.values[0]) == "batch"  # the caller's symbol, not the kernel's
    assert [int(n) for n in workspace.shape.values[1:]] == [int(n) for n in buffer.ty.shape[1:]]


def shared_buffers_of(func: Any) -> list[Any]:
    return shared_buffers(func) if isinstance(func, tvm.tirx.PrimFunc) else []


def router(emit: Any, x: Any) -> Any:
    """Its kernel is told `batch` by a number: by a shape of 8 * batch it is not."""
    batch = x.ty.shape.values[0]
    found = emit(op.topk(emit(op.reshape(x, (8 * batch, 4))), 2, ret_type="values"))
    return op.multiply(found, rx.const(2.0))


def test_a_workspace_has_the_size_that_a_kernel_is_told_by_a_number():
    mod = scheduled(router, {"x": ("batch", 8, 4)})
    assert shared_buffers(mod["topk"])
    lifted = lift_workspaces(mod)
    assert not shared_buffers(lifted["topk"])
    call = next(
        value for _, value in bindings(lifted["main"]) if op_name(value) == "relax.call_tir"
    )
    (batch,) = rx.analysis.defined_symbolic_vars(lifted["main"])
    workspace = call.ty_args[0].fields[-1].shape.values[0]
    assert tvm.sym.Analyzer().can_prove_equal(workspace, 8 * batch)


def test_a_kernel_without_workspaces_is_left_as_it_is():
    mod = scheduled(chain, {"x": ("batch", 64)})
    assert lift_workspaces(mod) is mod


@pytest.mark.slow
def test_with_workspaces_lifted_and_memory_shared_a_program_computes_the_same():
    mod = scheduled(attention_like, PRODUCT)
    machine = built(lower(mod, TVM_TARGET))
    rng = np.random.default_rng(0)
    for batch in (1, 3, 8):
        x = rng.standard_normal((batch, 40, 64)).astype(np.float32)
        y = rng.standard_normal((batch, 1000, 64)).astype(np.float32)
        expected = 0.5 * x.astype(float) @ y.transpose(0, 2, 1)
        got = machine["main"](*map(tvm.runtime.tensor, (x, y))).numpy()
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.slow
def test_a_kernel_that_is_told_its_size_by_a_number_computes_the_same_with_its_workspace_lifted():
    machine = built(lower(scheduled(router, {"x": ("batch", 8, 4)}), TVM_TARGET))
    for batch in (1, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 8, 4)).astype(np.float32)
        got = machine["main"](tvm.runtime.tensor(x)).numpy()
        np.testing.assert_array_equal(got, 2 * np.sort(x.reshape(-1, 4))[:, :1:-1])


def built(lowered: Any) -> Any:
    return rx.VirtualMachine(build_executable(lowered, TVM_TARGET), tvm.cpu())


@pytest.mark.slow
def test_storages_of_later_calls_are_those_of_the_first():
    machine = built(lower(scheduled(chain, {"x": ("batch", 64)}), TVM_TARGET))
    seen: list[set[int]] = []

    def watch(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> None:
        if not before and not name.startswith("vm."):
            seen[-1].update(a.data_ptr() for a in map(as_tensor, args) if a is not None)

    def as_tensor(arg: Any) -> Any:
        return Pointer(arg) if hasattr(arg, "numpy") else None

    machine.set_instrument(watch)
    x = tvm.runtime.tensor(np.ones((5, 64), np.float32))
    for _ in range(6):
        seen.append(set())
        machine["main"](x)
    assert len(seen[0]) > 2
    assert set().union(*seen[2:]) <= seen[0] | seen[1]  # a result may still be held by its caller


class Pointer:
    """Where a tensor's data lies."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def data_ptr(self) -> int:
        return np.from_dlpack(self.tensor).ctypes.data


@pytest.mark.parametrize("batch", [1, 8])
def test_planning_never_holds_more_than_the_pool_alone_or_the_stock_plan(batch: int):
    mod = scheduled(chain, {"x": ("batch", 4096)}, batch=(1, batch))
    sizes = {"batch": batch}

    def held(plan: Any) -> int:
        return held_bytes(lower(mod, TVM_TARGET, plan=plan), sizes)["main"]

    assert held(plan_memory) <= held(None)
    assert held(plan_memory) <= held(STOCK)
    assert held(plan_memory) < held(None) or batch == 1


def test_storages_have_the_bound_of_their_symbol():
    mod = scheduled(chain, {"x": ("batch", 4096)}, batch=(1, 8))
    stored = [
        value.args[0].values[0]
        for _, value in bindings(lower(mod, TVM_TARGET)["main"])
        if op_name(value) == "relax.memory.alloc_storage"
    ]
    bounded = [int(size) for size in stored if isinstance(size, tvm.tirx.IntImm)]
    assert max(bounded) == 4 * 4 * 4096 * 8 or max(bounded) == 4 * 3 * 4096 * 8
    assert len(stored) == len(bounded) + 1  # what is returned has the size that it has


TENSORS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 40), st.integers(0, 10)), min_size=1, max_size=40
)


@settings(deadline=None)
@given(TENSORS)
def test_tensors_that_live_at_once_never_share_and_equal_ones_use_as_few_storages_as_can_be(rows):
    tensors = [memory._Tensor(None, None, size, at, at + live) for size, at, live in rows]
    for storage in memory._assign(tensors):
        placed = sorted(storage.tensors, key=lambda one: one.first)
        assert all(a.last < b.first for a, b in pairwise(placed))
        assert storage.bytes == max(one.bytes for one in placed)
    equal = [memory._Tensor(None, None, 1, at, at + live) for _, at, live in rows]
    alive = [sum(one.first <= at <= one.last for one in equal) for at in range(52)]
    assert len(memory._assign(equal)) == max(alive)


def test_a_tuple_is_opened_so_that_it_keeps_nothing():
    x = rx.Var("x", rx.TensorType((3,), "float32"))
    builder = rx.BlockBuilder()
    with builder.function("main", [x], pure=False):
        pair = builder.emit(rx.Tuple([x, builder.emit(op.add(x, x))]), "pair")
        builder.emit_func_output(builder.emit(op.add(rx.TupleGetItem(pair, 1), x)))
    main = open_tuples(builder.get())["main"]
    twice, alias, result = bindings(main)
    assert [op_name(twice[1]), op_name(result[1])] == ["relax.add", "relax.add"]
    assert alias[1].same_as(twice[0])
    assert main.body.body.same_as(result[0])


def test_on_cuda_what_can_be_captured_becomes_a_cuda_graph():
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")

    def four(emit: Any, x: Any) -> Any:  # the first reads what the caller gives, the last is given
        for _ in range(3):
            x = emit(op.nn.softmax(x))
        return op.nn.softmax(x)

    mod = scheduled(four, {"x": (4, 64)})
    names = {gvar.name_hint for gvar in lower(mod, target).get_global_vars()}
    assert any(name.startswith("cuda_graph_alloc") for name in names)
    assert any("cuda_graph_capture" in name for name in names)
    here = {gvar.name_hint for gvar in lower(mod, TVM_TARGET).get_global_vars()}
    assert not any("cuda_graph" in name for name in here)
    assert CUDA_GRAPH == "relax.backend.use_cuda_graph"
