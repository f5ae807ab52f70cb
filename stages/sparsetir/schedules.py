"""Schedules: how a product's position program becomes loops, per format and target.

All keep a tile of Y in registers until it is complete, apply the epilogue to it and write it once,
and run in parallel over a few chunks, so that no allocation happens inside a chunk's loops.

`BlockTile`  BSR: `rows` of X × the outputs of one block.
`Lanes`      CSR: rows of X turned into lanes, one stored value scales all of them.
`Dots`       CSR, few rows of X: a dot product per output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tapml.stage import Target

from .emit import (
    Emitter,
    Finish,
    Stmt,
    Tir,
    bind,
    grid,
    load,
    local,
    loop,
    pairwise_sum,
    sequence,
    store,
    tirx,
    with_locals,
    zero,
)
from .formats import Format

PARALLEL_FLOPS = 400_000  # below it, starting threads costs more than it saves (about 4 µs at peak)
ACCUMULATORS = 4  # vectors of sums that hide the latency of multiply-adds
GROUP = 16  # outputs that CSR lanes collect before they are turned back into rows of Y


@dataclass(frozen=True)
class Chunks:
    """`count` parallel chunks, of X's rows or of the weight's compressed rows (borders in
    `splits`)."""

    over: Literal["rows", "columns"]
    count: int


@dataclass(frozen=True)
class BlockTile:
    """rows: tile heights, decreasing, each covering what those before left; chains: independent
    sums per output."""

    rows: tuple[int, ...]
    vector: int
    chunks: Chunks

    @property
    def traits(self) -> object:
        """Equal for schedules that run alike: a symbolic kernel's lower tiles cost nothing where
        they are not used."""
        return BlockTile, self.chunks


@dataclass(frozen=True)
class Lanes:
    """lanes: rows of X side by side; a chunk is one tile of rows by one of `runs` of outputs
    (borders in `splits`)."""

    lanes: int
    vector: int
    chains: int
    runs: int
    parallel: bool

    @property
    def traits(self) -> object:
        return self


@dataclass(frozen=True)
class Dots:
    """chains: products summed side by side."""

    chains: int
    chunks: Chunks

    @property
    def traits(self) -> object:
        return self


Schedule = BlockTile | Lanes | Dots


@dataclass(frozen=True)
class Problem:
    """What a schedule depends on: sizes of the product, m either exact (`low == high`) or
    bounded."""

    m: tuple[int, int]
    n: int
    k: int
    stored: int

    @property
    def is_static(self) -> bool:
        return self.m[0] == self.m[1]


def schedule_for(form: Format, problem: Problem, target: Target) -> Schedule:
    """The schedule of a format on a CPU, from the target's vectors and registers."""
    width = target.vector_bits // 32
    if form.kind == "bsr":
        vector = _vector(form.block[0], width)
        per_row = -(-form.block[0] // width)
        tallest = max(1, min(8, (target.vector_registers - 4) // per_row))
        return BlockTile(_row_tiles(tallest, problem), vector, _chunks(problem, target))
    if problem.is_static and problem.m[0] <= 2:
        return Dots(width, _chunks(problem, target))
    vectors = 2 if problem.m[0] >= 2 * width else 1
    lanes = vectors * width
    parallel = _chunks(problem, target).count > 1
    runs = target.cores if parallel and problem.m[0] < 2 * target.cores * lanes else 1
    return Lanes(lanes, width, ACCUMULATORS // vectors, runs, parallel)


def _vector(outputs: int, width: int) -> int:
    """The widest power of two of lanes that divides a block's outputs."""
    return next(lanes for lanes in (16, 8, 4, 2, 1) if lanes <= width and outputs % lanes == 0)


def _row_tiles(tallest: int, problem: Problem) -> tuple[int, ...]:
    """One height that divides m where one is good enough; else the tallest and powers of two for
    what it leaves."""
    if problem.is_static:
        m = problem.m[0]
        exact = [rows for rows in range(tallest, tallest // 2, -1) if m % rows == 0]
        if exact:
            return (exact[0],)
        if m <= tallest:
            return (m,)
    powers = [1 << bit for bit in reversed(range(tallest.bit_length())) if 1 << bit < tallest]
    return (tallest, *powers)


def _chunks(problem: Problem, target: Target) -> Chunks:
    """Over X's rows where even the fewest are many; over outputs otherwise; one chunk where
    threads do not pay."""
    if 2 * problem.m[1] * problem.stored < PARALLEL_FLOPS or target.cores == 1:
        return Chunks("columns", 1)
    if problem.m[0] >= max(256 * target.cores, problem.n):
        return Chunks("rows", 4 * target.cores)
    return Chunks("columns", 2 * target.cores)


def emit(schedule: Schedule, emitter: Emitter, finish: Finish) -> Stmt:
    """The loops of the emitter's program under a schedule; `finish` is the epilogue."""
    match schedule:
        case BlockTile():
            return _BlockTiles(schedule, emitter, finish).body()
        case Lanes():
            return _lanes(schedule, emitter, finish)
        case Dots():
            return _dots(schedule, emitter, finish)


def _column_chunks(e: Emitter, chunks: Chunks, rows: int, body: Callable[[Tir, Tir], Stmt]) -> Stmt:
    """`body(start, count)` for each parallel run of compressed rows."""
    if chunks.count == 1:
        return body(0, rows)
    splits = e.array("splits", [chunks.count + 1])
    return loop(
        "chunk",
        chunks.count,
        lambda c: bind(
            "start", load(splits, c), lambda start: body(start, load(splits, c + 1) - start)
        ),
        "parallel",
    )


class _BlockTiles:
    """BSR: rows of X outside, the compressed rows of a chunk inside, so that X's rows stay in the
    first cache."""

    def __init__(self, schedule: BlockTile, e: Emitter, finish: Finish) -> None:
        self.schedule, self.e, self.finish = schedule, e, finish
        self.nest = e.program.nests[0]
        self.m = e.size("X", 0)
        self.block_rows = e.expr(self.nest.loop("JO").stop, {})
        self.outputs = e.expr(self.nest.loop("JI").stop, {})
        self.inputs = e.expr(self.nest.loop("KI").stop, {})
        self.n = e.size("Y", 1)
        self.tiles = {
            rows: local(f"tile{rows}", (rows, self.chains(rows), self.outputs))
            for rows in schedule.rows
        }

    def chains(self, rows: int) -> int:
        """Sums per output that hide the latency of multiply-adds where a tile has few rows."""
        vectors = rows * (self.outputs // self.schedule.vector)
        return next(
            chains
            for chains in (4, 2, 1)
            if (chains * vectors <= 8 and self.inputs % chains == 0) or chains == 1
        )

    def body(self) -> Stmt:
        chunks = self.schedule.chunks
        if chunks.over == "columns":
            return _column_chunks(
                self.e,
                chunks,
                self.block_rows,
                lambda start, count: with_locals(
                    list(self.tiles.values()), self.row_range(0, self.m, start, count)
                ),
            )
        tallest = self.schedule.rows[0]
        step = tallest * _ceildiv(self.m, chunks.count * tallest)

        def chunk(c: Tir) -> Stmt:
            low = c * step
            rows = tirx.max(tirx.min(self.m - low, step), 0)
            inner = bind("rows", rows, lambda rows: self.row_range(low, rows, 0, self.block_rows))
            return with_locals(list(self.tiles.values()), inner)

        return loop("chunk", chunks.count, chunk, "parallel")

    def row_range(self, low: Tir, rows: Tir, start: Tir, count: Tir) -> Stmt:
        """All of `rows` rows from `low` on, in tiles of decreasing height."""
        parts, done = [], 0
        for height in self.schedule.rows:
            left = rows - done
            tiles = left // height if isinstance(left, int) else tirx.floordiv(left, height)
            base = low + done
            parts.append(
                loop(
                    "tile",
                    tiles,
                    lambda t, height=height, base=base: loop(
                        "j", count, lambda j: self.tile(height, base + t * height, start + j)
                    ),
                )
            )
            done = done + tiles * height
        return sequence(*parts)

    def tile(self, rows: int, row: Tir, block_row: Tir) -> Stmt:
        """`rows` × `outputs` of Y: zeroed, accumulated over the stored blocks, finished and
        written."""
        e, tile, chains = self.e, self.tiles[rows], self.chains(rows)
        vector = self.schedule.vector
        over = {"r": (rows, "unrolled"), "o": (self.outputs // vector, "unrolled")}
        lanes = {"v": (vector, "vectorized")}
        chain = {"s": (chains, "unrolled")}
        init = grid(
            over | chain | lanes, lambda r, o, s, v: store(tile, zero(), r, s, o * vector + v)
        )
        segment = self.nest.loop("KO")
        first = e.expr(segment.start, {"JO": block_row})

        def update(p: Tir, q: Tir) -> Stmt:
            def at(s: Tir, r: Tir, o: Tir, v: Tir) -> Stmt:
                lane = o * vector + v
                where = {"I": row + r, "JO": block_row, "JI": lane, "KO": p, "KI": q * chains + s}
                return store(
                    tile, load(tile, r, s, lane) + e.expr(self.nest.value, where), r, s, lane
                )

            return grid(chain | over | lanes, at)

        def reduction(first: Tir) -> Stmt:
            blocks = e.expr(segment.stop, {"JO": block_row}) - first
            return loop(
                "p",
                blocks,
                lambda p: loop("q", self.inputs // chains, lambda q: update(first + p, q)),
            )

        def write(r: Tir, lane: Tir) -> Stmt:
            at = {"I": row + r, "JO": block_row, "JI": lane}
            total = pairwise_sum([load(tile, r, s, lane) for s in range(chains)])
            i, j = e.indices(self.nest.target, at)
            return store(e.buffer("Y"), self.finish(total, i, j), i, j)

        full = grid(over | lanes, lambda r, o, v: write(r, o * vector + v))
        if edge := self.n % self.outputs:
            part = grid({"r": (rows, "serial"), "v": (edge, "serial")}, write)
            full = tirx.IfThenElse(block_row < self.n // self.outputs, full, part)
        return sequence(init, bind("first", first, reduction), full)


def _dots(schedule: Dots, e: Emitter, finish: Finish) -> Stmt:
    nest = e.program.nests[0]
    chains, output = schedule.chains, e.buffer("Y")
    sums = local("sums", [chains])

    def dot(i: Tir, j: Tir) -> Stmt:
        segment = nest.loop("KS")

        def add(lane: Tir, p: Tir) -> Stmt:
            return store(
                sums, load(sums, lane) + e.expr(nest.value, {"I": i, "J": j, "KS": p}), lane
            )

        def reduction(first: Tir) -> Stmt:
            count = e.expr(segment.stop, {"J": j}) - first
            whole = tirx.floordiv(count, chains)
            body = loop(
                "p",
                whole,
                lambda p: loop("s", chains, lambda s: add(s, first + p * chains + s), "vectorized"),
            )
            rest = loop("t", count - whole * chains, lambda t: add(0, first + whole * chains + t))
            return sequence(body, rest)

        init = loop("s", chains, lambda s: store(sums, zero(), s), "vectorized")
        total = pairwise_sum([load(sums, s) for s in range(chains)])
        first = e.expr(segment.start, {"J": j})
        return sequence(
            init, bind("first", first, reduction), store(output, finish(total, i, j), i, j)
        )

    rows, columns = e.expr(nest.loop("I").stop, {}), e.expr(nest.loop("J").stop, {})
    return _column_chunks(
        e,
        schedule.chunks,
        columns,
        lambda start, count: with_locals(
            [sums], loop("i", rows, lambda i: loop("j", count, lambda j: dot(i, start + j)))
        ),
    )


def _lanes(schedule: Lanes, e: Emitter, finish: Finish) -> Stmt:
    """CSR: a tile of X is turned once per chunk; groups of outputs are turned back, so that Y is
    written along its rows."""
    turn, nest = e.program.nests
    lanes, vector, chains, runs = schedule.lanes, schedule.vector, schedule.chains, schedule.runs
    output = e.buffer("Y")
    m, (n, k) = e.size("X", 0), (e.size("Y", 1), e.size("X", 1))
    sums, group = local("sums", [chains, lanes]), local("group", [GROUP, lanes])
    over = {"o": (lanes // vector, "unrolled"), "v": (vector, "vectorized")}
    side = {"s": (chains, "unrolled")}
    segment = nest.loop("KS")

    def turned(tile: Tir) -> Stmt:
        def at(lane: Tir, column: Tir) -> Stmt:
            where = {"IO": tile, "K": column, "II": lane}
            return store(e.buffer("T"), e.expr(turn.value, where), *e.indices(turn.target, where))

        return grid({"lane": (lanes, "serial"), "column": (k, "serial")}, at)

    def product(tile: Tir, j: Tir, row: Tir) -> Stmt:
        def add(s: Tir, o: Tir, v: Tir, p: Tir) -> Stmt:
            lane = o * vector + v
            value = e.expr(nest.value, {"IO": tile, "J": j, "II": lane, "KS": p})
            return store(sums, load(sums, s, lane) + value, s, lane)

        def reduction(first: Tir) -> Stmt:
            count = e.expr(segment.stop, {"J": j}) - first
            whole = tirx.floordiv(count, chains)
            rest = first + whole * chains
            return sequence(
                loop(
                    "p",
                    whole,
                    lambda p: grid(
                        side | over, lambda s, o, v: add(s, o, v, first + p * chains + s)
                    ),
                ),
                loop(
                    "t",
                    count - whole * chains,
                    lambda t: grid(over, lambda o, v: add(0, o, v, rest + t)),
                ),
            )

        def collect(o: Tir, v: Tir) -> Stmt:
            lane = o * vector + v
            total = pairwise_sum([load(sums, s, lane) for s in range(chains)])
            return store(group, total, row, lane)

        return sequence(
            grid(side | over, lambda s, o, v: store(sums, zero(), s, o * vector + v)),
            bind("first", e.expr(segment.start, {"J": j}), reduction),
            grid(over, collect),
        )

    def grouped(tile: Tir, start: Tir, count: Tir) -> Stmt:
        """Outputs [start, start + count), `count` ≤ GROUP."""

        def write(lane: Tir, g: Tir) -> Stmt:
            i, j = tile * lanes + lane, start + g
            return store(output, finish(load(group, g, lane), i, j), i, j)

        rows = tirx.min(m - tile * lanes, lanes)
        whole = grid({"lane": (rows, "serial"), "g": (GROUP, "vectorized")}, write)
        part = grid({"lane": (rows, "serial"), "g": (count, "serial")}, write)
        return sequence(
            loop("g", count, lambda g: product(tile, start + g, g)),
            tirx.IfThenElse(count == GROUP, whole, part),
        )

    def run(tile: Tir, start: Tir, count: Tir) -> Stmt:
        def groups(g: Tir) -> Stmt:
            size = tirx.min(count - g * GROUP, GROUP)
            return bind("size", size, lambda size: grouped(tile, start + g * GROUP, size))

        body = loop("group", _ceildiv(count, GROUP), groups)
        return with_locals([e.buffer("T"), sums, group], sequence(turned(tile), body))

    def chunk(c: Tir) -> Stmt:
        if runs == 1:
            return run(c, 0, n)
        splits, tile, part = (
            e.array("splits", [runs + 1]),
            tirx.floordiv(c, runs),
            tirx.floormod(c, runs),
        )
        first = load(splits, part)
        stop = load(splits, part + 1)
        return bind("start", first, lambda start: run(tile, start, stop - start))

    return loop(
        "chunk", _ceildiv(m, lanes) * runs, chunk, "parallel" if schedule.parallel else "serial"
    )


def _ceildiv(a: Tir, b: int) -> Tir:
    return -(-a // b) if isinstance(a, int) else tirx.floordiv(a + (b - 1), b)
