"""What a program may hold: library calls beside kernels, sizes that data decides, one symbol over
functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import TVM_TARGET, V3, graph, rx

from tapml_stages.codegen.build import build_executable, lower
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower as lower_operators

op = rx.op


def machine(mod: Any) -> Any:
    return rx.VirtualMachine(build_executable(lower(mod, TVM_TARGET), TVM_TARGET), tvm.cpu())


def test_a_kernel_and_a_library_call_are_bindings_of_one_program() -> None:
    builder = rx.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    x = rx.Var("x", rx.TensorType((n, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            twice = builder.emit(builder.call_te(lambda a: tvm.topi.add(a, a), x), "twice")
            call = op.call_dps_packed("test.negated", (twice,), out_ty=x.ty)
            out = builder.emit_output(call)
        builder.emit_func_output(out)

    def negated(a: Any, b: Any) -> None:
        b.copyfrom(-a.numpy())

    tvm.register_global_func("test.negated", negated, override=True)
    mod = builder.get()
    kinds = [op_name(value) for _, value in bindings(mod["main"])]
    assert kinds == ["relax.call_tir", "relax.call_dps_packed"]
    run = machine(mod)["main"]
    for rows in (1, 5):
        given = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(run(tvm.runtime.tensor(given)).numpy(), -2 * given)


def of_data() -> Any:
    """The first `k` rows of x, added to y [k, 4]: `k` is what the tensor `count` holds."""
    builder = rx.BlockBuilder()
    n, k = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("k", "int64")
    x = rx.Var("x", rx.TensorType((n, 4), "float32"))
    count = rx.Var("count", rx.TensorType((1,), "int64"))
    y = rx.Var("y", rx.TensorType(None, "float32", ndim=2))
    with builder.function("main", [x, count, y]):
        size = builder.emit(op.tensor_to_shape(count))
        builder.match_cast(size, rx.ShapeType([k]))
        rows = builder.match_cast(y, rx.TensorType((k, 4), "float32"))
        first = builder.emit(
            builder.call_te(
                lambda a, b: tvm.te.compute(b.shape, lambda i, j: a(i, j) + b(i, j)), x, rows
            )
        )
        builder.emit_func_output(first)
    return builder.get()


def test_a_size_that_data_decides_is_cast_once_and_checked_when_it_runs() -> None:
    run = machine(of_data())["main"]
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    for k in (1, 3, 6):
        y = np.ones((k, 4), np.float32)
        given = (x, np.array([k], np.int64), y)
        np.testing.assert_array_equal(run(*map(tvm.runtime.tensor, given)).numpy(), x[:k] + 1)
    wrong = (x, np.array([2], np.int64), np.ones((3, 4), np.float32))
    with pytest.raises(Exception, match=r"match_cast|MatchCast|shape"):
        run(*map(tvm.runtime.tensor, wrong))


def test_one_symbol_holds_over_functions_and_calls_and_expressions_of_it_are_kept() -> None:
    def body(emit: Any, x: Any, w: Any) -> Any:
        four = emit(op.concat([x, x, x, x], axis=0))  # [4*batch, 8]
        return op.nn.relu(emit(op.matmul(four, w)))

    program = graph(body, {"x": ("batch", 8)}, {"w": (8, 16)})
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    main, region = mod["main"], mod["region_0"]
    (batch,) = rx.analysis.defined_symbolic_vars(main)
    assert tvm.sym.Analyzer().can_prove_equal(main.ret_ty.shape.values[0], batch * 4)
    (rows,) = rx.analysis.defined_symbolic_vars(region)  # the size of the call, as its own symbol
    assert region.params[0].ty.shape.values[0].same_as(rows)
    lowered = lower_operators(program.with_mod(mod), V3).mod["main"]
    (batch,) = rx.analysis.defined_symbolic_vars(lowered)
    assert tvm.sym.Analyzer().can_prove_equal(lowered.ret_ty.shape.values[0], batch * 4)


def test_the_pattern_of_a_users_primfunc_is_inferred_and_fused_at_symbolic_sizes() -> None:
    """A decode that is only a PrimFunc, and a product that nobody told about it."""

    def decode(q: Any, s: Any) -> Any:
        return tvm.te.compute(
            q.shape, lambda i, j: q(i, j).astype("float32") * s(i // 4, j), "decode"
        )

    builder = rx.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    q = rx.Var("q", rx.TensorType((n, 8), "int8"))
    s = rx.Var("s", rx.TensorType((n // 4 + 1, 8), "float32"))
    with builder.function("main", [q, s]):
        with builder.dataflow():
            decoded = builder.emit(builder.call_te(decode, q, s), "decoded")
            out = builder.emit_output(op.nn.relu(decoded))
        builder.emit_func_output(out)
    mod = rx.transform.AnnotateTIROpPattern()(rx.transform.LegalizeOps()(builder.get()))
    assert int(mod["decode"].attrs["op_pattern"]) == 2  # injective, told by nobody
    fused = rx.transform.FuseTIR()(rx.transform.FuseOps(2)(mod))
    calls = [value for _, value in bindings(fused["main"]) if op_name(value) == "relax.call_tir"]
    assert len(calls) == 1
