"""Loops for reductions whose last spatial axis is a vector of lanes: dense, convolutions, pools in
blocked layout.

A tile of `rows` positions times `cols` blocks of lanes stays in registers while the reduction runs;
the elementwise steps that follow are applied to it before it is stored. Edges get tiles of their
own, so nothing is guarded in the innermost loop, and symbolic row counts get tiles that overlap
(the same values are stored twice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import tvm_ffi

from tapml.stage import Target

from ..compat import tvm
from .kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    ceil_div,
    depends_on,
    key,
    loads,
    same,
    substitute,
)
from .loops import dtype_of

if TYPE_CHECKING:
    from .tensorize.tile import Tile

tirx = tvm.tirx
STACK_BYTES = 1024  # a larger local buffer becomes a workspace allocation
UNEVEN = 0.5  # of a task is waited for at the end of a loop by each core but one
CHUNK_BYTES = 192 << 10  # input of a chunk: stays in the second-level cache beside the weights
SERIAL_FLOPS = 100_000  # below it a parallel launch costs more than it brings
SYMBOLIC_LINES = 4  # that a task computes where their number is open (or tiles of a single one)
SYMBOLIC = 32  # what a symbolic size counts as in estimates of work


@dataclass(frozen=True)
class Problem:
    """A reduction over lanes. `row` and `col` are tiled axes, `outer` the other spatial ones,
    `chunk` the outer axis next to `row` that is cut into runs, each with its own staged input.

    cols: what the columns of a tile must divide, when the data differs between groups of blocks
    """

    kernel: Kernel
    anchor: Step
    lane: Axis
    row: Axis | None
    col: Axis | None
    chunk: Axis | None
    outer: tuple[Axis, ...]
    cols: int | None = None

    @property
    def lane_count(self) -> int:
        return static_size(self.lane)

    @property
    def dtype(self) -> str:
        return dtype_of(self.lane)


@dataclass(frozen=True)
class Plan:
    """How a problem is cut.

    rows, cols     of the register tile
    chunk          iterations of the chunk axis (of the row axis when there is none) that one task
                   runs
    cols_parallel  tasks share out the blocks of lanes too
    partials       accumulators per element, over the last reduction axis (hides latency of few,
                   long sums)
    unroll         how many of the innermost reduction loops are unrolled
    prefetch       blocks of the weight that the next task multiplies by are asked for ahead
    stage          producers that are copied per task (zero padding); others are inlined
    split          what reads zero padding, when it is not copied, is computed apart from the rest,
                   which then tests for none
    pack           a right matrix is copied into panels before; None: there is no choice
    tile           the intrinsic that accumulates, in place of vectors of lanes
    """

    rows: int = 1
    cols: int = 1
    chunk: int = 1
    cols_parallel: bool = False
    partials: int = 1
    unroll: int = 0
    prefetch: bool = False
    stage: bool = True
    split: bool = False
    pack: bool | None = None
    tile: Tile | None = None


Revise = Callable[[Problem, Plan], Plan]  # what a search makes of the plan of a rule


def as_planned(problem: Problem, plan: Plan) -> Plan:
    """The plan as the rule made it."""
    return plan


def problem(kernel: Kernel, anchor: Step) -> Problem:
    """The axes of `anchor` by their part in the tile. Unfit when its last axis is no small static
    vector.
    """
    if len(anchor.axes) < 2 or not anchor.is_identity:
        raise Unfit("no lane axis")
    *axes, lane = anchor.axes
    if lane.static not in (4, 8, 16, 32, 64):
        raise Unfit("the last axis is no vector")
    row, col, cols = axes[-1], None, None
    if (operands := factors(anchor)) is not None:
        in_lane = [depends_on(one, lane) for one in operands]
        if sum(in_lane) == 1:
            data, weight = operands if in_lane[1] else reversed(operands)
            only_weight = [a for a in axes if depends_on(weight, a) and not depends_on(data, a)]
            only_data = [a for a in axes if depends_on(data, a)]
            col = only_weight[0] if only_weight else None
            row = only_data[-1] if only_data else None
            if col is None and len(anchor.reduce) > 1:  # a product of matrices has one
                col, cols = _grouped(axes, data, weight)
    outer = tuple(axis for axis in axes if axis is not row and axis is not col)
    before = [axis for axis in outer if axis.static != 1]
    chunk = None
    if row is not None and before and axes.index(before[-1]) == axes.index(row) - 1:
        chunk = before[-1] if axes.index(before[-1]) > 1 else None
    return Problem(kernel, anchor, lane, row, col, chunk, outer, cols)


def _grouped(axes: Sequence[Axis], data: Expr, weight: Expr) -> tuple[Axis | None, int | None]:
    """The blocks of a product with groups, and how many neighbours always read the same data."""
    both = [a for a in axes[:-1] if depends_on(weight, a) and depends_on(data, a)]
    if len(both) != 1 or (count := both[0].static) is None:
        return None, None
    (axis,) = both
    var = tirx.Var("group", dtype_of(axis))

    def shared(size: int) -> bool:
        places = [substitute(data, {key(axis.var): var * size + k}) for k in range(size)]
        return all(_same_places(places[0], one) for one in places[1:])

    return axis, max(k for k in range(1, min(count, 8) + 1) if count % k == 0 and shared(k))


def _same_places(a: Expr, b: Expr) -> bool:
    equal = tvm.sym.Analyzer().can_prove_equal
    return all(
        same(one.source, other.source) and all(map(equal, one.indices, other.indices))
        for one, other in zip(loads(a), loads(b), strict=True)
    )


def factors(anchor: Step) -> tuple[Expr, Expr] | None:
    """The two operands of a sum of products, else None."""
    element = anchor.element
    if element is None or not isinstance(element, tirx.Mul):
        return None
    return element.a, element.b


def looped(problem: Problem, plan: Plan) -> list[Axis]:
    """Summed axes that there are loops over: an intrinsic sums over its own itself."""
    inner = {key(axis.var) for axis in plan.tile.inner} if plan.tile is not None else set()
    return [axis for axis in problem.anchor.reduce if key(axis.var) not in inner]


def weight_load(problem: Problem, plan: Plan) -> Any | None:
    """The operand that has the blocks of lanes, when it is read from memory as it lies."""
    if problem.col is None:
        return None
    params = {key(param) for param in problem.kernel.params}
    operands = factors(problem.anchor) or () if plan.tile is None else plan.tile.operands
    for one in operands:
        if depends_on(one, problem.col) and depends_on(one, problem.lane):
            plain = isinstance(one, tvm.ir.TensorLoad) and key(one.source) in params
            return one if plain else None
    return None


def reads_groups(problem: Problem) -> bool:
    """Whether a lane reads another element than its own: that of its group."""
    found: list[Any] = []
    tvm_ffi.structural_walk(problem.anchor.value, ((tirx.FloorDiv, tirx.FloorMod), found.append))
    return any(depends_on(node, problem.lane) for node in found)


def flops(problem: Problem) -> float:
    """Operations of the reduction, symbolic sizes estimated."""
    axes = (*problem.anchor.axes, *problem.anchor.reduce)
    return 2.0 * prod(axis.static or SYMBOLIC for axis in axes)


def even_rows(problem: Problem) -> int:
    """What the tile's rows must be a multiple of: the stride of a transposed convolution, which
    indexes with row // s.
    """
    found: list[Any] = []
    tvm_ffi.structural_walk(problem.anchor.value, ((tirx.FloorDiv, tirx.FloorMod), found.append))
    row = problem.row
    by = [
        int(node.b)
        for node in found
        if row is not None and same(node.a, row.var) and isinstance(node.b, tirx.IntImm)
    ]
    return max(by, default=1)


def reads_staged(problem: Problem) -> bool:
    """Whether the reduction reads something that the kernel computes first (zero padding)."""
    anchor = problem.anchor
    sources = [
        key(load.source) for load in loads(anchor.value) if not same(load.source, anchor.buffer)
    ]
    return any(source in problem.kernel.producers for source in sources)


def balanced(extent: int, most: int, cores: int, *, ends: float) -> int:
    """Iterations of the chunk axis per task: at most `most`, tasks spread evenly over the cores.

    A core that others slow down leaves tasks to the rest (`stages/work_stealing.py`): the more
    there are, the less is waited for in the end. `ends` is what the ends of a task cost, in
    iterations.
    """

    def cost(size: int) -> float:
        tasks = ceil_div(extent, size)
        idle = ceil_div(tasks, cores) * cores * size / extent
        return idle + UNEVEN * (cores - 1) / tasks + ends / size

    return min(range(1, max(1, min(extent, most)) + 1), key=cost)


def register_tile(
    rows: int | None,
    cols: int,
    lane_count: int,
    depth: int,
    target: Target,
    even: int = 1,
    whole: int | None = None,
) -> tuple[int, int]:
    """Rows and columns of the tile that a simple cost model likes best, edges included.

    rows: positions (None: symbolic), cols: blocks, depth: length of the reduction, even: rows come
    in multiples of it, whole: what columns must divide, if anything.
    """
    width = max(1, lane_count * 32 // target.vector_bits)  # registers per block of lanes
    best, chosen = float("inf"), (1, 1)
    most_rows = min(rows or 64, STACK_BYTES // (4 * lane_count) - 1)
    for r in range(even, max(even, most_rows) + 1, even):
        for c in range(1, min(cols, 8) + 1):
            if whole is not None and whole % c:
                continue
            if r * c * width + c * width + 1 > target.vector_registers and (r, c) != (even, 1):
                continue

            def cost(r: int, c: int) -> float:
                vectors = r * c * width
                return max(vectors / 2, (r + c * width) / 2, 4.0) + 0.2 + 30.0 / depth

            full, tail = divmod(rows, r) if rows else (256 / r, 0)
            full_c, tail_c = divmod(cols, c)
            total = full * full_c * cost(r, c)
            total += full_c * cost(tail, c) if tail else 0
            total += full * cost(r, tail_c) if tail_c else 0
            total += cost(tail, tail_c) if tail and tail_c else 0
            if total < best * 0.999:
                best, chosen = total, (r, c)
    return chosen


def static_size(axis: Axis) -> int:
    if axis.static is None:
        raise Unfit(f"{axis.var.name} is symbolic")
    return axis.static
