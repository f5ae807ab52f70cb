"""Loops for reductions whose last spatial axis is a vector of lanes: dense, convolutions, pools in
blocked layout.

A tile of `rows` positions times `cols` blocks of lanes stays in registers while the reduction runs;
the elementwise steps that follow are applied to it before it is stored. Edges get tiles of their
own, so nothing is guarded in the innermost loop, and symbolic row counts get tiles that overlap
(the same values are stored twice).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ..compat import tvm
from .intrinsics import vectorizable
from .kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    as_int,
    depends_on,
    key,
    loads,
    product,
    same,
    substitute,
)
from .loops import dtype_of, lanes, local, loop, nest, parallel, scheduled, seq, store
from .nests import elementwise, in_memory

tirx = tvm.tirx
STACK_BYTES = 1024  # a larger local buffer becomes a workspace allocation
CHUNK_BYTES = 192 << 10  # input of a chunk: stays in the second-level cache beside the weights
SERIAL_FLOPS = 100_000  # below it a parallel launch costs more than it brings


@dataclass(frozen=True)
class Problem:
    """A reduction over lanes. `row` and `col` are tiled axes, `outer` the other spatial ones,
    `chunk` the outer axis next to `row` that is cut into runs, each with its own staged input."""

    kernel: Kernel
    anchor: Step
    lane: Axis
    row: Axis | None
    col: Axis | None
    chunk: Axis | None
    outer: tuple[Axis, ...]

    @property
    def lane_count(self) -> int:
        return _static(self.lane)

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
    stage          producers that are copied per task (zero padding); others are inlined
    """

    rows: int = 1
    cols: int = 1
    chunk: int = 1
    cols_parallel: bool = False
    partials: int = 1
    unroll: int = 0
    stage: bool = True


def problem(kernel: Kernel, anchor: Step) -> Problem:
    """The axes of `anchor` by their part in the tile. Unfit when its last axis is no small static
    vector.
    """
    if len(anchor.axes) < 2 or not anchor.is_identity:
        raise Unfit("no lane axis")
    *axes, lane = anchor.axes
    if lane.static not in (4, 8, 16, 32, 64):
        raise Unfit("the last axis is no vector")
    row, col = axes[-1], None
    if (operands := factors(anchor)) is not None:
        in_lane = [depends_on(one, lane) for one in operands]
        if sum(in_lane) == 1:
            data, weight = operands if in_lane[1] else reversed(operands)
            only_weight = [a for a in axes if depends_on(weight, a) and not depends_on(data, a)]
            only_data = [a for a in axes if depends_on(data, a)]
            col = only_weight[0] if only_weight else None
            row = only_data[-1] if only_data else None
    outer = tuple(axis for axis in axes if axis is not row and axis is not col)
    before = [axis for axis in outer if axis.static is not None and axis.static > 1]
    chunk = None
    if row is not None and before and axes.index(before[-1]) == axes.index(row) - 1:
        chunk = before[-1] if axes.index(before[-1]) > 1 else None
    return Problem(kernel, anchor, lane, row, col, chunk, outer)


def factors(anchor: Step) -> tuple[Expr, Expr] | None:
    """The two operands of a sum of products, else None."""
    element = anchor.element
    if not isinstance(element, tirx.Mul):
        return None
    return element.a, element.b


def flops(problem: Problem) -> float:
    """Operations of the reduction, symbolic sizes counted as one."""
    axes = (*problem.anchor.axes, *problem.anchor.reduce)
    return 2.0 * prod(axis.static or 1 for axis in axes)


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


def balanced(extent: int, most: int, cores: int, *, whole_window: bool) -> int:
    """Iterations of the chunk axis per task: at most `most`, tasks spread evenly over the cores.

    With a window, short chunks copy their borders again and again, so longer ones are preferred.
    """

    def waste(size: int) -> float:
        tasks = -(-extent // size)
        idle = -(-tasks // cores) * cores * size / extent
        return idle + (0.05 * 2 / size if whole_window else 0.01 / size)

    return min(range(1, max(1, min(extent, most)) + 1), key=waste)


def register_tile(
    rows: int | None, cols: int, lane_count: int, depth: int, target: Target, even: int = 1
) -> tuple[int, int]:
    """Rows and columns of the tile that a simple cost model likes best, edges included.

    rows: positions (None: symbolic), cols: blocks, depth: length of the reduction, even: rows come
    in multiples of it.
    """
    width = max(1, lane_count * 32 // target.vector_bits)  # registers per block of lanes
    best, chosen = float("inf"), (1, 1)
    most_rows = min(rows or 64, STACK_BYTES // (4 * lane_count) - 1)
    for r in range(even, max(even, most_rows) + 1, even):
        for c in range(1, min(cols, 8) + 1):
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


@dataclass(frozen=True)
class Sink:
    """An output of the kernel as a function of one element of the reduction.

    position(anchor indices) → axis values of the output step; `limit`: lanes of the last block that
    exist, or None.
    """

    step: Step
    position: Callable[[Sequence[Expr]], list[Expr]]
    limit: int | None = None


def sinks(problem: Problem) -> tuple[Sink, ...]:
    """How every output follows elementwise from the reduction. `Larger` when one does not."""
    return tuple(_sink(problem, step) for step in problem.kernel.outputs)


def _sink(problem: Problem, step: Step) -> Sink:
    anchor = problem.anchor
    if step is anchor:
        return Sink(step, list)
    if step.reduce or not step.is_identity:
        raise Larger("the output is not elementwise")
    sizes, wanted = [axis.extent for axis in anchor.axes], [axis.extent for axis in step.axes]
    candidates: list[Sink] = []
    if len(sizes) == len(wanted) and all(map(_equal, sizes, wanted)):
        candidates.append(Sink(step, list))
    merged = sizes
    if problem.col is not None and anchor.axes[-2] is problem.col and isinstance(wanted[-1], int):
        blocks, count = sizes[-2], sizes[-1]
        if isinstance(blocks, int) and -(-wanted[-1] // count) == blocks:
            short = wanted[-1] % count or None
            merged = [*sizes[:-2], wanted[-1]]

            def merge(at: Sequence[Expr]) -> list[Expr]:
                return [*at[:-2], at[-2] * count + at[-1]]

            if len(merged) == len(wanted) and all(map(_equal, merged, wanted)):
                candidates.append(Sink(step, merge, short))
            if _same_product(merged, wanted):
                candidates.append(Sink(step, lambda at: _reshape(merge(at), merged, wanted), short))
    if _same_product(sizes, wanted):
        candidates.append(Sink(step, lambda at: _reshape(at, sizes, wanted)))
    for candidate in candidates:
        if _reads_its_own(problem, candidate):
            return candidate
    raise Larger("the output does not follow the reduction element by element")


class Larger(Unfit):
    """An output reads elements of the reduction at other places than its own."""


def _reads_its_own(problem: Problem, sink: Sink) -> bool:
    """Whether the output at `position(i)` reads exactly element i of the reduction."""
    analyzer = _analyzer(problem.anchor.axes)
    own = [axis.var for axis in problem.anchor.axes]
    right: list[bool] = []

    def element(*indices: Expr) -> Expr:
        right.append(all(analyzer.can_prove_equal(a, b) for a, b in zip(indices, own, strict=True)))
        return tirx.const(0, _buffer_dtype(problem.anchor.buffer))

    at = dict(
        zip(
            (key(a.var) for a in sink.step.axes),
            map(analyzer.simplify, sink.position(own)),
            strict=True,
        )
    )
    problem.kernel.value(sink.step, at, {key(problem.anchor.buffer): element})
    return bool(right) and all(right)


def _equal(a: Any, b: Any) -> bool:
    return (
        a == b
        if isinstance(a, int) and isinstance(b, int)
        else bool(tvm.sym.Analyzer().can_prove_equal(a, b))
    )


def _same_product(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return _equal(product(a), product(b))


def _reshape(at: Sequence[Expr], sizes: Sequence[Any], wanted: Sequence[Any]) -> list[Expr]:
    flat: Expr = at[0]
    for index, size in zip(at[1:], sizes[1:], strict=True):
        flat = flat * size + index
    result: list[Expr] = []
    for size in reversed(wanted[1:]):
        result.append(flat % size)
        flat = flat // size
    return [flat, *reversed(result)]


def emit(problem: Problem, plan: Plan, target: Target, first: Sequence[Step] = ()) -> Any:
    """The scheduled PrimFunc.

    first: producers of the reduction that are computed as a whole before it (a packed matrix).
    Outputs that do not follow the reduction element by element are computed from it in loops of
    their own.
    """
    kernel, anchor = problem.kernel, problem.anchor
    held: dict[int, Callable[..., Expr]] = {}
    body, buffers = [], []
    for step in first:
        body.append(elementwise(kernel, step, held, target))
        held[key(step.buffer)] = in_memory(step)
        buffers.append(step.buffer)
    try:
        body.append(_Emitter(problem, plan, sinks(problem), held).body())
    except Larger:
        body.append(_Emitter(problem, plan, (Sink(anchor, list),), held).body())
        held[key(anchor.buffer)] = in_memory(anchor)
        buffers.append(anchor.buffer)
        body += [elementwise(kernel, step, held, target) for step in kernel.outputs]
    return scheduled(kernel.func, seq(body), buffers)


class _Emitter:
    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        sinks: Sequence[Sink],
        held: Mapping[int, Callable[..., Expr]],
    ) -> None:
        self.problem, self.plan, self.sinks = problem, plan, sinks
        self.analyzer = _analyzer(())
        self.held = dict(held)
        others = [axis for axis in problem.outer if axis is not problem.chunk]
        self.others = others
        self.serial = flops(problem) < SERIAL_FLOPS

    def body(self) -> Any:
        problem, plan = self.problem, self.plan
        run = problem.chunk or problem.row
        runs = 1 if run is None or self._whole(run) else _ceil(run.extent, plan.chunk)
        cols = problem.col.static if problem.col is not None else 1
        if cols is None:
            raise Unfit("symbolic number of blocks")
        col_tasks = -(-cols // plan.cols) if plan.cols_parallel else 1

        def task(indices: list[Expr]) -> Any:
            *other, index, col_task = indices
            at = {key(axis.var): value for axis, value in zip(self.others, other, strict=True)}
            start, count = self._run(run, index)
            prepare = self._stage(at, run, start)
            tiles = self._columns(
                cols,
                col_task,
                lambda col, width: self._positions(at, run, start, count, col, width),
            )
            return seq([*prepare, *tiles])

        return parallel(
            [*(axis.extent for axis in self.others), runs, col_tasks],
            task,
            problem.dtype,
            self.serial,
        )

    def _whole(self, run: Axis) -> bool:
        return run.static is not None and run.static <= self.plan.chunk

    def _run(self, run: Axis | None, index: Expr) -> tuple[Expr, Any]:
        """First iteration and number of iterations of a task along the chunk axis."""
        if run is None:
            return index, 1
        if self._whole(run):
            return tirx.const(0, self.problem.dtype), run.extent
        start = index * self.plan.chunk
        if run.static is not None and run.static % self.plan.chunk == 0:
            return start, self.plan.chunk
        return start, tirx.min(tirx.const(self.plan.chunk, self.problem.dtype), run.extent - start)

    def _columns(self, cols: int, task: Expr, body: Callable[[Expr, int], Any]) -> list[Any]:
        width = self.plan.cols
        full, tail = divmod(cols, width)
        dtype = self.problem.dtype
        if self.plan.cols_parallel:
            first = body(task * width, width) if full else None
            if not tail:
                return [first]
            last = body(tirx.const(full * width, dtype), tail)
            return [last if first is None else tirx.IfThenElse(task < full, first, last)]
        result = [loop("col", full, lambda c: body(c * width, width), dtype=dtype)] if full else []
        return [*result, body(tirx.const(full * width, dtype), tail)] if tail else result

    def _positions(
        self,
        at: Mapping[int, Expr],
        run: Axis | None,
        start: Expr,
        count: Any,
        col: Expr,
        width: int,
    ) -> Any:
        """Tiles over all rows of a task."""
        row, chunk, dtype = self.problem.row, self.problem.chunk, self.problem.dtype
        if chunk is not None:

            def line(h: Expr) -> Any:
                here = {**at, key(chunk.var): start + h}
                return self._rows(here, tirx.const(0, dtype), row.extent if row else 1, col, width)

            return loop("line", count, line, dtype=dtype)
        return self._rows(at, start, count, col, width)

    def _rows(self, at: Mapping[int, Expr], start: Expr, count: Any, col: Expr, width: int) -> Any:
        rows, dtype = self.plan.rows, self.problem.dtype
        if isinstance(count, int):
            full, tail = divmod(count, rows)
            result = []
            if full:
                result.append(
                    loop(
                        "tile",
                        full,
                        lambda t: self._tile(at, start + t * rows, rows, col, width),
                        dtype=dtype,
                    )
                )
            if tail:
                result.append(self._tile(at, start + full * rows, tail, col, width))
            return seq(result)

        def overlapped(t: Expr) -> Any:
            first = tirx.min(t * rows, count - rows)
            return self._tile(at, start + first, rows, col, width)

        short: list[Any] = []
        for size in _halves(rows):
            first = start + count // (2 * size) * (2 * size)
            some = self._tile(at, first, size, col, width)
            short.append(tirx.IfThenElse((count // size) % 2 > 0, some, None))
        if not short:
            return loop(
                "tile", count, lambda t: self._tile(at, start + t, 1, col, width), dtype=dtype
            )
        long = loop("tile", (count + rows - 1) // rows, overlapped, dtype=dtype)
        return tirx.IfThenElse(count >= rows, long, seq(short))

    def _tile(self, at: Mapping[int, Expr], row: Expr, rows: int, col: Expr, cols: int) -> Any:
        """A register tile: accumulate, then store every output."""
        problem, anchor = self.problem, self.problem.anchor
        accs = [
            [
                local("acc", (rows, problem.lane_count), _buffer_dtype(anchor.buffer))
                for _ in range(self.plan.partials)
            ]
            for _ in range(cols)
        ]
        cells = [(r, c) for r in range(rows) for c in range(cols)]

        def where(r: int, c: int, lane: Expr) -> dict[int, Expr]:
            found = {**at, key(problem.lane.var): lane}
            if problem.row is not None:
                found[key(problem.row.var)] = row + r
            if problem.col is not None:
                found[key(problem.col.var)] = col + c
            return found

        def start(r: int, c: int, part: int) -> Any:
            init = vectorizable(anchor.init)
            return self._lanes(lambda lane: store(accs[c][part], [_int(r, lane), lane], init))

        def update(taps: Mapping[int, Expr], part: int) -> Any:
            def cell(r: int, c: int) -> Any:
                def one(lane: Expr) -> Any:
                    old = tirx.BufferLoad(accs[c][part], [_int(r, lane), lane])
                    value = substitute(anchor.value, {**where(r, c, lane), **taps})
                    value = self._combined(value, old)
                    return store(accs[c][part], [_int(r, lane), lane], value)

                return self._lanes(one)

            return seq(cell(r, c) for r, c in cells)

        def join(r: int, c: int) -> list[Any]:
            return [
                self._lanes(
                    lambda lane, part=part: store(
                        accs[c][0],
                        [_int(r, lane), lane],
                        tirx.BufferLoad(accs[c][0], [_int(r, lane), lane])
                        + tirx.BufferLoad(accs[c][part], [_int(r, lane), lane]),
                    )
                )
                for part in range(1, self.plan.partials)
            ]

        def finish(r: int, c: int) -> list[Any]:
            return [self._output(sink, accs[c][0], r, where, c, col + c) for sink in self.sinks]

        return seq(
            [
                *(tirx.AllocBuffer(acc) for parts in accs for acc in parts),
                *(start(r, c, part) for r, c in cells for part in range(self.plan.partials)),
                *self._reduce(update),
                *(statement for r, c in cells for statement in join(r, c)),
                *(statement for r, c in cells for statement in finish(r, c)),
            ]
        )

    def _combined(self, value: Expr, old: Expr) -> Expr:
        """One step of the accumulation: producers inlined, the accumulated element replaced by the
        register.
        """
        anchor = self.problem.anchor
        held = {**self.held, key(anchor.buffer): lambda *_: old}
        return vectorizable(self.problem.kernel.inline(value, held))

    def _reduce(self, update: Callable[[Mapping[int, Expr], int], Any]) -> list[Any]:
        """The reduction loops around `update`."""
        axes = self.problem.anchor.reduce
        kept = len(axes) - self.plan.unroll
        first, rest = axes[:kept], axes[kept:]
        parts = self.plan.partials
        if parts > 1:
            *before, last = first
            extent = _static(last)

            def split(done: list[Expr]) -> Any:
                taps = dict(zip((key(a.var) for a in before), done, strict=True))
                full = loop(
                    last.var.name,
                    extent // parts,
                    lambda k: seq(
                        update({**taps, key(last.var): k * parts + p}, p) for p in range(parts)
                    ),
                    dtype=self.problem.dtype,
                )
                tail = [
                    update({**taps, key(last.var): tirx.const(k, self.problem.dtype)}, 0)
                    for k in range(extent // parts * parts, extent)
                ]
                return seq([full, *tail] if extent >= parts else tail)

            return [nest(before, split)]

        def unrolled(done: list[Expr]) -> Any:
            taps = dict(zip((key(a.var) for a in first), done, strict=True))
            return seq(
                update({**taps, **dict(zip((key(a.var) for a in rest), point, strict=True))}, 0)
                for point in _points(rest)
            )

        return [nest(first, unrolled)]

    def _output(
        self, sink: Sink, acc: Any, r: int, where: Callable[..., dict[int, Expr]], c: int, col: Expr
    ) -> Any:
        problem, anchor = self.problem, self.problem.anchor

        def one(lane: Expr) -> Any:
            mine = where(r, c, lane)
            position = [mine[key(axis.var)] for axis in anchor.axes]
            at = sink.position(position)
            element = tirx.BufferLoad(acc, [_int(r, lane), lane])
            if sink.step is anchor:
                return store(anchor.buffer, position, element)
            held = {key(anchor.buffer): lambda *_: element}
            env = dict(zip((key(axis.var) for axis in sink.step.axes), at, strict=True))
            return store(
                sink.step.buffer, at, vectorizable(problem.kernel.value(sink.step, env, held))
            )

        if sink.limit is None or problem.col is None:
            return self._lanes(one)
        last = problem.col.extent - 1
        tail = loop("lane", sink.limit, one, dtype=problem.dtype)
        if isinstance(known := as_int(self.analyzer.simplify(col)), int):
            return tail if known == last else self._lanes(one)
        return tirx.IfThenElse(col < last, self._lanes(one), tail)

    def _lanes(self, body: Callable[[Expr], Any]) -> Any:
        return lanes(self.problem.lane_count, body, self.problem.dtype)

    def _stage(self, at: Mapping[int, Expr], run: Axis | None, start: Expr) -> list[Any]:
        """Copies of what producers of the reduction compute for this task (zero padding); they are
        then `held`.
        """
        problem, kernel = self.problem, self.problem.kernel
        if not self.plan.stage:
            return []
        result: list[Any] = []
        for load in _distinct(loads(problem.anchor.value)):
            producer = kernel.producers.get(key(load.source))
            if producer is None or producer is problem.anchor or key(load.source) in self.held:
                continue
            if producer.reduce or not producer.is_identity:
                raise Unfit("a producer of the reduction can not be copied")
            result += self._copy(producer, load, at, run, start)
        return result

    def _copy(
        self, producer: Step, load: Any, at: Mapping[int, Expr], run: Axis | None, start: Expr
    ) -> list[Any]:
        """One staged producer: the part of it that the task reads, in a buffer of its own."""
        problem, dtype = self.problem, self.problem.dtype
        free = [a for a in (*problem.anchor.axes, *problem.anchor.reduce) if key(a.var) not in at]
        zeros = {key(a.var): tirx.const(0, dtype) for a in free}
        analyzer = _analyzer(())
        for axis in free:
            count = min(self.plan.chunk, _static(axis)) if axis is run else _static(axis)
            analyzer.bind(axis.var, tvm.ir.Range(0, count))
        origin, sizes, counts = [], [], []
        for index, own in zip(load.indices, producer.axes, strict=True):
            base = substitute(index, zeros)
            size = int(analyzer.const_int_bound(analyzer.simplify(index - base)).max_value) + 1
            begin = substitute(index, {**zeros, **at, **({key(run.var): start} if run else {})})
            begin = self.analyzer.simplify(begin)
            inside = run is not None and depends_on(index, run) and not self._whole(run)
            origin.append(begin)
            sizes.append(size)
            counts.append(tirx.min(tirx.const(size, dtype), own.extent - begin) if inside else size)
        if prod(sizes) > 1 << 24:
            raise Unfit("a staged input is too large")
        copy = local("staged", sizes, _buffer_dtype(producer.buffer))
        wide = isinstance(counts[-1], int) and counts[-1] in (4, 8, 16, 32, 64)

        def fill(position: list[Expr]) -> Any:
            where = {
                key(axis.var): first + offset
                for axis, first, offset in zip(producer.axes, origin, position, strict=True)
            }
            return store(copy, position, self.problem.kernel.value(producer, where, {}))

        outer = [Axis(axis.var, count) for axis, count in zip(producer.axes, counts, strict=True)]
        if wide:
            body = nest(
                outer[:-1], lambda p: lanes(counts[-1], lambda lane: fill([*p, lane]), dtype)
            )
        else:
            body = nest(outer, fill)
        self.held[key(producer.buffer)] = lambda *indices: tirx.BufferLoad(
            copy, [i - first for i, first in zip(indices, origin, strict=True)]
        )
        return [tirx.AllocBuffer(copy), body]


def _distinct(found: Sequence[Any]) -> list[Any]:
    """One load per buffer. Unfit when a buffer is read at two places."""
    result: list[Any] = []
    for load in found:
        twin = next((one for one in result if same(one.source, load.source)), None)
        if twin is None:
            result.append(load)
    return result


def _points(axes: Sequence[Axis]) -> list[tuple[Expr, ...]]:
    """All constant points of static axes, in order."""
    points: list[tuple[Expr, ...]] = [()]
    for axis in axes:
        values = [tirx.const(value, dtype_of(axis)) for value in range(_static(axis))]
        points = [(*point, value) for point in points for value in values]
    return points


def _halves(rows: int) -> list[int]:
    """Powers of two below `rows`, largest first: tile sizes that make up any shorter run."""
    return [1 << bit for bit in reversed(range((rows - 1).bit_length()))]


def _static(axis: Axis) -> int:
    if axis.static is None:
        raise Unfit(f"{axis.var.name} is symbolic")
    return axis.static


def _ceil(value: Any, by: int) -> Any:
    return -(-value // by) if isinstance(value, int) else (value + by - 1) // by


def _int(value: int, like: Expr) -> Expr:
    return tirx.const(value, like.ty.dtype)


def _analyzer(axes: Sequence[Axis]) -> Any:
    analyzer = tvm.sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, tvm.ir.Range(0, axis.extent))
    return analyzer


def _buffer_dtype(buffer: Any) -> str:
    return str(buffer.ty.dtype)
