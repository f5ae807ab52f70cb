"""Reductions along the last axis, row by row: sums, means, maxima, softmax, layer norms."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import tvm_ffi

from tapml.stage import Target

from ...compat import tvm
from ..intrinsics import vectorizable
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    calls,
    is_load,
    key,
    loads,
    product,
    read,
    substitute,
)
from ..loops import (
    constant,
    dtype_of,
    lanes,
    local,
    loop,
    nest,
    parallel,
    scheduled,
    seq,
    store,
    when,
)
from ..nests import PARALLEL_ELEMENTS, float_lanes, vector
from ..tiling import SYMBOLIC

tirx = tvm.tirx

ACCUMULATORS = 4  # vectors that a reduction keeps, to hide the latency of its additions
ROW_BYTES = 1 << 20  # largest row that is kept


def rows(func: Any, target: Target) -> Any | None:
    """All steps of one row after each other; what several of them need is kept in a buffer of the
    row.
    """
    kernel = read(func)
    if kernel is None or not kernel.reductions:
        return None
    return scheduled(func, _Rows(kernel, target).body())


class _Rows:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        first = kernel.reductions[0]
        axes = list(first.axes)
        while axes and axes[-1].static == 1:  # kept dimensions
            axes.pop()
        if not axes:
            axes = list(first.axes[:1])
        self.kernel, self.target, self.row = kernel, target, tuple(axes)
        if not axes:
            raise Unfit("one single row")
        for step in kernel.reductions:
            if not self._is_contiguous(step):
                raise Unfit(f"{step.name} does not reduce the last axis")
        self.dtype = dtype_of(axes[0])
        self.width = float_lanes(target)
        self.held: dict[int, Callable[..., Expr]] = {}
        self.analyzer = tvm.sym.Analyzer()

    def _is_contiguous(self, step: Step) -> bool:
        """Whether the last reduction axis runs over neighbours in everything the step reads that
        has it.
        """
        last = step.reduce[-1].var
        if not step.is_identity:
            return False
        for load in loads(step.value):
            for index in load.indices[:-1]:
                if any(key(var) == key(last) for var in _variables(index)):
                    return False
        return True

    def body(self) -> Any:
        kernel = self.kernel
        work = prod(axis.static or SYMBOLIC for axis in self.row) * max(
            prod(axis.static or SYMBOLIC for axis in step.reduce) for step in kernel.reductions
        )
        count = product([axis.extent for axis in self.row])
        serial = work * 4 < PARALLEL_ELEMENTS
        chunks = 1 if serial else 4 * self.target.cores
        if isinstance(count, int):
            chunks = min(chunks, count)

        def chunk(indices: list[Expr]) -> Any:
            first, last = indices[0] * count // chunks, (indices[0] + 1) * count // chunks
            kept: list[Any] = []
            inner = loop(
                "row",
                last - first,
                lambda r: self._row(self._position(first + r), kept),
                dtype=self.dtype,
            )
            return seq([*(tirx.AllocBuffer(buffer) for buffer in kept), inner])

        return parallel([chunks], chunk, self.dtype, serial)

    def _position(self, flat: Expr) -> list[Expr]:
        result: list[Expr] = []
        for axis in reversed(self.row[1:]):
            result.append(flat % axis.extent)
            flat = flat // axis.extent
        return [flat, *reversed(result)]

    def _row(self, position: list[Expr], kept: list[Any]) -> Any:
        """Every step of one row. Buffers that are to be allocated outside are added to `kept`."""
        self.held = {}
        statements: list[Any] = []
        outputs = {key(step.buffer) for step in self.kernel.outputs}
        for step in self.kernel.steps:
            is_output = key(step.buffer) in outputs
            if not (step.reduce or is_output or self._is_kept(step)):
                continue  # it is computed where it is read
            env, inner = self._env(step, position), step.axes[len(self.row) :]
            if step.reduce:
                statements += self._reduce(step, env, inner, is_output)
            elif is_output:
                statements.append(self._write(step, env, inner, step.buffer, is_output))
                self.held[key(step.buffer)] = self._checked(
                    step, position, step.buffer, len(self.row), False
                )
            else:
                sizes = [axis.extent for axis in inner]
                if 4 * prod(axis.static or 1 for axis in inner) > ROW_BYTES:
                    raise Unfit("a row is too long to keep")
                buffer = local(step.name, sizes, str(step.buffer.ty.dtype))
                kept.append(buffer)
                statements.append(self._write(step, env, inner, buffer, False))
                self.held[key(step.buffer)] = self._checked(
                    step, position, buffer, len(self.row), True
                )
        return seq(statements)

    def _env(self, step: Step, position: list[Expr]) -> dict[int, Expr]:
        if len(step.axes) < len(self.row):
            raise Unfit(f"{step.name} has fewer axes than a row")
        for own, row in zip(step.axes, self.row, strict=False):
            if not self.analyzer.can_prove_equal(own.extent, row.extent):
                raise Unfit(f"{step.name} has other rows")
        return {key(axis.var): at for axis, at in zip(step.axes, position, strict=False)}

    def _is_kept(self, step: Step) -> bool:
        """Calls (exp, …) that more than one step needs are computed once."""
        return (
            len(step.axes) > len(self.row)
            and prod(axis.static or 2 for axis in step.axes[len(self.row) :]) > 1
            and len(self.kernel.uses(step)) > 1
            and bool(calls(step.value))
        )

    def _checked(
        self, step: Step, position: list[Expr], buffer: Any, skip: int, local_row: bool
    ) -> Callable[..., Expr]:
        """Elements of `buffer`, which holds this row of `step` only: Unfit when another row is
        asked for.
        """

        def element(*indices: Expr) -> Expr:
            for index, at in zip(indices[:skip], position, strict=True):
                if not self.analyzer.can_prove_equal(index, at):
                    raise Unfit(f"{step.name} is read at another row")
            return tirx.BufferLoad(buffer, list(indices[skip:] if local_row else indices))

        return element

    def _write(
        self, step: Step, env: dict[int, Expr], inner: tuple[Axis, ...], buffer: Any, whole: bool
    ) -> Any:
        def at(position: list[Expr]) -> Any:
            full = {**env, **{key(a.var): p for a, p in zip(inner, position, strict=True)}}
            value = _by_reciprocal(vectorizable(self.kernel.value(step, full, self.held)))
            indices = [substitute(i, full) for i in step.indices]
            return store(buffer, indices if whole else indices[len(self.row) :], value)

        if not inner:
            return at([])
        if not step.is_identity:
            raise Unfit("the output is shuffled")
        return nest(
            inner[:-1],
            lambda before: vector(inner[-1], self.width, lambda x: at([*before, x]), self.dtype),
        )

    def _reduce(
        self, step: Step, env: dict[int, Expr], inner: tuple[Axis, ...], is_output: bool
    ) -> list[Any]:
        """A reduction to one number: vectors of partial results, then their lanes."""
        if any(axis.static != 1 for axis in inner):
            raise Unfit(f"{step.name} reduces to more than a number a row")
        env = {**env, **{key(axis.var): tirx.const(0, self.dtype) for axis in inner}}
        *before, last = step.reduce
        size, width, many = last.extent, self.width, ACCUMULATORS
        if isinstance(size, int):
            while width > max(size, 1):
                width //= 2
            many = max(1, min(many, size // width))
        dtype = str(step.buffer.ty.dtype)
        total = local(f"{step.name}_row", (1,), dtype)
        zero = tirx.const(0, self.dtype)
        parts = [local(f"{step.name}_part", (width,), dtype) for _ in range(many)]

        def add(acc: Any, place: list[Expr], taps: list[Expr]) -> Any:
            full = {
                **env,
                **{key(axis.var): tap for axis, tap in zip(step.reduce, taps, strict=True)},
            }
            inside = {**self.held, key(step.buffer): lambda *_: tirx.BufferLoad(acc, place)}
            return store(acc, place, vectorizable(self.kernel.value(step, full, inside)))

        def some(done: list[Expr], start: Any, part: Any, count: int) -> Any:
            return lanes(count, lambda x: add(part, [x], [*done, start + x]), self.dtype)

        def run(done: list[Expr]) -> Any:
            vectors = size // width
            full = vectors // many
            body = [
                loop(
                    "vectors",
                    full,
                    lambda v: seq(
                        some(done, (v * many + p) * width, parts[p], width) for p in range(many)
                    ),
                    dtype=self.dtype,
                ),
                loop(
                    "vector",
                    vectors - full * many,
                    lambda v: some(done, (full * many + v) * width, parts[0], width),
                    dtype=self.dtype,
                ),
            ]
            half = width // 2
            while half > 1:  # of what is left, a vector of half the width, of a quarter, …
                start = size // (2 * half) * (2 * half)
                part = some(done, start, parts[0], half)
                body.append(when(size // half % 2 == 1, part))
                half //= 2
            if width > 1:
                last_one = [*done, constant(size - 1, self.dtype)]
                body.append(when(size % 2 == 1, add(total, [zero], last_one)))
            return seq(body)

        def fold(into: Any, place: list[Expr], other: Expr) -> Any:
            old = tirx.BufferLoad(into, place)
            return store(into, place, self._merge(step, old, other))

        merge = [
            lanes(
                width,
                lambda x, p=p: fold(parts[0], [x], tirx.BufferLoad(parts[p], [x])),
                self.dtype,
            )
            for p in range(1, many)
        ]
        half = width // 2
        while half:  # a tree of vectors, so that no addition is scalar but the last
            count = half
            merge.append(
                lanes(
                    count,
                    lambda x, count=count: fold(
                        parts[0], [x], tirx.BufferLoad(parts[0], [x + count])
                    ),
                    self.dtype,
                )
            )
            half //= 2
        merge.append(fold(total, [zero], tirx.BufferLoad(parts[0], [zero])))
        init = vectorizable(step.init)
        self.held[key(step.buffer)] = self._number(step, env, total)
        result = [
            *(tirx.AllocBuffer(buffer) for buffer in (total, *parts)),
            store(total, [zero], init),
            *(
                lanes(width, lambda x, part=part: store(part, [x], init), self.dtype)
                for part in parts
            ),
            nest(before, run),
            *merge,
        ]
        if is_output:
            indices = [substitute(index, env) for index in step.indices]
            result.append(store(step.buffer, indices, tirx.BufferLoad(total, [zero])))
        return result

    def _number(self, step: Step, env: dict[int, Expr], total: Any) -> Callable[..., Expr]:
        expected = [env[key(axis.var)] for axis in step.axes]
        zero = tirx.const(0, self.dtype)

        def element(*indices: Expr) -> Expr:
            for index, at in zip(indices, expected, strict=True):
                if not self.analyzer.can_prove_equal(index, at):
                    raise Unfit(f"{step.name} is read at another row")
            return tirx.BufferLoad(total, [zero])

        return element

    def _merge(self, step: Step, a: Expr, b: Expr) -> Expr:
        """Two partial results as one."""
        if step.element is not None:
            return a + b
        for kind, merged in (
            (tirx.Max, tirx.max),
            (tirx.Min, tirx.min),
            (tirx.Mul, lambda x, y: x * y),
        ):
            if isinstance(step.value, kind):
                return merged(a, b)
        raise Unfit(f"{step.name} is no sum, product, maximum or minimum")


def _by_reciprocal(value: Expr) -> Expr:
    """Divisions by a number of the row (a load whose indices are constant) as products: one
    division a row is left.
    """

    def times(node: Any) -> Expr:
        by = node.b
        if str(node.ty.dtype) != "float32" or not is_load(by) or any(map(_variables, by.indices)):
            return node
        return node.a * (tirx.const(1.0, "float32") / by)

    return tvm_ffi.structural_map(value, (tirx.Div, times))


def _variables(index: Expr) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(index, (tirx.Var, found.append))
    return found
