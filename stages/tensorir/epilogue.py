"""What follows a reduction: outputs as functions of one of its elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..compat import tvm
from .kernel import (
    Expr,
    Step,
    Unfit,
    bounded,
    ceil_div,
    element_dtype,
    equal,
    key,
    product,
)
from .tiling import Problem

tirx = tvm.tirx


@dataclass(frozen=True)
class Sink:
    """An output of the kernel as a function of one element of the reduction.

    position(anchor indices) → axis values of the output step; `limit`: lanes of the last block that
    exist, or None; `reads`: the buffer it takes the element from, when that is not the reduction's;
    `place`: position → buffer and indices where it is kept, when that is not the step's buffer.
    """

    step: Step
    position: Callable[[Sequence[Expr]], list[Expr]]
    limit: int | None = None
    reads: Any = None
    place: Callable[[Sequence[Expr]], tuple[Any, list[Expr]]] | None = None


def sinks(problem: Problem) -> tuple[Sink, ...]:
    """How every output follows elementwise from the reduction. `Larger` when one does not."""
    return tuple(sink(problem, step) for step in problem.kernel.outputs)


def sink(problem: Problem, step: Step) -> Sink:
    """How a step follows elementwise from the reduction. `Larger` when it does not."""
    anchor = problem.anchor
    if step is anchor:
        return Sink(step, list)
    if step.reduce or not step.is_identity:
        raise Larger("the output is not elementwise")
    sizes, wanted = [axis.extent for axis in anchor.axes], [axis.extent for axis in step.axes]
    candidates: list[Sink] = []
    if len(sizes) == len(wanted) and all(map(equal, sizes, wanted)):
        candidates.append(Sink(step, list))
    merged = sizes
    if problem.col is not None and anchor.axes[-2] is problem.col and isinstance(wanted[-1], int):
        blocks, count = sizes[-2], sizes[-1]
        if isinstance(blocks, int) and ceil_div(wanted[-1], count) == blocks:
            short = wanted[-1] % count or None
            merged = [*sizes[:-2], wanted[-1]]

            def merge(at: Sequence[Expr]) -> list[Expr]:
                return [*at[:-2], at[-2] * count + at[-1]]

            if len(merged) == len(wanted) and all(map(equal, merged, wanted)):
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
    analyzer = bounded(problem.anchor.axes)
    own = [axis.var for axis in problem.anchor.axes]
    right: list[bool] = []

    def element(*indices: Expr) -> Expr:
        right.append(all(analyzer.can_prove_equal(a, b) for a, b in zip(indices, own, strict=True)))
        return tirx.const(0, element_dtype(problem.anchor.buffer))

    at = dict(
        zip(
            (key(a.var) for a in sink.step.axes),
            map(analyzer.simplify, sink.position(own)),
            strict=True,
        )
    )
    problem.kernel.value(sink.step, at, {key(problem.anchor.buffer): element})
    return bool(right) and all(right)


def _same_product(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return equal(product(a), product(b))


def _reshape(at: Sequence[Expr], sizes: Sequence[Any], wanted: Sequence[Any]) -> list[Expr]:
    flat: Expr = at[0]
    for index, size in zip(at[1:], sizes[1:], strict=True):
        flat = flat * size + index
    result: list[Expr] = []
    for size in reversed(wanted[1:]):
        result.append(flat % size)
        flat = flat // size
    return [flat, *reversed(result)]
