"""Reductions that a described intrinsic computes: whatever matches, whoever described it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tapml.stage import Target

from ..emitter import emit
from ..kernel import Axis, Expr, Step, Unfit, depends_on, key, read
from ..tensorize.intrinsic import Intrinsic, installed, usable
from ..tensorize.tile import Tiled, best
from ..tiling import Plan, Problem, Revise, as_planned, looped, problem, register_tile
from .conv import plan as plan_window
from .dense import LONG, MAX_ROWS
from .dense import plan as plan_rows


def tensorize(
    func: Any,
    target: Target,
    revise: Revise = as_planned,
    known: Sequence[Intrinsic] | None = None,
) -> Any | None:
    """The cheapest intrinsic that the target has and that fits the kernel's one reduction, with its
    epilogue.

    known: the intrinsics to choose from; the installed ones when left out
    """
    usual = usable(installed() if known is None else known, target)
    kernel = read(func) if usual else None
    over = best(kernel, usual, target) if kernel is not None else None
    if over is None:
        return None
    at = _problem(over)
    plan = replace(_plan(at, target), tile=over.tile, split=False, prefetch=True)
    left = looped(at, plan)
    partials = min(plan.partials, left[-1].static or 1) if left else 1
    plan = revise(at, replace(plan, partials=partials))
    return emit(at, plan, target, _whole(over, at, plan))


def _whole(over: Tiled, at: Problem, plan: Plan) -> list[Step]:
    """What is computed before the tiles, for all of them: copies, and producers that are read in
    place. With a window, what its rows read is copied run by run, with its borders.
    """
    found = []
    for operand in over.tile.operands:
        step = over.kernel.producers.get(key(operand.source))
        by_task = plan.stage and at.chunk is not None
        moves = by_task and at.row is not None and depends_on(operand, at.row)
        if step is None or moves:
            continue
        if step.reduce or not step.is_identity:
            raise Unfit(f"{step.name} is no tensor of its own")
        found.append(step)
    return found


def _plan(at: Problem, target: Target) -> Plan:
    if at.col is None and at.row is not None:
        rows, _ = register_tile(at.row.static, 1, at.lane_count, LONG, target)
        return Plan(rows=rows, chunk=max(1, MAX_ROWS // rows) * rows)
    return plan_rows(at, target) if at.chunk is None else plan_window(at, target)


def _problem(over: Tiled) -> Problem:
    """Which axis is tiled as rows, which as columns: those that only one operand has."""
    if over.in_layout:
        return problem(over.kernel, over.anchor)
    *axes, lane = over.anchor.axes
    tiles = over.tile.intrinsic.tiles
    last = over.tile.intrinsic.step.axes[-1]
    if len(tiles) != 2 or (last in tiles[0]) == (last in tiles[1]):
        raise Unfit("columns of both operands, or of none")
    data, weight = over.tile.operands if last in tiles[1] else reversed(over.tile.operands)

    def only(one: Expr, other: Expr) -> list[Axis]:
        return [axis for axis in axes if depends_on(one, axis) and not depends_on(other, axis)]

    columns, rows = only(weight, data), only(data, weight)
    if not rows:
        raise Unfit("no rows")
    row, column = rows[-1], columns[-1] if columns else None
    outer = tuple(axis for axis in axes if axis is not row and axis is not column)
    return Problem(over.kernel, over.anchor, lane, row, column, None, outer)
