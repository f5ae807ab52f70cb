"""Kernels that a process beside builds: in the same library, and with errors in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import TVM_TARGET, rx

from tapml.errors import StageError, WorkerError
from tapml_stages.codegen import objects
from tapml_stages.codegen.build import Linking, build_library, lower
from tapml_stages.codegen.scratch import MOST
from tapml_stages.compat import tvm
from tapml_stages.tensorir import loops

tirx = tvm.tirx
FLOATS = 16


def program(count: int, *, broken: bool = False) -> Any:
    """x [16] → x + 1 + 2 + … + `count`, a kernel for each, or as many that allocate too much."""
    builder = rx.BlockBuilder()
    x = rx.Var("x", rx.TensorType((FLOATS,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x
            for number in range(1, count + 1):
                kernel = _broken(number) if broken else _adds(number)
                gv = builder.add_func(kernel, f"kernel_{number}")
                value = builder.emit(rx.call_tir(gv, [value], rx.TensorType((FLOATS,), "float32")))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    return builder.get()


def _adds(number: int) -> Any:
    a = tvm.te.placeholder((FLOATS,), name="a")
    added = tvm.te.compute((FLOATS,), lambda i: a[i] + float(number), name="added")
    return tvm.te.create_prim_func([a, added])


def _broken(number: int) -> Any:
    """Each chunk allocates more than is allowed."""
    a, b = (tirx.decl_buffer((FLOATS,), "float32", name) for name in "ab")
    held = loops.local("held", (MOST + number,), "float32")

    def chunk(at: list[Any]) -> Any:
        kept = loops.loop("j", MOST, lambda j: loops.store(held, [j], tirx.BufferLoad(a, at)))
        last = tirx.BufferLoad(held, [tirx.floormod(at[0] * 7919, tirx.const(MOST, "int64"))])
        return loops.seq([tirx.AllocBuffer(held), kept, loops.store(b, at, last)])

    body = loops.parallel([FLOATS], chunk, "int64")
    return loops.scheduled(tirx.PrimFunc([a, b], body).with_attr("tirx.noalias", True), body)


def built(mod: Any, folder: Path) -> Any:
    library = folder / "lib.so"
    build_library(lower(mod, TVM_TARGET), TVM_TARGET, library, Linking(None))
    return rx.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())["main"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [objects.LEAST - 1, objects.LEAST + 3])
def test_kernels_of_both_processes_are_in_the_library(count: int, tmp_path: Path) -> None:
    x = np.arange(FLOATS, dtype="float32")
    found = built(program(count), tmp_path)(tvm.runtime.tensor(x)).numpy()
    np.testing.assert_array_equal(found, x + count * (count + 1) / 2)


def test_every_second_kernel_is_left_to_the_other_process() -> None:
    lowered = lower(program(objects.LEAST + 3), TVM_TARGET)
    with objects.beside(lowered, TVM_TARGET) as others:
        assert len(others.names) == (objects.LEAST + 3) // 2
        assert objects.ELSEWHERE.get() == others.names
        assert others.process is not None
    assert not objects.ELSEWHERE.get()
    assert others.process.poll() is not None  # it does not outlive the build


@pytest.mark.slow
def test_what_the_other_process_refuses_is_told_in_its_words() -> None:
    lowered = lower(program(objects.LEAST, broken=True), TVM_TARGET)
    with objects.beside(lowered, TVM_TARGET) as others:
        with pytest.raises(StageError, match="allocates") as failure:
            others.objects()
        assert not isinstance(failure.value, WorkerError)


@pytest.mark.slow
def test_a_killed_process_is_an_error_that_says_so() -> None:
    lowered = lower(program(objects.LEAST), TVM_TARGET)
    with objects.beside(lowered, TVM_TARGET) as others:
        assert others.process is not None
        others.process.kill()
        with pytest.raises(WorkerError, match="-9"):
            others.objects()
