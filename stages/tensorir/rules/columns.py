"""Reductions over other axes than the last: sums over positions, softmax over channels."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tapml.stage import Target

from ...compat import tvm
from ..intrinsics import vectorizable
from ..kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    ceil_div,
    element_dtype,
    is_constant,
    key,
    read,
)
from ..loops import dtype_of, lanes, local, loop, nest, parallel, scheduled, seq, store
from ..nests import PARALLEL_ELEMENTS, float_lanes, runs_along
from ..tiling import SYMBOLIC

tirx = tvm.tirx

VECTORS = 4  # of a task


def columns(func: Any, target: Target) -> Any | None:
    """Every lane reduces a column of its own; what is before a reduction is computed again for
    each that reads it.
    """
    kernel = read(func)
    if kernel is None or not kernel.reductions:
        return None
    return scheduled(func, _Columns(kernel, target).body())


class _Columns:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        first = kernel.reductions[0]
        if not first.axes:
            raise Unfit("one single sum")
        self.kernel, self.target, self.axes = kernel, target, first.axes
        self.dtype = dtype_of(first.axes[0])
        self.lanes: set[int] = set()  # variables that number the columns of a vector
        equal = tvm.sym.Analyzer().can_prove_equal
        for step in kernel.reductions:
            same_sizes = len(step.axes) == len(self.axes) and all(
                equal(a.extent, b.extent) for a, b in zip(step.axes, self.axes, strict=True)
            )
            if not same_sizes or not step.is_identity or not runs_along(step, step.axes[-1]):
                raise Unfit(f"{step.name} does not reduce columns")
        self.own = {key(step.buffer): self._own_axes(step) for step in kernel.outputs}

    def _own_axes(self, step: Step) -> tuple[Axis, ...]:
        """The axes of an output that are those of the reductions."""
        if step.reduce:
            return step.axes
        places: set[tuple[int, ...]] = set()
        reductions = {key(one.buffer) for one in self.kernel.reductions}

        def element(*indices: Expr) -> Expr:
            places.add(tuple(map(key, indices)))
            return tirx.const(0, element_dtype(step.buffer))

        self.kernel.inline(step.value, dict.fromkeys(reductions, element), step)
        if len(places) != 1 or not step.is_identity:
            raise Unfit(f"{step.name} reads reductions at several places")
        (place,) = places
        by_key = {key(axis.var): axis for axis in step.axes}
        found = tuple(by_key[one] for one in place if one in by_key)
        if len(found) != len(self.axes) or found[-1] is not step.axes[-1]:
            raise Unfit(f"{step.name} does not run along the columns")
        return found

    def body(self) -> Any:
        *outer, lane = self.axes
        width = float_lanes(self.target)
        sizes = [a.static or SYMBOLIC for a in self.axes]
        deepest = max(
            prod(a.static or SYMBOLIC for a in step.reduce) for step in self.kernel.reductions
        )
        run = VECTORS * width
        count = lane.extent
        runs = ceil_div(count, run)

        def task(indices: list[Expr]) -> Any:
            *at, index = indices
            start = index * run
            size = run
            if not isinstance(count, int) or count % run:
                size = tirx.min(tirx.const(run, self.dtype), count - start)
            part = Axis(lane.var, size)
            return self._wide(part, width, lambda x, wide: self._column([*at, start + x], wide))

        return parallel(
            [*(axis.extent for axis in outer), runs],
            task,
            self.dtype,
            serial=prod(sizes) * deepest < PARALLEL_ELEMENTS,
        )

    def _wide(self, axis: Axis, width: int, body: Callable[[Expr, int], Any]) -> Any:
        """`body` for vectors of columns, then for those left one by one."""
        full = axis.extent // width
        many = loop("vector", full, lambda v: body(v * width, width), dtype=self.dtype)
        first = full * width
        rest = loop("rest", axis.extent - first, lambda x: body(first + x, 1), dtype=self.dtype)
        return seq([many, rest])

    def _column(self, position: list[Expr], width: int) -> Any:
        """All steps of `width` columns side by side."""
        held: dict[int, Callable[..., Expr]] = {}
        statements: list[Any] = []
        outputs = {key(step.buffer) for step in self.kernel.outputs}
        for step in self.kernel.steps:
            if step.reduce:
                statements += self._reduce(step, position, width, held)
            if key(step.buffer) in outputs:
                statements.append(self._write(step, position, width, held))
        return seq(statements)

    def _env(self, axes: tuple[Axis, ...], position: list[Expr], lane: Expr) -> dict[int, Expr]:
        at = [*position[:-1], position[-1] + lane]
        return {key(axis.var): index for axis, index in zip(axes, at, strict=True)}

    def _reduce(
        self, step: Step, position: list[Expr], width: int, held: dict[int, Callable[..., Expr]]
    ) -> list[Any]:
        acc = local(f"{step.name}_column", (width,), element_dtype(step.buffer))
        before = dict(held)

        def start(x: Expr) -> Any:
            return store(acc, [x], vectorizable(step.init))

        def add(taps: list[Expr], x: Expr) -> Any:
            env = self._env(step.axes, position, x)
            env |= {key(axis.var): tap for axis, tap in zip(step.reduce, taps, strict=True)}
            inside = {**before, key(step.buffer): lambda *_: tirx.BufferLoad(acc, [x])}
            return store(acc, [x], vectorizable(self.kernel.value(step, env, inside)))

        held[key(step.buffer)] = self._element(acc, position)
        return [
            tirx.AllocBuffer(acc),
            self._lanes(width, start),
            nest(step.reduce, lambda taps: self._lanes(width, lambda x: add(taps, x))),
        ]

    def _element(self, acc: Any, position: list[Expr]) -> Callable[..., Expr]:
        """The accumulator's element of the column that is asked for."""
        analyzer = tvm.sym.Analyzer()

        def element(*indices: Expr) -> Expr:
            for index, at in zip(indices[:-1], position[:-1], strict=True):
                if not analyzer.can_prove_equal(index, at):
                    raise Unfit("a reduction is read at another column")
            lane = analyzer.simplify(indices[-1] - position[-1])
            if not is_constant(lane, 0) and key(lane) not in self.lanes:
                raise Unfit("a reduction is read at another column")
            return tirx.BufferLoad(acc, [lane])

        return element

    def _write(
        self, step: Step, position: list[Expr], width: int, held: dict[int, Callable[..., Expr]]
    ) -> Any:
        own = self.own[key(step.buffer)]
        inner = [axis for axis in step.axes if not any(axis is one for one in own)]

        def at(rest: list[Expr], x: Expr) -> Any:
            env = self._env(own, position, x)
            env |= {key(axis.var): index for axis, index in zip(inner, rest, strict=True)}
            indices = [env[key(axis.var)] for axis in step.axes]
            if step.reduce:
                return store(step.buffer, indices, held[key(step.buffer)](*indices))
            return store(step.buffer, indices, vectorizable(self.kernel.value(step, env, held)))

        return nest(inner, lambda rest: self._lanes(width, lambda x: at(rest, x)))

    def _lanes(self, width: int, body: Callable[[Expr], Any]) -> Any:
        def known(x: Expr) -> Any:
            self.lanes.add(key(x))
            return body(x)

        return lanes(width, known, self.dtype)
