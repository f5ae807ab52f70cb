"""A reduction over the tiles of an intrinsic: operands reindexed, results put back.

An operand that lies as the intrinsic wants it is read where it is; of another, a copy is made, in
tiles, padded with zeros and as wide as the intrinsic's (TensorIR's ReIndex and AutoCopy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    as_int,
    bounded,
    depends_on,
    element_dtype,
    equal,
    is_load,
    key,
    loads,
    same,
    substitute,
)
from ..loops import dtype_of
from .intrinsic import Intrinsic
from .match import Match, Split, elements, lanes, matches, plain_cost

tirx = tvm.tirx
MOVE = 2.0  # instructions that move a vector: read, write


@dataclass(frozen=True)
class Tile:
    """What a register tile executes: the intrinsic on `operands` (loads), whose `inner` axes it
    sums over itself.
    """

    intrinsic: Intrinsic
    operands: tuple[Expr, ...]
    inner: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the intrinsic's result."""
        return tuple(axis.static or 1 for axis in self.intrinsic.step.axes)


@dataclass(frozen=True)
class Tiled:
    """A kernel whose reduction is over the tiles of a match.

    copies     per operand the step that copies it, or None
    anchor     the reduction, its last axis the elements of the intrinsic's result
    in_layout  whether its result lies as before
    cost       in instructions
    """

    match: Match
    kernel: Kernel
    anchor: Step
    tile: Tile
    copies: tuple[Step | None, ...]
    in_layout: bool
    cost: float = 0.0


def best(
    kernel: Kernel, known: Sequence[Intrinsic], target: Target, packed: Any = None
) -> Tiled | None:
    """The kernel's one reduction over the tiles of the intrinsic that is cheapest, what it has to
    move included; None where plain vectors are cheaper than every one.

    packed: an input that is moved beforehand, at no cost
    """
    if len(kernel.reductions) != 1:
        return None
    (anchor,) = kernel.reductions
    vector = lanes(anchor, target)

    def whole(match: Match) -> Tiled:
        one = _Tiling(kernel, match).result()
        moved = 0.0 if one.in_layout else elements(anchor.axes)
        for copy in one.copies:
            if copy is not None and not (packed is not None and reads(copy, packed)):
                moved += elements(copy.axes)
        return replace(one, cost=match.cost + MOVE * moved / vector)

    found = [whole(match) for one in known for match in matches(anchor, one)]
    chosen = min(found, key=lambda one: one.cost, default=None)
    return chosen if chosen is not None and chosen.cost < plain_cost(anchor, target) else None


def reads(step: Step, buffer: Any) -> bool:
    return any(same(load.source, buffer) for load in loads(step.value))


class _Tiling:
    def __init__(self, kernel: Kernel, match: Match) -> None:
        self.kernel, self.match, self.anchor = kernel, match, match.anchor
        step = match.intrinsic.step
        self.dtype = dtype_of(self.anchor.axes[-1])
        self.own = (*step.axes, *step.reduce)  # the intrinsic's axes
        self.outer = [
            self._axis(f"{axis.var.name}_tile", split.count) for axis, split in self._pairs
        ]
        self.whole = [  # per axis, whether its tile is an axis as it is, in its place
            split.exact and (axis in step.reduce or self._same_layout)
            for axis, split in self._pairs
        ]
        self.inner = [
            split.fused[0] if whole else self._axis(axis.var.name, split.tile)
            for (axis, split), whole in zip(self._pairs, self.whole, strict=True)
        ]
        self.env = self._places()

    @property
    def _pairs(self) -> list[tuple[Axis, Split]]:
        return list(zip(self.own, self.match.splits, strict=True))

    def _axis(self, name: str, extent: int) -> Axis:
        return Axis(tirx.Var(name, self.dtype), extent)

    def _flat(self, at: int) -> Expr:
        return self.outer[at].var * self.match.splits[at].tile + self.inner[at].var

    def _places(self) -> dict[int, Expr]:
        """Axes of the reduction by tile and place in it."""
        env: dict[int, Expr] = {}
        for at, split in enumerate(self.match.splits):
            if self.whole[at]:
                continue
            flat = self._flat(at)
            for k in reversed(range(len(split.fused))):
                axis = split.fused[k]
                env[key(axis.var)] = flat % axis.extent if k else flat
                flat = flat // axis.extent
        return env

    @cached_property
    def _kept(self) -> list[Axis]:
        """Spatial axes that no tile is cut from."""
        fused = {key(axis.var) for split in self.match.splits for axis in split.fused}
        return [axis for axis in self.anchor.axes if key(axis.var) not in fused]

    @cached_property
    def _same_layout(self) -> bool:
        """Whether the result lies as before: tiles are its last axis, as it is."""
        (first, *others) = self.match.spatial
        return not others and first.exact and first.fused[0] is self.anchor.axes[-1]

    def result(self) -> Tiled:
        read = [self._operand(at) for at in range(len(self.match.operands))]
        copies = tuple(copy for _, copy in read)
        count = len(self.match.spatial)
        if self._same_layout:
            spatial, lane = list(self.anchor.axes[:-1]), self.anchor.axes[-1]
            places: dict[int, Expr] = {}
        else:
            lane = self._axis("lane", prod(split.tile for split in self.match.spatial))
            spatial = [*self._kept, *self.outer[:count]]
            places, rest = {}, lane.var
            for axis in reversed(self.inner[:count]):
                places[key(axis.var)] = rest % axis.extent
                rest = rest // axis.extent
        operands = tuple(substitute(load, places) for load, _ in read)
        reduce = [self.outer[at] for at in range(count, len(self.own)) if not self.whole[at]]
        gone = {key(a.var) for split in self.match.splits for a in split.fused}
        summed = [axis for axis in self.anchor.reduce if key(axis.var) not in gone]
        inner = tuple(self.inner[count:])
        product, back = self._product(spatial, lane, (*summed, *reduce, *inner), operands, places)
        steps: list[Step] = []
        for step in self.kernel.steps:
            steps += [*filter(None, copies), product, *back] if step is self.anchor else [step]
        tile = Tile(self.match.intrinsic, operands, inner)
        whole = replace(self.kernel, steps=tuple(steps))
        return Tiled(self.match, whole, product, tile, copies, self._same_layout)

    def _operand(self, at: int) -> tuple[Expr, Step | None]:
        """An operand over tiles: a load, and the step that copies what it reads."""
        value = substitute(self.match.operands[at], self.env)
        param = self.match.intrinsic.params[at]
        inner = [self.inner[self.own.index(axis)] for axis in self.match.intrinsic.tiles[at]]
        if not self._in_place(value, param, inner):
            return self._copy(at, value, param, inner)
        if element_dtype(value.source) == element_dtype(param):
            return value, None
        return _widened(value, element_dtype(param))

    def _in_place(self, value: Expr, param: Any, inner: Sequence[Axis]) -> bool:
        """Whether the tile lies in memory as the parameter does, but for the width of elements."""
        if not is_load(value):
            return False
        places = [self.own.index(axis) for axis in self._tile_axes(inner)]
        if any(self.match.splits[at].pads for at in places):
            return False
        shape, sizes = value.source.ty.shape, param.ty.shape
        if len(shape) < len(sizes) or not all(map(equal, shape[1 - len(sizes) :], sizes[1:])):
            return False
        analyzer = bounded([*self.outer, *self.inner])
        zero = {key(axis.var): tirx.const(0, self.dtype) for axis in inner}
        steps = [tirx.const(0, self.dtype)] * (len(shape) - len(inner)) + [a.var for a in inner]
        return all(
            analyzer.can_prove_equal(index - substitute(index, zero), step)
            for index, step in zip(value.indices, steps, strict=True)
        )

    def _tile_axes(self, inner: Sequence[Axis]) -> list[Axis]:
        return [self.own[self.inner.index(axis)] for axis in inner]

    def _copy(self, at: int, value: Expr, param: Any, inner: Sequence[Axis]) -> tuple[Expr, Step]:
        """A copy [other axes, tiles, tile]; tiles of one axis lie side by side."""
        places = [self.inner.index(axis) for axis in inner]
        gone = {key(a.var) for split in self.match.splits for a in split.fused}
        others = [
            axis
            for axis in (*self.anchor.axes, *self.anchor.reduce)
            if key(axis.var) not in gone and depends_on(value, axis)
        ]
        cut = [p for p in places if not self.whole[p]]
        flat = len(inner) == 1 and bool(cut)
        axes = [*others, *(self.outer[p] for p in cut), *inner]
        if flat:
            split = self.match.splits[places[0]]
            axes = [*others, self._axis(self.inner[places[0]].var.name, split.count * split.tile)]
        own = [self._axis(axis.var.name, 0) for axis in axes]
        own = [Axis(new.var, axis.extent) for new, axis in zip(own, axes, strict=True)]
        where = {key(a.var): b.var for a, b in zip(axes, own, strict=True)}
        if flat:
            tile = self.match.splits[places[0]].tile
            where[key(self.outer[places[0]].var)] = own[-1].var // tile
            where[key(self.inner[places[0]].var)] = own[-1].var % tile
        dtype = element_dtype(param)
        element = substitute(value.astype(dtype), where)
        guards = [
            substitute(self._flat(p), where) < self.match.splits[p].size
            for p in places
            if self.match.splits[p].pads
        ]
        analyzer = bounded(own)
        element = analyzer.simplify(element)
        if guards:
            inside = analyzer.simplify(tirx.all(*guards))
            element = tirx.if_then_else(inside, element, tirx.const(0, dtype))
        name = f"{param.name}_tiles"
        buffer = tirx.decl_buffer([axis.extent for axis in own], dtype, name)
        step = Step(name, buffer, tuple(a.var for a in own), tuple(own), (), None, element)
        indices = [axis.var for axis in axes]
        if flat:
            indices[-1] = self._flat(places[0])
        return tirx.BufferLoad(buffer, indices), step

    def _product(
        self,
        spatial: Sequence[Axis],
        lane: Axis,
        reduce: Sequence[Axis],
        operands: Sequence[Expr],
        places: Mapping[int, Expr],
    ) -> tuple[Step, list[Step]]:
        """The reduction over tiles, and the step that puts its result where it was."""
        axes, anchor = (*spatial, lane), self.anchor
        dtype = element_dtype(anchor.buffer)
        buffer = anchor.buffer
        if not self._same_layout:
            buffer = tirx.decl_buffer([axis.extent for axis in axes], dtype, f"{anchor.name}_tiles")
        where = tuple(axis.var for axis in axes)
        loads_of = dict(zip(map(key, self.match.intrinsic.params), operands, strict=False))
        element = _with_operands(self.match.intrinsic.step.element, loads_of)
        value = tirx.BufferLoad(buffer, where) + element
        product = Step(anchor.name, buffer, where, axes, tuple(reduce), anchor.init, value)
        if self._same_layout:
            return product, []
        fresh = [Axis(tirx.Var(axis.var.name, self.dtype), axis.extent) for axis in anchor.axes]
        at = {key(old.var): new.var for old, new in zip(anchor.axes, fresh, strict=True)}
        found = {key(axis.var): at[key(axis.var)] for axis in self._kept}
        lanes: Expr = tirx.const(0, self.dtype)
        for outer, split in zip(self.outer, self.match.spatial, strict=False):
            flat: Expr = tirx.const(0, self.dtype)
            for axis in split.fused:
                flat = flat * axis.extent + at[key(axis.var)]
            found[key(outer.var)] = flat // split.tile
            lanes = lanes * split.tile + flat % split.tile
        found[key(lane.var)] = lanes
        analyzer = bounded(fresh)
        indices = [analyzer.simplify(found[key(axis.var)]) for axis in axes]
        back = Step(
            f"{anchor.name}_untiled",
            anchor.buffer,
            tuple(axis.var for axis in fresh),
            tuple(fresh),
            (),
            None,
            tirx.BufferLoad(buffer, indices),
        )
        return product, [back]


def _widened(load: Any, dtype: str) -> tuple[Expr, Step]:
    """The same element of a copy of the whole tensor as another dtype."""
    axes = tuple(
        Axis(tirx.Var(f"d{k}", index.ty.dtype), as_int(size))
        for k, (index, size) in enumerate(zip(load.indices, load.source.ty.shape, strict=True))
    )
    own = tuple(axis.var for axis in axes)
    buffer = tirx.decl_buffer(load.source.ty.shape, dtype, f"{load.source.name}_wide")
    value = tirx.BufferLoad(load.source, own).astype(dtype)
    step = Step(buffer.name, buffer, own, axes, (), None, value)
    return tirx.BufferLoad(buffer, load.indices), step


def _with_operands(pattern: Expr, operands: Mapping[int, Expr]) -> Expr:
    """The intrinsic's element, its loads replaced."""
    return tvm_ffi.structural_map(
        pattern, (tvm.ir.TensorLoad, lambda load: operands.get(key(load.source), load))
    )
