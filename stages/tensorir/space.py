"""What our rules could have decided otherwise: the search modules `tiles` and `rules`.

`tiles` revises the plan of the rule that took a kernel: its register tile, tasks, accumulators,
unrolling, what is staged or packed. `rules` asks the rules that also take it, and other widths of
vectors. Both make schedules for symbolic sizes as for static ones: what is emitted is right for
every size, whatever the plan.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from math import log2, prod
from typing import Any

from tapml.stage import Target

from ..compat import tvm
from ..records import workload_hash
from ..search_modules import Decisions, Space, Value, Variants
from .kernel import Unfit, ceil_div
from .schedule import Rule, rules, schedule
from .tiling import (
    STACK_BYTES,
    SYMBOLIC,
    Plan,
    Problem,
    even_rows,
    factors,
    flops,
    looped,
    reads_staged,
    weight_load,
)

MOST_UNROLLED = 160  # updates of registers in a loop's body: more, and builds take seconds
MOST_COLS = 8
LEAST_SUMS = 4  # registers that are added to
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PARTIALS = (1, 2, 4, 8)
PARTS = tuple(part.name for part in fields(Plan) if part.name != "tile")  # which the rule takes


def _tiles(func: Any, target: Target) -> Space | None:
    """Other plans of the rule that takes `func`."""
    _, name = schedule(func, target)
    rule = dict(rules())[name]
    if "revise" not in inspect.signature(rule).parameters:
        return None
    seen: list[tuple[Problem, Plan]] = []

    def note(problem: Problem, plan: Plan) -> Plan:
        seen.append((problem, plan))
        return plan

    _made(rule, func, target, note)
    if not seen:
        return None
    (problem, plan), *_ = seen

    def build(decisions: Decisions) -> Any | None:
        return _made(rule, func, target, lambda _problem, plan: revised(plan, decisions))

    return Space(
        knobs=knobs(problem, plan, target),
        default=as_decisions(plan),
        build=build,
        legal=lambda decisions: is_legal(problem, revised(plan, decisions), target),
        features=lambda decisions: features(problem, revised(plan, decisions), target),
    )


def _rules(func: Any, target: Target) -> Space | None:
    """The rules that take `func`, for vectors of the target and half as long."""
    default, name = schedule(func, target)
    widths = [target.vector_bits, max(128, target.vector_bits // 2)]
    found: dict[tuple[str, int], Any] = {}
    known = {workload_hash(default)}
    for other, rule in rules():
        for bits in dict.fromkeys(widths):
            scheduled = _made(rule, func, target.model_copy(update={"vector_bits": bits}))
            if scheduled is not None and (key := workload_hash(scheduled)) not in known:
                known.add(key)
                found[other, bits] = scheduled
    if not found:
        return None
    order = [name for name, _ in rules()]
    return Space(
        knobs={
            "rule": tuple(dict.fromkeys(rule for rule, _ in found)),
            "vector_bits": tuple(dict.fromkeys(bits for _, bits in found)),
        },
        default={},
        build=lambda decisions: found.get(_pair(decisions)),
        legal=lambda decisions: _pair(decisions) in found,
        features=lambda decisions: (
            order.index(name),
            order.index(str(decisions["rule"])),
            int(decisions["vector_bits"]),
        ),
    )


def _pair(decisions: Decisions) -> tuple[str, int]:
    return str(decisions["rule"]), int(decisions["vector_bits"])


def _made(rule: Rule, *arguments: Any) -> Any | None:
    try:
        return rule(*arguments)
    except (Unfit, tvm.s_tir.ScheduleError):
        return None


TILES, RULES = Variants(_tiles), Variants(_rules)


def as_decisions(plan: Plan) -> dict[str, int]:
    """A plan as numbers; what its rule leaves no choice about is left out."""
    parts = {name: getattr(plan, name) for name in PARTS}
    return {name: int(value) for name, value in parts.items() if value is not None}


def revised(plan: Plan, decisions: Decisions) -> Plan:
    """The plan with what was decided."""
    types = {name: type(getattr(plan, name)) for name in decisions}
    return replace(plan, **{name: types[name](value) for name, value in decisions.items()})


def knobs(problem: Problem, plan: Plan, target: Target) -> dict[str, Sequence[Value]]:
    """The options of each part of a plan; the one that the rule takes is among them."""
    rows, cols = _size(problem.row), _size(problem.col)
    run = problem.chunk or problem.row
    length = _size(run) if run is not None else 1
    taps = looped(problem, plan)
    tap = taps[-1].static if taps else None
    even = even_rows(problem)
    sums = problem.anchor.element is not None and tap is not None
    alone = len(problem.kernel.reductions) == 1  # what another one makes can only be copied
    padded = alone and reads_staged(problem) and (plan.stage or plan.split)  # or a weight decoded
    vectors = plan.tile is None  # an intrinsic reads memory: what is copied, by task or before
    by_task = vectors or problem.chunk is not None
    sizes = (*problem.anchor.axes, *problem.anchor.reduce)
    movable = padded and by_task and all(axis.static for axis in sizes)
    options: dict[str, Iterable[int]] = {
        "rows": range(even, min(rows, target.vector_registers) + 1, even),
        "cols": [c for c in range(1, min(cols, MOST_COLS) + 1) if not (problem.cols or 0) % c]
        if _is_static(problem.col)
        else (1,),
        "chunk": {*(size for size in CHUNKS if size < length), length},
        "cols_parallel": (0, 1) if problem.col is not None else (0,),
        "partials": [count for count in PARTIALS if count <= (tap or 1)] if sums else (1,),
        "unroll": range(min(2, len(taps)) + 1),
        "prefetch": (0, 1) if weight_load(problem, plan) is not None else (int(plan.prefetch),),
        "stage": (0, 1) if movable else (int(plan.stage),),
        "split": (0, 1) if padded and vectors else (int(plan.split),),
    }  # of all others: yes or no
    return {
        name: tuple(sorted({*options.get(name, (0, 1)), value}))
        for name, value in as_decisions(plan).items()
    }


def is_legal(problem: Problem, plan: Plan, target: Target) -> bool:
    """Whether the tile fits the registers, its loops' bodies are short, and tasks hold whole
    tiles.
    """
    width = _width(problem, target)
    tile = plan.rows * plan.cols * plan.partials
    loaded = plan.cols if factors(problem.anchor) is not None else 0
    least = (even_rows(problem), 1, 1)
    if (plan.rows, plan.cols, plan.partials) != least and (
        (tile + loaded) * width + 1 > target.vector_registers
        or 4 * plan.rows * problem.lane_count > STACK_BYTES
    ):
        return False
    full = _size(problem.row) * _size(problem.col)  # fewer sums leave the units idle
    if tile * width < min(LEAST_SUMS, full) or (plan.partials > 1 and plan.unroll):
        return False
    if plan.unroll and tile * _unrolled(problem, plan) > MOST_UNROLLED:
        return False
    if problem.chunk is None and problem.row is not None:
        return plan.chunk >= plan.rows or plan.chunk >= _size(problem.row)
    return True


def features(problem: Problem, plan: Plan, target: Target) -> tuple[float, ...]:
    """What the time of a plan follows from, relative to the default's, for any problem."""
    rows, cols, width = _size(problem.row), _size(problem.col), _width(problem, target)
    run = problem.chunk or problem.row
    length = _size(run) if run is not None else 1
    taps = [axis.static or SYMBOLIC for axis in problem.anchor.reduce]
    tile = plan.rows * plan.cols * width
    runs = ceil_div(length, plan.chunk)
    others = prod(_size(axis) for axis in problem.outer if axis is not problem.chunk)
    tasks = others * runs * (ceil_div(cols, plan.cols) if plan.cols_parallel else 1)
    rounds = ceil_div(tasks, target.device.threads)
    return (
        log2(rows),
        log2(cols),
        log2(problem.lane_count),
        width,
        len(taps),
        log2(prod(taps)),
        log2(taps[-1]),
        log2(flops(problem) + 1),
        problem.col is None,
        reads_staged(problem),
        tile * plan.partials,
        (plan.rows + plan.cols * width) / tile,  # loads for each multiply-add
        rows / (ceil_div(rows, plan.rows) * plan.rows),  # share of whole tiles
        cols / (ceil_div(cols, plan.cols) * plan.cols),
        rows % plan.rows,
        cols % plan.cols,
        log2(plan.chunk),
        log2(4 * plan.chunk * prod(taps) * (rows if problem.chunk is not None else 1)),  # bytes
        log2(4 * prod(taps) * plan.cols * problem.lane_count),  # bytes of a tile's weights
        log2(tasks),
        tasks / (rounds * target.device.threads),  # share of busy threads
        log2(plan.rows * plan.cols * _unrolled(problem, plan)),
        *(float(getattr(plan, name) or 0) for name in PARTS),
    )


def _unrolled(problem: Problem, plan: Plan) -> int:
    axes = looped(problem, plan)
    return prod(axis.static or SYMBOLIC for axis in axes[len(axes) - plan.unroll :])


def _width(problem: Problem, target: Target) -> int:
    """Registers of a block of lanes."""
    return max(1, problem.lane_count * 32 // target.vector_bits)


def _is_static(axis: Any) -> bool:
    return axis is None or axis.static is not None


def _size(axis: Any) -> int:
    return 1 if axis is None else axis.static or SYMBOLIC
