"""The passes of codegen: each on the smallest program that shows it, before and after; of the
memory plan and tuples see test_memory.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from graphs import assert_same, rx

from tapml_stages.codegen.apply import Replacement, apply, with_schedules
from tapml_stages.codegen.share import share_kernels
from tapml_stages.codegen.workspace import lift_workspaces
from tapml_stages.compat import tvm
from tapml_stages.program import REGION, TRANSFORM
from tapml_stages.records import Choices, KernelChoice, Record

op, te, tirx = rx.op, tvm.te, tvm.tirx
ROW = rx.TensorType([8], "float32")


def kernel(*steps: Callable[..., Any]) -> Any:
    """A PrimFunc over rows of 8: each step computes on what the one before gives."""
    given = [te.placeholder((8,), name="x")]
    made = given[0]
    for step in steps:
        made = te.compute((8,), partial(_element, step, made))
    return te.create_prim_func([*given, made]).without_attr("global_symbol")


def _element(step: Callable[[Any], Any], of: Any, *at: Any) -> Any:
    return step(of(*at))


def program(kernels: dict[str, Any], body: Callable[..., Any], *params: str) -> Any:
    """A module of kernels and a `main(*params)` that calls them."""
    builder = rx.BlockBuilder()
    variables = [rx.Var(name, ROW) for name in params]
    with builder.function("main", variables, attrs={"num_input": 1}):
        gvars = {name: builder.add_func(func, name) for name, func in kernels.items()}

        def call(name: str, *args: Any, out: Any = ROW) -> Any:
            return builder.emit(rx.call_tir(gvars[name], args, out_ty=out))

        with builder.dataflow():
            out = builder.emit_output(body(call, *variables))
        builder.emit_func_output(out)
    return builder.get()


def double(x: Any) -> Any:
    return x * tirx.const(2.0, "float32")


def test_equal_kernels_become_one() -> None:
    two = {name: kernel(double).with_attr(REGION, name) for name in ("one", "other")}
    mod, stands_in = share_kernels(program(two, lambda call, x: call("other", call("one", x)), "x"))
    once = program({"one": two["one"]}, lambda call, x: call("one", call("one", x)), "x")
    assert stands_in == {"other": "one"}
    assert {gvar.name_hint for gvar in mod.get_global_vars()} == {"main", "one"}
    assert_same(mod, once)


def test_what_several_nests_of_a_kernel_use_becomes_an_output() -> None:
    mod = program({"k": kernel(double, double)}, lambda call, x: op.abs(call("k", x)), "x")
    lifted = lift_workspaces(mod)

    def both(call: Callable[..., Any], x: Any) -> Any:
        return op.abs(rx.TupleGetItem(call("k", x, out=[ROW, ROW]), 0))

    assert_same(lifted, rx.transform.Normalize()(program({"k": lifted["k"]}, both, "x")))


def record(name: str, func: Any) -> Record:
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name)})
    return Record("r", name, "", "default", "rule", tvm.ir.save_json(mod))


def test_a_kernel_gets_the_schedule_that_was_chosen() -> None:
    scheduled = kernel(double).with_attr("tirx.is_scheduled", True)
    body = lambda call, x: op.abs(call("k", x))  # noqa: E731
    before, after = (program({"k": one}, body, "x") for one in (kernel(double), scheduled))
    choices = Choices((KernelChoice("k", "r", ()),))
    mod = with_schedules(before, choices, [record("k", scheduled)])
    tvm.ir.assert_structural_equal(mod, after)


def test_an_alternative_takes_the_place_of_a_region_with_parameters_of_its_own() -> None:
    """`values` for `packed`, which nothing else reads."""
    dense, sparse = kernel(double), kernel(double, double)
    before = program(
        {"dense": dense}, lambda call, x, packed: op.abs(call("dense", packed)), "x", "packed"
    )
    before[TRANSFORM] = before["main"]  # weights are packed elsewhere
    replacement = Replacement("main", "dense", sparse, "sparse", ("values",))
    applied = apply(before, 1, [replacement], {"values": ROW})
    after = program(
        {"sparse": sparse}, lambda call, x, values: op.abs(call("sparse", values)), "x", "values"
    )
    assert (applied.packed, applied.arrays) == ((), ("values",))
    assert {gvar.name_hint for gvar in applied.mod.get_global_vars()} == {"main", "sparse"}
    assert_same(applied.mod, after)
