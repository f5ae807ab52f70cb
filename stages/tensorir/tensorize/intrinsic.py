"""Instructions as data: what one computes, how, and on which target.

An intrinsic is two PrimFuncs of the same parameters, inputs first. The semantics are one block that
adds to the last parameter, `C[…] = C[…] + f(A[…], B[…])`; the implementation is any body over whole
tiles. Neither says where it may be used: that is found by matching (match.py), so an intrinsic of
another package goes the same way as ours. Source: TensorIR (Feng et al. 2023), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ..kernel import Axis, Expr, Step, key, loads, product, read
from ..stage import INTRINSICS

tirx = tvm.tirx


@dataclass(frozen=True, eq=False)
class Intrinsic:
    """An instruction, or a few.

    semantics       what is added to the last parameter
    implementation  a body that does it; its buffers lie row by row, without gaps
    requires        features of the resolved target that it takes, all of them
    cost            how many instructions it counts for; what is cheaper by element is taken
    """

    name: str
    semantics: Any
    implementation: Any
    requires: frozenset[str] = frozenset()
    cost: float = 1.0

    @cached_property
    def step(self) -> Step:
        """The semantics as a sum. Raises: ValueError for what is none, or has other parameters."""
        kernel = read(self.semantics, accumulates=True)
        alike = [
            [(tuple(map(int, p.ty.shape)), str(p.ty.dtype)) for p in func.params]
            for func in (self.semantics, self.implementation)
        ]
        if kernel is None or len(kernel.steps) != 1 or alike[0] != alike[1]:
            raise ValueError(f"intrinsic {self.name}: its two functions do not describe one block")
        (step,) = kernel.steps
        step = replace(step, init=tirx.const(0, str(step.buffer.ty.dtype)))
        if step.element is None or not step.is_identity or key(step.buffer) != key(self.params[-1]):
            raise ValueError(f"intrinsic {self.name}: it adds nothing to its last parameter")
        if any(axis.static is None for axis in (*step.axes, *step.reduce)):
            raise ValueError(f"intrinsic {self.name}: its sizes are not fixed")
        return step

    @property
    def params(self) -> tuple[Any, ...]:
        return tuple(self.semantics.params)

    @cached_property
    def tiles(self) -> tuple[tuple[Axis, ...], ...]:
        """Per input, the axes that its indices are. Raises: ValueError for another index."""
        axes = {key(axis.var): axis for axis in (*self.step.axes, *self.step.reduce)}
        found = []
        for param in self.params[:-1]:
            own = [one for one in loads(self.step.value) if key(one.source) == key(param)]
            if len(own) != 1 or not all(key(index) in axes for index in own[0].indices):
                raise ValueError(f"intrinsic {self.name}: an index is no axis of its own")
            found.append(tuple(axes[key(index)] for index in own[0].indices))
        return tuple(found)

    @property
    def size(self) -> int:
        """Elements that one execution combines."""
        return product([axis.extent for axis in (*self.step.axes, *self.step.reduce)])

    def at(self, places: Sequence[tuple[Any, Sequence[Expr]]]) -> Any:
        """The implementation on tiles that start at the given elements: one (buffer, indices) for
        each parameter; the last indices are those of the parameter.
        """
        own = dict(zip(map(key, self.implementation.params), places, strict=True))
        body = self.implementation.body
        if isinstance(body, tvm.s_tir.SBlockRealize):
            body = body.block.body
        fresh: dict[int, Any] = {}  # what the body defines, anew for every place

        def rename(var: Any) -> None:
            fresh[key(var)] = tirx.Var(var.name, var.ty)

        def place(source: Any, indices: Sequence[Expr]) -> tuple[Any, list[Expr]]:
            buffer, start = own[key(source)]
            kept = len(start) - len(indices)
            moved = [_plus(a, b) for a, b in zip(start[kept:], indices, strict=True)]
            return buffer, [*start[:kept], *moved]

        def load(one: Any) -> Any:
            return (
                tirx.BufferLoad(*place(one.source, one.indices)) if key(one.source) in own else one
            )

        def store(one: Any) -> Any:
            if key(one.buffer) not in own:
                return one
            buffer, indices = place(one.buffer, one.indices)
            return tirx.BufferStore(buffer, one.value, indices)

        tvm_ffi.structural_walk(body, (tirx.Bind, lambda one: rename(one.var)))
        tvm_ffi.structural_walk(body, (tirx.For, lambda one: rename(one.loop_var)))
        tvm_ffi.structural_walk(body, (tirx.AllocBuffer, lambda one: rename(one.buffer)))
        body = tvm_ffi.structural_map(body, (tirx.Var, lambda var: fresh.get(key(var), var)))
        body = tvm_ffi.structural_map(body, (tvm.ir.TensorLoad, load))
        return tvm_ffi.structural_map(body, (tirx.BufferStore, store))


def _plus(base: Expr, index: Expr) -> Expr:
    """An index of a scalar start and what is added to it, a vector perhaps."""
    if isinstance(index, tirx.Ramp):
        start, stride = (one.astype(base.ty.dtype) for one in (index.base, index.stride))
        return tirx.Ramp(base + start, stride, index.lanes)
    return base + index.astype(base.ty.dtype)


def usable(known: Iterable[Intrinsic], target: Target) -> tuple[Intrinsic, ...]:
    """Those whose requirements the target meets, the cheapest by element first."""
    features = set(target.features)
    fit = [one for one in known if one.requires <= features]
    return tuple(sorted(fit, key=lambda one: (one.cost / one.size, one.name)))


@cache
def installed() -> tuple[Intrinsic, ...]:
    """Intrinsics of every package that has an entry point for them."""
    found = sorted(entry_points(group=INTRINSICS), key=lambda entry: entry.name)
    return tuple(one for entry in found for one in entry.load()())
