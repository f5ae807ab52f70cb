"""Convolutions in blocked layout: general, 1x1, 1-D, grouped, transposed with stride = window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tapml.stage import Target

from ..emitter import emit
from ..kernel import Unfit, ceil_div, read
from ..tiling import (
    CHUNK_BYTES,
    SYMBOLIC_LINES,
    Plan,
    Problem,
    Revise,
    as_planned,
    balanced,
    even_rows,
    factors,
    problem,
    reads_staged,
    register_tile,
)

FAR_BYTES = 1 << 20  # weights that the second-level cache does not hold from task to task
FAR_POSITIONS = 17  # that are computed in the time in which such weights are read once


def conv(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """A sum of products where only the weight has the lane axis, with its epilogue; the batch,
    height and width may be symbolic.
    """
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 1:
        return None
    found = problem(kernel, kernel.reductions[0])
    if factors(found.anchor) is None or found.col is None or found.row is None:
        return None
    return emit(found, revise(found, replace(plan(found, target), prefetch=True)), target)


def plan(problem: Problem, target: Target) -> Plan:
    row, col, chunk = problem.row, problem.col, problem.chunk
    if row is None or col is None or col.static is None:
        raise Unfit("symbolic blocks")
    depth = 1
    for axis in problem.anchor.reduce:
        if axis.static is None:
            raise Unfit("symbolic reduction")
        depth *= axis.static
    even = even_rows(problem)
    rows, cols = register_tile(
        row.static, col.static, problem.lane_count, depth, target, even, problem.cols
    )
    tasks = ceil_div(col.static, cols)
    if row.static is None or (chunk is not None and chunk.static is None):
        # what a task reads has no bound, so nothing is copied: the border is split off instead
        return Plan(
            rows=rows,
            cols=cols,
            chunk=SYMBOLIC_LINES if chunk is not None else SYMBOLIC_LINES * rows,
            cols_parallel=tasks >= target.cores,
            stage=False,
            split=True,
        )
    staged = reads_staged(problem)
    if chunk is None:  # one spatial axis: whole rows of positions a task, blocks shared out
        return Plan(
            rows=rows,
            cols=cols,
            chunk=row.static,
            cols_parallel=not staged or tasks >= target.cores,
        )
    line_bytes = 4 * row.static * max(depth, 1)
    weight_bytes = 4 * depth * col.static * problem.lane_count
    most = max(1, CHUNK_BYTES // max(1, line_bytes // _window(problem)))
    ends = 0.1 if _window(problem) > 1 else 0.01
    if weight_bytes > FAR_BYTES:
        ends += FAR_POSITIONS / row.static
    lines = balanced(chunk.extent, most, target.cores, ends=ends)
    if not staged and weight_bytes > CHUNK_BYTES and tasks >= 2 * target.cores:
        return Plan(rows=rows, cols=cols, chunk=chunk.extent, cols_parallel=True)
    return Plan(
        rows=rows,
        cols=cols,
        chunk=lines,
        cols_parallel=not staged and ceil_div(chunk.extent, lines) < 4 * target.cores,
    )


def _window(problem: Problem) -> int:
    """Taps of the window: how often an input element is read for one block of outputs."""
    taps = 1
    for axis in problem.anchor.reduce[1:-1]:
        taps *= axis.static or 1
    return taps
