"""What kernels allocate while they run: bounded scratch of one chunk, or they are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import tvm_ffi

from tapml.errors import StageError

from ..compat import tvm

tirx = tvm.tirx

ALLOCATE = "tirx.TVMBackendAllocWorkspace"  # what is below 1 KiB lies on the stack instead
MOST = 4 << 20  # bytes of a chunk; second-level caches hold less
ROW = 1 << 10  # bytes of each element of a row that is as long as a size of the call


@dataclass(frozen=True)
class Scratch:
    """An allocation of a kernel while it runs.

    bytes:  a polynomial of the call's sizes: constant, for each of a size, for each of a product of
            two sizes, …
    shared: by the chunks of a parallel loop: it is allocated outside of these
    loop:   a loop within the chunk that repeats it, or ""
    """

    kernel: str
    bytes: tuple[int, ...]
    shared: bool
    loop: str

    @property
    def wrong(self) -> str:
        """What makes it more than bounded scratch of one chunk, or ""."""
        if self.loop:
            return f"anew in each turn of its loop {self.loop!r}"
        if self.shared:
            return "outside of its parallel loops"
        constant, row, *more = (*self.bytes, 0)
        if any(more):
            return f"that grows with a product of {len(self.bytes) - 1} sizes of the call"
        if constant > MOST:
            return f"of {constant / 2**20:.1f} MiB"
        return f"of {row} bytes for each of a size of the call" if row > ROW else ""


def demand_bounded(mod: Any) -> None:
    """Raises StageError naming the kernels that allocate more than scratch of a chunk.

    In: kernels after LowerTVMBuiltin, which decides what lies on the stack
    """
    wrong: dict[str, str] = {}
    for gvar, func in mod.functions_items():
        for one in scratch(str(gvar.name_hint), func):
            if one.wrong:
                wrong.setdefault(one.kernel, one.wrong)
    if wrong:
        told = "; ".join(f"{name} allocates memory {why}" for name, why in sorted(wrong.items()))
        raise StageError(
            message=told, hint="a schedule may keep tiles and rows of its own chunk, once for each"
        )


def scratch(kernel: str, func: Any) -> list[Scratch]:
    """Every allocation of a kernel, in order. In: after LowerTVMBuiltin"""
    sizes: dict[Any, Any] = {}
    loops: list[Any] = []
    tvm_ffi.structural_walk(func.body, (tirx.Bind, lambda one: sizes.update({one.var: one.value})))
    tvm_ffi.structural_walk(func.body, (tirx.For, loops.append))

    def within(node: Any, shared: bool, loop: str) -> Iterator[Scratch]:
        match node:
            case tirx.For() if _is_parallel(node):
                yield from within(node.body, False, "")
            case tirx.For():
                yield from within(node.body, shared, str(node.loop_var.name))
            case tirx.While():
                yield from within(node.body, shared, "while")
            case tirx.AttrStmt():
                yield from within(node.body, shared, loop)
            case tirx.SeqStmt():
                for one in node.seq:
                    yield from within(one, shared, loop)
            case tirx.IfThenElse():
                yield from within(node.then_case, shared, loop)
                if node.else_case is not None:
                    yield from within(node.else_case, shared, loop)
            case _:
                for size in _allocated(node):
                    yield Scratch(kernel, _polynomial(size, sizes), shared, loop)

    return list(within(func.body, any(map(_is_parallel, loops)), ""))


def _is_parallel(loop: Any) -> bool:
    return int(loop.kind) == int(tirx.ForKind.PARALLEL)


def _allocated(statement: Any) -> list[Any]:
    """Bytes of each workspace that a statement allocates."""
    calls: list[Any] = []
    tvm_ffi.structural_walk(statement, (tvm.ir.Call, calls.append))
    return [call.args[2] for call in calls if getattr(call.op, "name", "") == ALLOCATE]


def _polynomial(size: Any, known: Mapping[Any, Any]) -> tuple[int, ...]:
    """Coefficients that bound a size, by how many of the call's sizes are multiplied."""
    match size:
        case tirx.IntImm():
            return (abs(int(size)),)
        case tirx.Cast():
            return _polynomial(size.value, known)
        case tirx.Var() if size in known:
            return _polynomial(known[size], known)
        case tirx.Mul():
            a, b = _polynomial(size.a, known), _polynomial(size.b, known)
            return tuple(int(one) for one in np.convolve(a, b))
        case tirx.Min():
            return min(_polynomial(size.a, known), _polynomial(size.b, known), key=_largest_last)
        case tirx.Add() | tirx.Sub() | tirx.Max():
            pair = zip_longest(*(_polynomial(one, known) for one in (size.a, size.b)), fillvalue=0)
            return tuple(map(sum, pair))
        case tirx.Div() | tirx.FloorDiv() if isinstance(size.b, tirx.IntImm):
            return tuple(-(-one // int(size.b)) for one in _polynomial(size.a, known))
    return (0, 1)


def _largest_last(polynomial: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    return len(polynomial), tuple(reversed(polynomial))
