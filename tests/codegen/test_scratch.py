"""What kernels may allocate while they run, and that codegen refuses what is more."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import TVM_TARGET, V3, rx
from rules import asm

from tapml.errors import StageError
from tapml_stages.codegen.build import build_executable, lower
from tapml_stages.codegen.scratch import MOST, demand_bounded, scratch
from tapml_stages.compat import tvm
from tapml_stages.tensorir import loops

tirx = tvm.tirx
N = tirx.Var("n", "int64")
FLOATS = MOST // 4


def kernel(*shape: Any, chunk: bool = True) -> Any:
    """A kernel over rows of 64 that goes through a buffer of a shape, of each chunk or of all."""
    a, b = (tirx.decl_buffer((N, 64), "float32", name) for name in "ab")
    buffer = loops.local("scratch", shape, "float32")
    allocate = tirx.AllocBuffer(buffer)

    def row(i: Any) -> Any:
        def turn(j: Any) -> Any:
            at = [tirx.floormod(j * 7 + i, tirx.const(0, "int64") + one) for one in shape]
            kept = tirx.BufferStore(buffer, tirx.BufferLoad(a, [i, j]), at)
            return loops.seq([kept, tirx.BufferStore(b, tirx.BufferLoad(buffer, at), [i, j])])

        inner = loops.loop("j", 64, turn)
        return loops.seq([allocate, inner]) if chunk else inner

    body = loops.parallel([N], lambda at: row(at[0]), "int64")
    return loops.scheduled(
        tirx.PrimFunc([a, b], body).with_attr("tirx.noalias", True),
        body if chunk else loops.seq([allocate, body]),
    )


@pytest.mark.parametrize(
    ("shape", "bytes"),
    [((4096,), (4 * 4096,)), ((N, 16), (0, 64)), ((N + 500,), (2000, 4)), ((FLOATS,), (MOST,))],
    ids=["a tile", "rows of scores", "a row and more", "the most"],
)
def test_scratch_of_a_chunk_is_allowed(shape: tuple[Any, ...], bytes: tuple[int, ...]) -> None:
    (found,) = asm.allocations(kernel(*shape), V3)
    assert (found.bytes, found.wrong) == (bytes, "")


def test_what_lies_on_the_stack_is_no_allocation() -> None:
    assert asm.allocations(kernel(16), V3) == []


@pytest.mark.parametrize(
    ("shape", "chunk", "wrong"),
    [
        ((N, N), True, "product of 2 sizes"),
        ((N, 257), True, "1028 bytes for each"),
        ((FLOATS + 1000,), True, "4.0 MiB"),
        ((4096,), False, "outside of its parallel loops"),
    ],
    ids=["a matrix of scores", "rows of a tensor", "a large tile", "what chunks share"],
)
def test_more_than_scratch_of_a_chunk_is_told(
    shape: tuple[Any, ...], chunk: bool, wrong: str
) -> None:
    (found,) = asm.allocations(kernel(*shape, chunk=chunk), V3)
    assert wrong in found.wrong


def test_an_allocation_that_a_loop_of_a_chunk_repeats_is_told() -> None:
    one, device = tirx.const(1, "int32"), tirx.const(0, "int32")
    workspace = tirx.TVMBackendAllocWorkspace(one, device, tirx.const(4096, "uint64"), 2, 32)
    buffer = tirx.decl_buffer((1024,), "float32", "scratch")
    body = tirx.SeqStmt([tirx.DeclBuffer(buffer, data=workspace), tirx.Evaluate(device)])
    serial = loops.loop("j", 8, lambda _: body)
    for wrong, inner in (("", body), ("in each turn of its loop 'j'", serial)):
        func = tirx.PrimFunc([], loops.parallel([4], lambda _, inner=inner: inner, "int64"))
        (found,) = scratch("k", func)
        assert wrong in found.wrong
        assert bool(found.wrong) == bool(wrong)
    with pytest.raises(StageError, match="k allocates memory anew in each turn"):
        demand_bounded(tvm.IRModule({"k": func}))


def test_codegen_refuses_a_kernel_that_allocates_a_matrix_of_scores() -> None:
    builder = rx.BlockBuilder()
    x = rx.Var("x", rx.TensorType((N, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            scores = builder.add_func(kernel(N, N), "scores")
            out = builder.emit_output(rx.call_tir(scores, (x,), out_ty=x.ty))
        builder.emit_func_output(out)
    with pytest.raises(StageError, match="scores allocates memory that grows with a product"):
        build_executable(lower(builder.get(), TVM_TARGET), TVM_TARGET)
