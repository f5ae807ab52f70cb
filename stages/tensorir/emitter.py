"""Loops of a tiled reduction: tasks, their staged inputs, register tiles, and what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ..compat import tvm
from .borders import borders, least, most
from .epilogue import Larger, Sink, sinks
from .intrinsics import vectorizable
from .kernel import (
    Axis,
    Expr,
    Step,
    Unfit,
    as_int,
    bounded,
    ceil_div,
    depends_on,
    element_dtype,
    is_load,
    key,
    loads,
    same,
    substitute,
)
from .loops import (
    branch,
    dtype_of,
    lanes,
    local,
    loop,
    nest,
    parallel,
    prefetch,
    scheduled,
    seq,
    store,
    unrolled,
    when,
)
from .nests import elementwise, in_memory
from .shuffles import Shuffles
from .tiling import (
    SERIAL_FLOPS,
    Plan,
    Problem,
    flops,
    looped,
    reads_groups,
    static_size,
    weight_load,
)

tirx = tvm.tirx


def emit(
    problem: Problem,
    plan: Plan,
    target: Target,
    first: Sequence[Step] = (),
    emitter: Callable[..., Emitter] | None = None,
) -> Any:
    """The scheduled PrimFunc.

    first: producers of the reduction that are computed as a whole before it (a packed matrix).
    Outputs that do not follow the reduction element by element are computed from it in loops of
    their own.
    emitter: whose tiles; the plain ones if left out
    """
    kernel, anchor = problem.kernel, problem.anchor
    held: dict[int, Callable[..., Expr]] = {}
    body: list[Any] = []
    buffers: list[Any] = []
    for step in first:
        body.append(elementwise(kernel, step, held, target))
        held[key(step.buffer)] = in_memory(step)
        buffers.append(step.buffer)
    try:
        body.append(tiles(problem, plan, sinks(problem), held, emitter))
    except Larger:
        body.append(tiles(problem, plan, (Sink(anchor, list),), held, emitter))
        held[key(anchor.buffer)] = in_memory(anchor)
        buffers.append(anchor.buffer)
        body += [elementwise(kernel, step, held, target) for step in kernel.outputs]
    return scheduled(kernel.func, seq(body), buffers)


def tiles(
    problem: Problem,
    plan: Plan,
    sinks: Sequence[Sink],
    held: Mapping[int, Callable[..., Expr]],
    emitter: Callable[..., Emitter] | None = None,
) -> Any:
    """The loops of the reduction that store every sink."""
    return (emitter or Emitter)(problem, plan, sinks, held).body()


class Emitter:
    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        sinks: Sequence[Sink],
        held: Mapping[int, Callable[..., Expr]],
    ) -> None:
        self.problem, self.plan, self.sinks = problem, plan, sinks
        self.analyzer = bounded(())
        self.held = dict(held)
        self.others = [axis for axis in problem.outer if axis is not problem.chunk]
        self.within: list[Axis] = []  # of the others: their tasks share a run
        self.serial = flops(problem) < SERIAL_FLOPS
        self.weight = weight_load(problem, plan) if plan.prefetch else None
        apart = plan.split and not plan.stage
        self.borders = borders(problem.kernel, problem.anchor) if apart else None
        grouped = reads_groups(problem)
        self.shuffles = Shuffles(problem.lane_count, problem.dtype) if grouped else None
        self.lane_shape = plan.tile.shape if plan.tile is not None else (problem.lane_count,)
        inner = plan.tile.inner if plan.tile is not None else ()
        self.inner = {key(axis.var): tirx.const(0, problem.dtype) for axis in inner}

    def body(self) -> Any:
        problem, plan = self.problem, self.plan
        run = problem.chunk or problem.row
        runs = 1 if run is None or self._whole(run) else ceil_div(run.extent, plan.chunk)
        cols = problem.col.extent if problem.col is not None else 1
        if not isinstance(cols, int) and plan.cols != 1:
            raise Unfit("symbolic number of blocks")
        col_tasks = ceil_div(cols, plan.cols) if plan.cols_parallel else 1
        many = len(self.others)

        def task(indices: list[Expr]) -> Any:
            other, (index, *within, col_task) = indices[:many], indices[many:]
            at = {
                key(axis.var): value
                for axis, value in zip((*self.others, *self.within), (*other, *within), strict=True)
            }
            start, count = self._run(run, index)
            prepare = self._stage(at, run, start)
            tiles = self._columns(
                cols,
                col_task,
                lambda col, width: self._positions(at, run, start, count, col, width),
            )
            return seq([*prepare, *tiles])

        return parallel(
            [
                *(axis.extent for axis in self.others),
                runs,
                *(axis.extent for axis in self.within),
                col_tasks,
            ],
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

    def _columns(self, cols: Any, task: Expr, body: Callable[[Expr, int], Any]) -> list[Any]:
        width = self.plan.cols
        if not isinstance(cols, int):
            if self.plan.cols_parallel:
                return [body(task, 1)]
            return [loop("col", cols, lambda c: body(c, 1), dtype=self.problem.dtype)]
        full, tail = divmod(cols, width)
        dtype = self.problem.dtype
        if self.plan.cols_parallel:
            first = body(task * width, width) if full else None
            if not tail:
                return [first]
            last = body(tirx.const(full * width, dtype), tail)
            return [last if first is None else branch(task < full, first, last)]
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
                return self._line(here, tirx.const(0, dtype), row.extent if row else 1, col, width)

            return loop("line", count, line, dtype=dtype)
        return self._line(at, start, count, col, width)

    def _line(self, at: Mapping[int, Expr], start: Expr, count: Any, col: Expr, width: int) -> Any:
        """Tiles over neighbouring rows. Where the window may reach into the padding, it is tested
        for, row by row; between these rows and in lines away from the border it is not.
        """
        found, row, dtype = self.borders, self.problem.row, self.problem.dtype
        if found is None or row is None:
            return self._rows(at, start, count, col, width)
        here = {axis: span for axis, span in found.inside.items() if axis != key(row.var)}
        tests = [at[axis] >= first for axis, (first, _) in here.items()]
        tests += [at[axis] < last for axis, (_, last) in here.items()]
        first, last = (
            as_int(self.analyzer.simplify(bound - start))
            for bound in found.inside.get(key(row.var), (start, start + count))
        )
        first = least(most(first, 0), count)
        last = most(first, least(last, count))

        def tested(begin: Any, extent: Any) -> Any:
            return loop(
                "border",
                extent,
                lambda r: self._tile(at, start + begin + r, 1, col, width),
                dtype=dtype,
            )

        self.held[key(found.producer.buffer)] = lambda *indices: found.read(
            self.problem.kernel, {}, indices
        )
        within = self._rows(at, start + first, last - first, col, width)
        del self.held[key(found.producer.buffer)]
        inner = seq([tested(0, first), within, tested(last, count - last)])
        return branch(tirx.all(*tests), inner, tested(0, count)) if tests else inner

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
                        lambda t: self._tile(
                            at, start + t * rows, rows, col, width, t if full > 1 else None
                        ),
                        dtype=dtype,
                    )
                )
            if tail:
                result.append(self._tile(at, start + full * rows, tail, col, width))
            return seq(result)

        def overlapped(t: Expr) -> Any:
            first = tirx.min(t * rows, count - rows)
            return self._tile(at, start + first, rows, col, width, t)

        def left(size: int) -> Any:
            first = start + count // (2 * size) * (2 * size)
            return when(count // size % 2 == 1, self._tile(at, first, size, col, width))

        long = loop("tile", ceil_div(count, rows), overlapped, dtype=dtype)
        if rows == 1:
            return long
        return branch(count >= rows, long, seq(left(size) for size in _halves(rows)))

    def _places(
        self, at: Mapping[int, Expr], row: Expr, col: Expr
    ) -> Callable[[Expr, int, Expr], dict[int, Expr]]:
        """Row, block and lane of a tile's cell → the values of all axes."""
        problem = self.problem

        def where(r: Expr, c: int, lane: Expr) -> dict[int, Expr]:
            found = {**at, key(problem.lane.var): lane}
            if problem.row is not None:
                found[key(problem.row.var)] = row + r
            if problem.col is not None:
                found[key(problem.col.var)] = col + c
            return found

        return where

    def _tile(
        self,
        at: Mapping[int, Expr],
        row: Expr,
        rows: int,
        col: Expr,
        cols: int,
        number: Expr | None = None,
    ) -> Any:
        """A register tile: accumulate, then store every output. `number`: of the tile in its task,
        where it is one of several.
        """
        problem, anchor = self.problem, self.problem.anchor
        accs = [
            [
                local("acc", (rows, *self.lane_shape), element_dtype(anchor.buffer))
                for _ in range(self.plan.partials)
            ]
            for _ in range(cols)
        ]
        where = self._places(at, row, col)

        def cells(body: Callable[[Expr, int], Any]) -> Any:
            """All cells: rows as a loop, which is unrolled after the passes that take long."""
            return unrolled(
                rows, lambda r: seq(body(r, c) for c in range(cols)), self.problem.dtype
            )

        def start(r: Expr, c: int, part: int) -> Any:
            init = vectorizable(anchor.init)
            return self._lanes(lambda lane: store(accs[c][part], self._cell(r, lane), init))

        def update(taps: Mapping[int, Expr], part: int) -> Any:
            def cell(r: Expr, c: int) -> Any:
                def one(lane: Expr) -> Any:
                    old = tirx.BufferLoad(accs[c][part], self._cell(r, lane))
                    value = substitute(anchor.value, {**where(r, c, lane), **taps})
                    value = self._combined(value, old)
                    return store(accs[c][part], self._cell(r, lane), value)

                if self.plan.tile is not None:
                    zero = tirx.const(0, problem.dtype)
                    return self._execute({**where(r, c, zero), **taps}, accs[c][part], r)
                return self._lanes(one)

            return seq([cells(cell), *ahead(taps)])

        def ahead(taps: Mapping[int, Expr]) -> list[Any]:
            if number is None or self.weight is None or problem.col is None:
                return []
            block = cols + tirx.min(number, _int(cols - 1, number))
            env = {**where(_int(0, row), 0, _int(0, row)), **taps, **self.inner}
            env[key(problem.col.var)] = col + block
            indices = [substitute(index, env) for index in self.weight.indices]
            return [prefetch(self.weight.source, indices, level=2)]

        def join(r: Expr, c: int) -> Any:
            return seq(
                self._lanes(
                    lambda lane, part=part: store(
                        accs[c][0],
                        self._cell(r, lane),
                        tirx.BufferLoad(accs[c][0], self._cell(r, lane))
                        + tirx.BufferLoad(accs[c][part], self._cell(r, lane)),
                    )
                )
                for part in range(1, self.plan.partials)
            )

        def finish(r: Expr, c: int) -> Any:
            return seq(self._output(sink, accs[c][0], r, where, c, col + c) for sink in self.sinks)

        return seq(
            [
                *(tirx.AllocBuffer(acc) for parts in accs for acc in parts),
                cells(lambda r, c: seq(start(r, c, part) for part in range(self.plan.partials))),
                *self._reduce(update),
                cells(join) if self.plan.partials > 1 else None,
                cells(finish),
            ]
        )

    def _cell(self, r: Expr, lane: Expr) -> list[Expr]:
        """Where the accumulator of a row has the element of a lane."""
        found: list[Expr] = []
        for size in reversed(self.lane_shape[1:]):
            found.append(lane % size)
            lane = lane // size
        return [r, lane, *reversed(found)]

    def _execute(self, at: Mapping[int, Expr], acc: Any, r: Expr) -> Any:
        """The intrinsic of the plan, on operands in memory and on one row of the accumulator."""
        tile = self.plan.tile
        assert tile is not None
        at = {**at, **self.inner}
        places: list[tuple[Any, list[Expr]]] = []
        for operand in tile.operands:
            found = self.problem.kernel.inline(substitute(operand, at), self.held)
            if not is_load(found):
                raise Unfit("an operand of the intrinsic is not in memory")
            places.append((found.source, list(found.indices)))
        return tile.intrinsic.at([*places, (acc, self._cell(r, tirx.const(0, self.problem.dtype)))])

    def _combined(self, value: Expr, old: Expr) -> Expr:
        """One step of the accumulation: producers inlined, the accumulated element replaced by the
        register.
        """
        anchor = self.problem.anchor
        held = {**self.held, key(anchor.buffer): lambda *_: old}
        return vectorizable(self.problem.kernel.inline(value, held))

    def _reduce(self, update: Callable[[Mapping[int, Expr], int], Any]) -> list[Any]:
        """The reduction loops around `update`."""
        axes = looped(self.problem, self.plan)
        kept = len(axes) - self.plan.unroll
        first, rest = axes[:kept], axes[kept:]
        parts = self.plan.partials
        if parts > 1:
            *before, last = first
            extent = static_size(last)

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

        def taps(done: list[Expr]) -> Any:
            shuffled = rest[-1:] if self.shuffles is not None else []  # by indices that are known
            looped = rest[: len(rest) - len(shuffled)]
            return nest(
                looped,
                lambda more: seq(at([*done, *more, *last]) for last in points(shuffled)),
                tirx.ForKind.UNROLLED,
            )

        def at(position: list[Expr]) -> Any:
            return update(dict(zip((key(axis.var) for axis in axes), position, strict=True)), 0)

        return [nest(first, taps)]

    def _output(
        self,
        sink: Sink,
        acc: Any,
        r: Expr,
        where: Callable[..., dict[int, Expr]],
        c: int,
        col: Expr,
    ) -> Any:
        problem, anchor = self.problem, self.problem.anchor

        def one(lane: Expr) -> Any:
            mine = where(r, c, lane)
            position = [mine[key(axis.var)] for axis in anchor.axes]
            at = sink.position(position)
            element = tirx.BufferLoad(acc, self._cell(r, lane))
            buffer, place = sink.place(at) if sink.place else (sink.step.buffer, at)
            if sink.step is anchor or sink.step.reduce:  # the reduction itself, or over other axes
                return store(buffer, place, element)
            source = anchor.buffer if sink.reads is None else sink.reads
            held = {key(source): lambda *_: element}
            env = dict(zip((key(axis.var) for axis in sink.step.axes), at, strict=True))
            value = problem.kernel.value(sink.step, env, held)
            return store(buffer, place, vectorizable(value))

        if sink.limit is None or problem.col is None:
            return self._lanes(one)
        last = problem.col.extent - 1
        tail = loop("lane", sink.limit, one, dtype=problem.dtype)
        if isinstance(known := as_int(self.analyzer.simplify(col)), int):
            return tail if known == last else self._lanes(one)
        return branch(col < last, self._lanes(one), tail)

    def _lanes(self, body: Callable[[Expr], Any]) -> Any:
        if self.shuffles is not None:
            whole = self.shuffles.store(body(self.shuffles.lane))
            if whole is not None:
                return whole
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
        copy, origin, counts = self._staged(producer, load, at, run, start)
        dtype = self.problem.dtype
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
        return [tirx.AllocBuffer(copy), body]

    def _staged(
        self, producer: Step, load: Any, at: Mapping[int, Expr], run: Axis | None, start: Expr
    ) -> tuple[Any, list[Expr], list[Any]]:
        """A buffer for what a task reads of a producer, which is `held` there from now on: with
        the first element that it has, and how many along each axis.
        """
        problem, dtype = self.problem, self.problem.dtype
        free = [a for a in (*problem.anchor.axes, *problem.anchor.reduce) if key(a.var) not in at]
        zeros = {key(a.var): tirx.const(0, dtype) for a in free}
        analyzer = bounded(())
        for axis in free:
            count = min(self.plan.chunk, static_size(axis)) if axis is run else static_size(axis)
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
        copy = local("staged", sizes, element_dtype(producer.buffer))
        self.held[key(producer.buffer)] = lambda *indices: tirx.BufferLoad(
            copy, [i - first for i, first in zip(indices, origin, strict=True)]
        )
        return copy, origin, counts


def _distinct(found: Sequence[Any]) -> list[Any]:
    """One load per buffer. Unfit when a buffer is read at two places."""
    result: list[Any] = []
    for load in found:
        twin = next((one for one in result if same(one.source, load.source)), None)
        if twin is None:
            result.append(load)
        elif not tvm_ffi.structural_equal(twin, load):
            raise Unfit("a staged input is read at two places")
    return result


def points(axes: Sequence[Axis]) -> list[tuple[Expr, ...]]:
    """All constant points of static axes, in order."""
    points: list[tuple[Expr, ...]] = [()]
    for axis in axes:
        values = [tirx.const(value, dtype_of(axis)) for value in range(static_size(axis))]
        points = [(*point, value) for point in points for value in values]
    return points


def _halves(rows: int) -> list[int]:
    """Powers of two below `rows`, largest first: tile sizes that make up any shorter run."""
    return [1 << bit for bit in reversed(range((rows - 1).bit_length()))]


def _int(value: int, like: Expr) -> Expr:
    return tirx.const(value, like.ty.dtype)
