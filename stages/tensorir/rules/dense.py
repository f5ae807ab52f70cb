"""Matrix products with a packed weight, one row included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tapml.stage import Target

from ..emitter import emit
from ..kernel import Unfit, ceil_div, depends_on, product, read
from ..tiling import Plan, Problem, Revise, as_planned, factors, flops, problem, register_tile
from .grouped import decoded, factored

LONG = 256  # what a symbolic depth counts as
MAX_ROWS = 112  # of a task: its rows of X stay in the second-level cache


def dense(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """X [M, K] times W [N/P, K, P] with its epilogue; M may be symbolic. Declines anything with a
    window.
    """
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 1:
        return None
    found = problem(kernel, kernel.reductions[0])
    anchor = found.anchor
    if factors(anchor) is None or found.row is None or found.col is None or found.outer:
        return None
    if depends_on(anchor.indices[0], found.col):
        return None
    parts = factored(found)
    if parts is not None:
        return decoded(found, parts, plan(found, target), target, revise)
    if len(anchor.reduce) != 1:
        return None
    # a weight that the kernel decodes is decoded in registers, not staged
    planned = replace(plan(found, target), stage=False, prefetch=True)
    return emit(found, revise(found, planned), target)


def plan(problem: Problem, target: Target) -> Plan:
    row, col = problem.row, problem.col
    if row is None or col is None:
        raise Unfit("no blocks of columns")
    depth = product([axis.extent for axis in problem.anchor.reduce])
    depth = depth if isinstance(depth, int) else None
    if row.static == 1:
        return Plan(rows=1, cols=1, chunk=1, cols_parallel=True, partials=min(8, depth or 1))
    rows, cols = register_tile(
        row.static, col.static or 1, problem.lane_count, depth or LONG, target
    )
    chunk = max(1, MAX_ROWS // rows) * rows
    if col.static is None:
        return Plan(rows=rows, cols=1, chunk=chunk, cols_parallel=not problem.outer)
    tasks = ceil_div(col.static, cols)
    if tasks >= 4 * target.cores and row.static is not None:
        chunk = row.static
    return Plan(rows=rows, cols=cols, chunk=chunk, cols_parallel=flops(problem) >= 1e5 or tasks > 1)
