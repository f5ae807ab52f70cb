"""Products of plain matrices, batched or not: the right one is read as it lies, or packed into
panels first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tapml.stage import Target

from ...compat import tvm
from ..emitter import emit, tiles
from ..epilogue import Sink
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    ceil_div,
    depends_on,
    key,
    map_loads,
    read,
    same,
    substitute,
)
from ..loops import branch, constant, dtype_of, scheduled, when
from ..nests import float_lanes
from ..tiling import Problem, Revise, as_planned, factors, problem
from .dense import plan

tirx = tvm.tirx

FEW_ROWS = 8  # up to here, packing costs more than it brings
SMALL_BYTES = 1 << 17  # up to here, a right matrix is read as it lies: its rows stay in the cache


def matmul(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """A [..., M, K] times B, whose columns are the last axis of the result; M and leading axes may
    be symbolic.
    """
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 1:
        return None
    anchor = kernel.reductions[0]
    operands = factors(anchor)
    if (
        operands is None
        or len(anchor.axes) < 2
        or len(anchor.reduce) != 1
        or not anchor.is_identity
    ):
        return None
    column, depth = anchor.axes[-1], anchor.reduce[0]
    right = [one for one in operands if depends_on(one, column)]
    if len(right) != 1 or not isinstance(right[0], tvm.ir.TensorLoad):
        return None
    if column.static is not None and column.static < 4:
        return None
    lane_count = min(float_lanes(target), 16)
    rows = [axis for axis in anchor.axes[:-1] if not depends_on(right[0], axis)]
    if column.static is None or (depth.static is None and column.static % lane_count):
        return _overlapped(kernel, anchor, right[0], lane_count, target, revise)
    in_place = _is_row_major(right[0], column) and column.static % lane_count == 0
    if depth.static is None and not in_place:
        raise Unfit("a matrix of symbolic depth is not packed")
    small = 4 * column.static * (depth.static or 1) <= SMALL_BYTES
    few = bool(rows) and (rows[-1].static or FEW_ROWS + 1) <= FEW_ROWS

    def cut(pack: bool) -> Problem:
        paneled = in_panels(kernel, anchor, right[0], lane_count, pack=pack)
        found = problem(paneled, paneled.reductions[0])
        if found.row is None or found.col is None:
            raise Unfit("no tile")
        return found

    pack = not (in_place and rows and (small or few))
    found = cut(pack)
    free = in_place and depth.static is not None
    how = revise(found, replace(plan(found, target), pack=pack if free else None))
    if how.pack not in (pack, None):
        pack = not pack
        found = cut(pack)
    return emit(found, how, target, found.kernel.steps[:1] if pack else ())


def _overlapped(
    kernel: Kernel, anchor: Step, right: Any, lane_count: int, target: Target, revise: Revise
) -> Any:
    """Columns in vectors where their number is symbolic or divides badly: the last vector overlaps
    the one before it, and when there are fewer columns than lanes the rest of the lanes repeats
    the last.
    """
    column = anchor.axes[-1]
    if not _is_row_major(right, column):
        raise Unfit("the right matrix is not read along its rows")
    count = constant(column.extent, dtype_of(column))
    steps = kernel.steps
    if any(not _follows(kernel, anchor, step) for step in kernel.outputs):
        raise Unfit("the output does not follow the product element by element")

    def body(blocks: Any, column_at: Callable[[Expr, Expr], Expr]) -> Any:
        panel, lane = (
            Axis(tirx.Var(name, dtype_of(column)), extent)
            for name, extent in (("panel", blocks), ("lane", lane_count))
        )
        joined = {key(column.var): column_at(panel.var, lane.var)}
        axes = (*anchor.axes[:-1], panel, lane)
        split = tirx.decl_buffer(
            [axis.extent for axis in axes], str(anchor.buffer.ty.dtype), f"{anchor.name}_panels"
        )
        where = [axis.var for axis in axes]

        def read_of(load: Any) -> Expr:
            return tirx.BufferLoad(split, where) if same(load.source, anchor.buffer) else load

        value = substitute(map_loads(anchor.value, read_of), joined)
        product = Step(anchor.name, split, tuple(where), axes, anchor.reduce, anchor.init, value)
        found = problem(
            replace(kernel, steps=tuple(product if s is anchor else s for s in steps)), product
        )
        if found.row is None:
            raise Unfit("no tile")
        sinks = [
            Sink(
                step,
                lambda at: [*at[:-2], column_at(at[-2], at[-1])],
                reads=anchor.buffer,
            )
            for step in kernel.outputs
        ]
        return tiles(found, revise(found, plan(found, target)), sinks, {})

    def many() -> Any:
        blocks = ceil_div(column.extent, lane_count)
        return body(blocks, lambda p, v: tirx.min(p * lane_count, count - lane_count) + v)

    def few() -> Any:
        return body(1, lambda p, v: tirx.min(p * lane_count + v, count - 1))

    if column.static is not None:
        return scheduled(kernel.func, few() if column.static < lane_count else many())
    return scheduled(kernel.func, branch(count >= lane_count, many(), when(count > 0, few())))


def _follows(kernel: Kernel, anchor: Step, step: Step) -> bool:
    """Whether an output has the product's axes and reads it at its own place only."""
    if step is anchor:
        return True
    if step.reduce or not step.is_identity or len(step.axes) != len(anchor.axes):
        return False
    own = [axis.var for axis in step.axes]
    equal = tvm.sym.Analyzer().can_prove_equal
    right = [all(map(equal, anchor.buffer.ty.shape, step.buffer.ty.shape))]

    def element(*indices: Expr) -> Expr:
        right.append(all(map(equal, indices, own)))
        return tirx.const(0, str(anchor.buffer.ty.dtype))

    kernel.inline(step.value, {key(anchor.buffer): element}, step)
    return all(right)


def _is_row_major(load: Any, column: Axis) -> bool:
    return same(load.indices[-1], column.var) and not any(
        depends_on(index, column) for index in load.indices[:-1]
    )


def in_panels(kernel: Kernel, anchor: Step, right: Any, lane_count: int, *, pack: bool) -> Kernel:
    """The kernel with its product over columns (panel, lane), followed by a step that puts them
    side by side again.

    With `pack`, the first step copies the right matrix into panels [..., panels, K, lanes], zero
    beyond its columns.
    """
    *outer, column = anchor.axes
    depth = anchor.reduce[0]
    width = column.static
    assert width is not None
    dtype = dtype_of(column)
    panels = ceil_div(width, lane_count)
    panel, lane = (
        Axis(tirx.Var(name, dtype), n) for name, n in (("panel", panels), ("lane", lane_count))
    )
    joined = {key(column.var): panel.var * lane_count + lane.var}
    element_dtype = str(anchor.buffer.ty.dtype)
    split = tirx.decl_buffer(
        [*(axis.extent for axis in outer), panels, lane_count],
        element_dtype,
        f"{anchor.name}_panels",
    )
    where = [*(axis.var for axis in outer), panel.var, lane.var]
    steps: list[Step] = []
    packed = None
    if pack:
        batch = [axis for axis in outer if depends_on(right, axis)]
        packed = _packed(right, batch, panel, depth, lane, joined, width)
        steps.append(packed)

    def read_of(load: Any) -> Expr:
        if same(load.source, anchor.buffer):
            return tirx.BufferLoad(split, where)
        if packed is not None and same(load.source, right.source) and depends_on(load, column):
            own = [axis.var for axis in outer if depends_on(right, axis)]
            return tirx.BufferLoad(packed.buffer, [*own, panel.var, depth.var, lane.var])
        return load

    value = substitute(map_loads(anchor.value, read_of), joined)
    product = Step(
        anchor.name, split, tuple(where), (*outer, panel, lane), anchor.reduce, anchor.init, value
    )
    fresh = [Axis(tirx.Var(axis.var.name, dtype), axis.extent) for axis in anchor.axes]
    own = tuple(axis.var for axis in fresh)
    back = tirx.BufferLoad(split, [*own[:-1], own[-1] // lane_count, own[-1] % lane_count])
    unpack = Step(f"{anchor.name}_columns", anchor.buffer, own, tuple(fresh), (), None, back)
    for step in kernel.steps:
        steps += [product, unpack] if step is anchor else [step]
    return replace(kernel, steps=tuple(steps))


def _packed(
    right: Any,
    batch: list[Axis],
    panel: Axis,
    depth: Axis,
    lane: Axis,
    joined: dict[int, Expr],
    width: int,
) -> Step:
    """The right matrix in panels."""
    axes = [
        Axis(tirx.Var(axis.var.name, dtype_of(axis)), axis.extent)
        for axis in (*batch, panel, depth, lane)
    ]
    own = [axis.var for axis in axes]
    moved = {
        key(old.var): new.var for old, new in zip((*batch, panel, depth, lane), axes, strict=True)
    }
    element = substitute(substitute(right, joined), moved)
    column = own[-3] * axes[-1].extent + own[-1]
    if width % axes[-1].extent:
        element = tirx.if_then_else(column < width, element, tirx.const(0, right.ty.dtype))
    buffer = tirx.decl_buffer([axis.extent for axis in axes], str(right.ty.dtype), "packed")
    return Step("packed", buffer, tuple(own), tuple(axes), (), None, element)
