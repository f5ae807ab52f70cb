"""Where an intrinsic fits a reduction.

The scalar expressions must be the same but for the operands, which may be narrower than the
intrinsic's. An axis of the reduction can only stand for an axis of the intrinsic that the same
operands depend on (its characteristic vector); of those that can, the innermost is cut into tiles
where it divides, else all of them are fused and padded. Source: TensorIR (Feng et al. 2023),
section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ..kernel import Axis, Expr, Step, ceil_div, depends_on, element_dtype, is_load, key
from .intrinsic import Intrinsic

tirx = tvm.tirx
INTEGER = 3.0  # instructions that multiply and add a vector of integers: extend, multiply, add
SYMBOLIC = 32  # what a symbolic size counts as


@dataclass(frozen=True)
class Split:
    """How one axis of the intrinsic is found in the reduction: `fused`, as one axis of `size`
    elements, in `count` tiles of `tile`.
    """

    fused: tuple[Axis, ...]
    size: int
    tile: int

    @property
    def count(self) -> int:
        return ceil_div(self.size, self.tile)

    @property
    def exact(self) -> bool:
        """Whether the tile is an axis as it is."""
        return len(self.fused) == 1 and self.size == self.tile

    @property
    def pads(self) -> bool:
        return self.count * self.tile != self.size


@dataclass(frozen=True)
class Match:
    """An intrinsic for a reduction: `operands` for its inputs, `splits` for its axes, spatial ones
    first.
    """

    intrinsic: Intrinsic
    anchor: Step
    operands: tuple[Expr, ...]
    splits: tuple[Split, ...]

    @property
    def cost(self) -> float:
        """Instructions that it takes, padding included."""
        padded = prod(split.count * split.tile / split.size for split in self.splits)
        return self.intrinsic.cost * volume(self.anchor) * padded / self.intrinsic.size

    @property
    def spatial(self) -> tuple[Split, ...]:
        return self.splits[: len(self.intrinsic.step.axes)]


def plain_cost(anchor: Step, target: Target) -> float:
    """Instructions of the reduction with plain vectors."""
    each = 1.0 if element_dtype(anchor.buffer).startswith("float") else INTEGER
    return volume(anchor) / lanes(anchor, target) * each


def lanes(anchor: Step, target: Target) -> float:
    """Elements of the result in a vector."""
    return target.vector_bits / (8 * np.dtype(element_dtype(anchor.buffer)).itemsize)


def matches(anchor: Step, intrinsic: Intrinsic) -> Iterator[Match]:
    """Every way to read the reduction as the intrinsic's."""
    step = intrinsic.step
    if anchor.element is None or not anchor.is_identity:
        return
    if element_dtype(anchor.buffer) != element_dtype(step.buffer):
        return
    for bound in _unify(step.element, anchor.element):
        operands = tuple(bound[key(param)] for param in intrinsic.params[:-1])
        splits = _splits(anchor, intrinsic, operands)
        if splits is None or (any(split.pads for split in splits) and not _is_product(step)):
            continue
        yield Match(intrinsic, anchor, operands, splits)


def _splits(
    anchor: Step, intrinsic: Intrinsic, operands: Sequence[Expr]
) -> tuple[Split, ...] | None:
    """A split for each axis of the intrinsic; None when one would need a symbolic size."""
    found = []
    for group, axes in ((intrinsic.step.axes, anchor.axes), (intrinsic.step.reduce, anchor.reduce)):
        for axis in group:
            wanted = [axis in tile for tile in intrinsic.tiles]
            alike = [g for g in axes if [depends_on(one, g) for one in operands] == wanted]
            if sum(([one in tile for tile in intrinsic.tiles] == wanted) for one in group) > 1:
                return None  # two axes of the intrinsic for the same ones of the reduction
            tile = axis.static or 1
            if alike and alike[-1].static is not None and alike[-1].static % tile == 0:
                found.append(Split((alike[-1],), alike[-1].static, tile))
            elif all(one.static is not None for one in alike):
                found.append(Split(tuple(alike), prod(one.static or 0 for one in alike), tile))
            else:
                return None
    return tuple(found) if all(split.size > 0 for split in found) else None


def _unify(pattern: Expr, value: Expr) -> Iterator[dict[int, Expr]]:
    """Operands for the loads of `pattern` that make it `value`: key of the parameter → operand."""
    if is_load(pattern):
        if pattern.ty.dtype == value.ty.dtype:
            yield {key(pattern.source): value}
    elif type(pattern) is not type(value) or pattern.ty.dtype != value.ty.dtype:
        return
    elif isinstance(pattern, tirx.Cast):
        if is_load(pattern.value) and holds(pattern.value.ty.dtype, value.value.ty.dtype):
            yield {key(pattern.value.source): value.value}
        elif not is_load(pattern.value):
            yield from _unify(pattern.value, value.value)
    elif isinstance(pattern, tirx.Add | tirx.Mul):
        for left, right in ((value.a, value.b), (value.b, value.a)):
            for one in _unify(pattern.a, left):
                for other in _unify(pattern.b, right):
                    yield one | other
    elif tvm_ffi.structural_equal(pattern, value):
        yield {}


def holds(wide: Any, narrow: Any) -> bool:
    """Whether every value of one dtype is one of the other."""
    return np.can_cast(np.dtype(str(narrow)), np.dtype(str(wide)), "safe")


def _is_product(step: Step) -> bool:
    """Whether zeros add nothing, so that sums may be padded with them."""
    return isinstance(step.element, tirx.Mul)


def volume(anchor: Step) -> float:
    return elements((*anchor.axes, *anchor.reduce))


def elements(axes: Sequence[Axis]) -> float:
    """How many there are, symbolic sizes estimated."""
    return float(prod(axis.static or SYMBOLIC for axis in axes))
