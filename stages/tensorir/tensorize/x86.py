"""Dot products of small integers on x86-64, as data.

All are exact for every input: `vpmaddubsw`, which saturates at 16 bits (the wheel's
`dot_16x4_avx512` is made of it), is not among them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...compat import tvm
from .intrinsic import Intrinsic

tirx = tvm.tirx
Vectors = Callable[[Any, Any, Any], Any]  # A (broadcast to the lanes), B, C → the new C


@cache
def intrinsics() -> Sequence[Intrinsic]:
    """Those of VNNI (four products an instruction and lane), and a widening multiply (two)."""
    found = [
        _dot("vnni_16x4", 16, 4, "uint8", "llvm.x86.avx512.vpdpbusd.512", 1.0, "avx512vnni"),
        _dot(
            *("vnni_8x4", 8, 4, "uint8", "llvm.x86.avx512.vpdpbusd.256", 1.0),
            *("avx512vnni", "avx512vl"),
        ),
        _dot("avx_vnni_8x4", 8, 4, "uint8", "llvm.x86.avx512.vpdpbusd.256", 1.0, "avxvnni"),
        _dot("maddwd_16x2", 16, 2, "int16", "llvm.x86.avx512.pmaddw.d.512", 2.0, "avx512bw"),
        _dot("maddwd_8x2", 8, 2, "int16", "llvm.x86.avx2.pmadd.wd", 2.0, "avx2"),
    ]
    return tuple(found)


def _dot(
    name: str, lanes: int, depth: int, data: str, instruction: str, cost: float, *requires: str
) -> Intrinsic:
    """C[i] += sum over k of A[k] * B[i, k]: `depth` elements of A against int8 in each lane."""
    shapes = (((depth,), data), ((lanes, depth), "int8"), ((lanes,), "int32"))
    a, b, c = (tirx.decl_buffer(*one, name) for one, name in zip(shapes, "ABC", strict=True))
    zero, whole = tirx.const(0, "int32"), f"int32x{lanes}"

    def vector(buffer: Any, *at: Any, count: int) -> Any:
        return tirx.BufferLoad(buffer, [*at, tirx.Ramp(zero, tirx.const(1, "int32"), count)])

    element = tirx.reinterpret("int32", vector(a, count=depth))  # the elements lie in one lane
    left = tirx.Broadcast(element, lanes)
    right = vector(b, zero, count=lanes * depth)
    old = vector(c, count=lanes)
    if data == "uint8":
        left = tirx.reinterpret(f"uint8x{lanes * depth}", left)
        new = tirx.call_llvm_pure_intrin(whole, instruction, old, left, right)
    else:
        pairs = f"int16x{lanes * depth}"
        args = (tirx.reinterpret(pairs, left), right.astype(pairs))
        new = old + tirx.call_llvm_pure_intrin(whole, instruction, *args)
    store = tirx.BufferStore(c, new, [tirx.Ramp(zero, tirx.const(1, "int32"), lanes)])
    implementation = tirx.PrimFunc([a, b, c], store)
    return Intrinsic(name, _sums(lanes, depth, data), implementation, frozenset(requires), cost)


def _sums(lanes: int, depth: int, data: str) -> Any:
    """The semantics of `_dot`."""
    a, b, c = (
        tirx.decl_buffer(shape, dtype, name)
        for shape, dtype, name in (
            ((depth,), data, "A"),
            ((lanes, depth), "int8", "B"),
            ((lanes,), "int32", "C"),
        )
    )
    i, k = (tirx.Var(name, "int32") for name in "ik")
    wide = [tirx.BufferLoad(*one).astype("int32") for one in ((a, [k]), (b, [i, k]))]
    update = tirx.BufferStore(c, tirx.BufferLoad(c, [i]) + wide[0] * wide[1], [i])
    return described([a, b, c], update, {i: lanes}, {k: depth})


def described(
    params: Sequence[Any], update: Any, axes: dict[Any, int], reduce: dict[Any, int]
) -> Any:
    """The PrimFunc of one block that stores `update` over spatial and summed axes (with sizes)."""
    iters, values, loops = [], [], []
    for kind, group in ((0, axes), (2, reduce)):
        for var, size in group.items():
            extent, outer = tirx.const(size, "int32"), tirx.Var(var.name, "int32")
            iters.append(tirx.IterVar(tvm.ir.Range(0, extent), var, kind))
            values.append(outer)
            loops.append((outer, extent))
    block = tvm.s_tir.SBlock(iters, [], [], "update", update)
    body: Any = tvm.s_tir.SBlockRealize(values, True, block)
    for var, extent in reversed(loops):
        body = tirx.For(var, tirx.const(0, "int32"), extent, tirx.ForKind.SERIAL, body)
    root = tvm.s_tir.SBlock([], [], [], "root", body)
    return tirx.PrimFunc(params, tvm.s_tir.SBlockRealize([], True, root))


def wheel(name: str, requires: frozenset[str], cost: float = 1.0) -> Intrinsic:
    """An intrinsic that TVM has for x86, under its name there (`dot_16x4_vnni`).

    `tvm.s_tir.tensor_intrin` parses those of every architecture (seconds); this module of it alone
    takes 0.2 s, and the package finds it loaded later.
    """
    full = "tvm.s_tir.tensor_intrin.x86"
    if full not in sys.modules:
        path = Path(tvm.s_tir.__file__).parent / "tensor_intrin" / "x86.py"
        spec = importlib.util.spec_from_file_location(full, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    found = tvm.s_tir.TensorIntrin.get(name)
    return Intrinsic(name, found.desc, found.impl, requires, cost)
