"""Reductions lane by lane in blocked layout: depthwise convolution and pooling."""

from __future__ import annotations

from math import prod
from typing import Any

from tapml.stage import Target

from ..borders import borders, share_inside
from ..emitter import emit
from ..kernel import ceil_div, depends_on, key, read
from ..tiling import (
    SYMBOLIC,
    SYMBOLIC_LINES,
    Plan,
    Problem,
    Revise,
    as_planned,
    balanced,
    factors,
    problem,
    reads_groups,
    reads_staged,
)
from .plain_window import is_plain, plain_pool

MAX_UNROLLED = 9  # taps
MAX_SHUFFLED = 12  # taps, where neighbouring ones share what is shuffled
MOSTLY = 0.6  # of the outputs lie inside: below it the padded input is copied instead
MAX_STAGED = 32  # lines of a channel block that are copied at once, at most
MIN_SUM = 16  # taps from which several accumulators pay


def depthwise(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """X [N, C/L, *spatial, L] with W [C/L, *window, L], epilogue included."""
    found = _lanes_apart(func)
    if found is None or factors(found.anchor) is None:
        return None
    return emit(found, revise(found, plan(found, target)), target)


def pool(func: Any, target: Target, revise: Revise = as_planned) -> Any | None:
    """Maxima, sums and means over windows: of blocked activations, over whole images too, and of
    plain tensors.
    """
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 1 or factors(kernel.reductions[0]) is not None:
        return None
    if is_plain(kernel):
        return plain_pool(kernel, target)
    found = _lanes_apart(func)
    return found and emit(found, revise(found, plan(found, target)), target)


def _lanes_apart(func: Any) -> Problem | None:
    """The kernel's one reduction, when each lane is reduced by itself, or over its group."""
    kernel = read(func)
    if kernel is None or len(kernel.reductions) != 1:
        return None
    found = problem(kernel, kernel.reductions[0])
    return found if _is_apart(found) else None


def _is_apart(problem: Problem) -> bool:
    operands = factors(problem.anchor) or ()
    apart = all(depends_on(operand, problem.lane) for operand in operands)
    return apart and problem.col is None and problem.row is not None


def lane_by_lane(problem: Problem) -> bool:
    """Whether each lane is reduced by itself, over rows of them."""
    return _is_apart(problem) and not reads_groups(problem)


def plan(problem: Problem, target: Target) -> Plan:
    row, chunk = problem.row, problem.chunk
    found = borders(problem.kernel, problem.anchor)
    if found is not None and share_inside(found, problem.anchor) < MOSTLY:
        found = None
    taps = prod(axis.static or MIN_SUM for axis in problem.anchor.reduce)
    width = max(1, problem.lane_count * 32 // target.vector_bits)
    positions = 1 if row is None else row.static or SYMBOLIC
    if found is not None and row is not None and row.static is not None:
        first, last = found.inside.get(key(row.var), (0, positions))
        positions = max(1, last - first)
    most = max(1, min(positions, 8, target.vector_registers // (2 * width)))
    rows = min(range(1, most + 1), key=lambda r: (ceil_div(positions, r) * (1 + 0.5 / r), -r))
    staged = reads_staged(problem)
    tasks = prod(axis.static or 1 for axis in problem.outer if axis is not chunk)
    lines = SYMBOLIC_LINES
    if chunk is not None and chunk.static is not None:
        lines = chunk.static
        if tasks < 4 * target.cores or (staged and chunk.static > MAX_STAGED):
            lines = balanced(chunk.static, 16, target.cores, ends=0.1 if staged else 0.01)
    whole = row.static if chunk is None and row is not None and row.static else 1
    one_sum = positions == 1 and taps >= MIN_SUM and problem.anchor.element is not None
    last = problem.anchor.reduce[-1].static
    return Plan(
        rows=rows,
        chunk=lines if chunk is not None else whole,
        partials=min(7, last or 1) if one_sum else 1,
        unroll=0 if one_sum else _unrolled(problem),
        stage=found is None,
        split=True,
    )


def _unrolled(problem: Problem) -> int:
    """How many innermost reduction loops are unrolled: few taps, or compile time grows."""
    taps, count = 1, 0
    most = MAX_SHUFFLED if reads_groups(problem) else MAX_UNROLLED
    for axis in reversed(problem.anchor.reduce):
        taps *= axis.static or most + 1
        if taps > most:
            break
        count += 1
    return count
