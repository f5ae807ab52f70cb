"""Kernels that call a library for a region's product, and compute its epilogue in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tapml.stage import Target

from ..compat import tvm
from ..dataflow import bindings
from ..program import QUANTIZED, Program
from ..regions import Epilogue, Region, Unsupported, read_epilogue, read_region, region_calls
from .library import Library

relax, tirx = tvm.relax, tvm.tirx


@dataclass(frozen=True)
class Made:
    """A kernel, its row of the index; or why a region has none."""

    region: str
    row: dict[str, Any] | None = None
    func: Any = None
    declined: str = ""


def make(program: Program, name: str, library: Library, target: Target) -> Iterator[Made]:
    """A kernel for each region whose product the library's pattern matches."""
    pattern = library.pattern()
    for call, func, used in region_calls(program):
        region_name = call.op.name_hint
        try:
            if QUANTIZED in func.attrs:
                raise Unsupported("its weight is stored as integers")
            region = read_region(call, func, used)
            product = dict(bindings(func))[region.product]
            if not pattern.match(product, relax.analysis.get_var2val(func)):
                raise Unsupported("the library's pattern does not match")
            kernel, inputs = _kernel(region, library, target)
        except Unsupported as reason:
            yield Made(region_name, declined=str(reason))
            continue
        identifier = f"{region_name}.{name}"
        row = {
            "id": identifier,
            "region": region_name,
            "kind": "library",
            "library": name,
            "kernel": identifier.replace(".", "_"),
            "args": [
                {"values": region.weight, "packer": "source"}
                if index == region.parameter
                else {"input": index}
                for index in inputs
            ],
        }
        yield Made(region_name, row, kernel)


def _kernel(region: Region, library: Library, target: Target) -> tuple[Any, list[int]]:
    """The PrimFunc, and the region's parameters that it takes before its output."""
    m = tirx.Var("m", "int64")
    epilogue = read_epilogue(region)
    buffers = epilogue.buffers(m) if epilogue is not None else {}
    x = buffers.setdefault(region.activation, tirx.decl_buffer((m, region.k), "float32", "X"))
    shape = (region.k, region.n) if region.transpose else (region.n, region.k)
    w = tirx.decl_buffer(shape, "float32", "W")
    y = tirx.decl_buffer((m, region.n), "float32", "Y")
    transposed = tirx.const(0 if region.transpose else 1, "int64")
    shares = target.device.threads

    sizes = [m, *(tirx.const(size, "int64") for size in (region.k, region.n))]
    zero = tirx.const(0, "int64")
    places = [tirx.address_of(tirx.BufferLoad(one, [zero, zero])) for one in (x, w, y)]

    def share(index: Any) -> Any:
        # no packed call: TVM declares one anew for each kernel, LLVM renames all but the first
        arguments = [*places, *sizes, transposed, index, tirx.const(shares, "int64")]
        return tirx.Evaluate(tirx.call_extern("void", library.function, *arguments))

    body = _parallel("share", tirx.const(shares, "int64"), share)
    if epilogue is not None:
        body = tirx.SeqStmt([body, _finish(epilogue, buffers, y, m, region.n, target)])
    root = tvm.s_tir.SBlock([], [], [], "root", body)
    inputs = [index for index in (region.activation, *buffers) if index != region.parameter]
    inputs = list(dict.fromkeys(inputs))
    func = tirx.PrimFunc(
        [*(buffers[index] for index in inputs), w, y], tvm.s_tir.SBlockRealize([], True, root)
    )
    return func.with_attr("tirx.noalias", True), [*inputs, region.parameter]


def _finish(
    epilogue: Epilogue, buffers: dict[int, Any], y: Any, m: Any, n: int, target: Target
) -> Any:
    """The epilogue over the product that lies in Y, row by row, in vectors."""
    width = target.vector_bits // 32
    lanes = width if n % width == 0 else 1

    def row(i: Any) -> Any:
        j, lane = tirx.Var("j", "int64"), tirx.Var("lane", "int64")
        column = j * lanes + lane if lanes > 1 else j
        value = epilogue.finish(buffers, tirx.BufferLoad(y, [i, column]), i, column)
        store = tirx.BufferStore(y, value, [i, column])
        zero = tirx.const(0, "int64")
        if lanes > 1:
            count = tirx.const(lanes, "int64")
            store = tirx.For(lane, zero, count, tirx.ForKind.VECTORIZED, store)
        return tirx.For(j, zero, tirx.const(n // lanes, "int64"), tirx.ForKind.SERIAL, store)

    return _parallel("i", m, row)


def _parallel(name: str, extent: Any, body: Any) -> Any:
    var = tirx.Var(name, "int64")
    return tirx.For(var, tirx.const(0, "int64"), extent, tirx.ForKind.PARALLEL, body(var))
