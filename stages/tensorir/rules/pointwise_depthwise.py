"""A 1x1 convolution and the depthwise one that reads it, in one kernel: of what lies between them
each task has the lines that it needs, and no more.

Source: line by line fusion of inverted residuals, as in Alwani et al. 2016 (Fused-Layer CNN
Accelerators); the lines at a task's ends are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from tapml.stage import Target

from ...compat import tvm
from ..borders import zero_padded
from ..emitter import Emitter, emit
from ..epilogue import Sink, sink
from ..kernel import Axis, Expr, Step, Unfit, key, read
from ..loops import lanes, loop, store
from ..tiling import (
    Plan,
    Problem,
    Revise,
    as_planned,
    balanced,
    factors,
    problem,
    reads_staged,
    register_tile,
    static_size,
)
from .window import lane_by_lane
from .window import plan as depthwise_plan

tirx = tvm.tirx
BETWEEN_BYTES = 280 << 10  # lines that a task keeps between the convolutions, in the L2 cache


def pointwise_depthwise(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """X [N, C/L, H, W, L] with W [O/L, C/L, 1, 1, L, L] and its epilogue, then a depthwise
    convolution with zero padding over the O channels, and its epilogue.
    """
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 2:
        return None
    first, second = kernel.reductions
    pointwise, depthwise = problem(kernel, first), problem(kernel, second)
    if not lane_by_lane(depthwise) or factors(depthwise.anchor) is None or depthwise.chunk is None:
        return None
    if factors(pointwise.anchor) is None or pointwise.col is None or pointwise.chunk is None:
        return None
    taps = pointwise.anchor.reduce[1:-1]
    if any(axis.static != 1 for axis in taps) or reads_staged(pointwise):
        return None  # a line would be convolved from several, some of them padding
    chosen = revise(depthwise, plan(pointwise, depthwise, target))

    def lines(*parts: Any) -> Emitter:
        return _Lines(pointwise, _tile(pointwise, target), *parts)

    return emit(depthwise, chosen, target, emitter=lines)


def plan(pointwise: Problem, depthwise: Problem, target: Target) -> Plan:
    """That of the depthwise convolution; a task makes as many lines as the second-level cache
    holds of what is between.
    """
    assert depthwise.chunk is not None
    own = depthwise_plan(depthwise, target)
    *_, height, width, lane = (static_size(axis) for axis in pointwise.anchor.axes)
    lines = static_size(depthwise.chunk)
    most = max(1, BETWEEN_BYTES // (4 * width * lane * max(1, height // lines)))
    chunk = balanced(lines, most, target.cores, ends=0.6)
    return replace(own, chunk=chunk, stage=True, split=False)


def _tile(pointwise: Problem, target: Target) -> Plan:
    """Of one block of lanes: the next one is another task's."""
    assert pointwise.row is not None
    depth = prod(static_size(axis) for axis in pointwise.anchor.reduce)
    width = static_size(pointwise.row)
    rows, _ = register_tile(width, 1, pointwise.lane_count, depth, target)
    return Plan(rows=rows)


class _Lines(Emitter):
    """The depthwise convolution's tasks; what they read is convolved for each of them."""

    def __init__(
        self,
        pointwise: Problem,
        pointwise_plan: Plan,
        problem: Problem,
        plan: Plan,
        sinks: Sequence[Sink],
        held: Mapping[int, Callable[..., Expr]],
    ) -> None:
        super().__init__(problem, plan, sinks, held)
        self.pointwise, self.pointwise_plan = pointwise, pointwise_plan
        # blocks of one run follow each other: they read the same lines of the input
        self.others, self.within = self.others[:1], self.others[1:]

    def _copy(
        self, producer: Step, load: Any, at: Mapping[int, Expr], run: Axis | None, start: Expr
    ) -> list[Any]:
        """The lines of a task, convolved, between zeros where the padding is."""
        kernel, dtype = self.problem.kernel, self.problem.dtype
        found = zero_padded(producer)
        if found is None or len(producer.axes) != 5:
            raise Unfit("what the depthwise convolution reads is no padded image")
        source, before = found
        between = kernel.producers.get(key(source.source))
        if between is None or any(before[axis] for axis in (0, 1, 4)):
            raise Unfit("what is padded is no convolution of this kernel")
        copy, origin, counts = self._staged(producer, load, at, run, start)
        batch, block, line, _, _ = origin
        height, width = (static_size(axis) for axis in between.axes[2:4])
        zero = tirx.const(0, str(copy.dtype))
        count = tirx.const(counts[2], dtype) if isinstance(counts[2], int) else counts[2]
        top = tirx.max(tirx.min(before[2] - line, count), 0)
        bottom = tirx.max(tirx.min(before[2] + height - line, count), top)

        def zeros(first: Expr, lines: Any, left: int, columns: int) -> Any:
            def cell(h: Expr, w: Expr) -> Any:
                place = [*(tirx.const(0, dtype),) * 2, first + h, left + w]
                return lanes(
                    self.problem.lane_count, lambda lane: store(copy, [*place, lane], zero), dtype
                )

            if columns <= 0:
                return None
            return loop(
                "zero",
                lines,
                lambda h: loop("pixel", columns, lambda w: cell(h, w), dtype=dtype),
                dtype=dtype,
            )

        def place(position: Sequence[Expr]) -> tuple[Any, list[Expr]]:
            _, _, h, w, lane = position
            none = tirx.const(0, dtype)
            return copy, [none, none, h + before[2] - line, w + before[3], lane]

        own = self.pointwise
        assert own.row is not None
        padded = int(copy.shape[3])
        pixels = min(width, padded - before[3])  # strides may leave out the last ones
        kept = replace(sink(own, between), place=place)
        tiles = Emitter(
            replace(own, row=Axis(own.row.var, pixels)), self.pointwise_plan, (kept,), {}
        )
        here = {key(axis.var): batch for axis in own.outer if axis is not own.chunk}
        first = line + top - before[2]
        convolved = tiles._positions(here, own.chunk, first, bottom - top, block, 1)
        return [
            tirx.AllocBuffer(copy),
            zeros(tirx.const(0, dtype), top, 0, padded),
            zeros(top, bottom - top, 0, before[3]),
            zeros(top, bottom - top, before[3] + width, padded - before[3] - width),
            zeros(bottom, count - bottom, 0, padded),
            convolved,
        ]
