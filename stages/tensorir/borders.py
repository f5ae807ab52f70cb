"""Where a window lies within its input: there no zero padding is tested for, and nothing is copied.

Source: loop partitioning (`tirx.transform.LoopPartition`), done on the tests of the padding itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..compat import tvm
from .kernel import (
    GUARD,
    Axis,
    Expr,
    Kernel,
    Step,
    Unfit,
    as_int,
    depends_on,
    is_load,
    key,
    loads,
    substitute,
)
from .loops import dtype_of

tirx = tvm.tirx


@dataclass(frozen=True)
class Borders:
    """The padded input of a reduction, and the iterations that read none of its padding.

    inside:  axis → (first, one past the last): ints, or expressions over symbolic sizes; the last
             may be before the first
    element: value of the producer where it is no padding, over its axes
    """

    producer: Step
    element: Expr
    inside: Mapping[int, tuple[Any, Any]] = field(default_factory=dict[int, tuple[Any, Any]])

    def read(self, kernel: Kernel, held: Mapping[int, Any], indices: tuple[Expr, ...]) -> Expr:
        """An element that is known to be no padding."""
        axes = self.producer.axes
        at = {key(axis.var): index for axis, index in zip(axes, indices, strict=True)}
        return kernel.inline(substitute(self.element, at), held)


def borders(kernel: Kernel, anchor: Step) -> Borders | None:
    """The borders of a reduction over a window; None when it reads no padded input, or one whose
    tests are not understood.
    """
    for load in loads(anchor.value):
        producer = kernel.producers.get(key(load.source))
        if producer is None or producer is anchor or producer.reduce or not producer.is_identity:
            continue
        value = producer.value
        if not isinstance(value, tvm.ir.Call) or getattr(value.op, "name", "") != GUARD:
            continue
        at = {key(axis.var): i for axis, i in zip(producer.axes, load.indices, strict=True)}
        inside: dict[int, tuple[Any, Any]] = {}
        try:
            for test in _conjuncts(value.args[0]):
                _restrict(inside, _margin(substitute(test, at)), anchor)
        except Unfit:
            return None
        return Borders(producer, value.args[1], inside)
    return None


def interior(producer: Step) -> tuple[Borders, Expr] | None:
    """Which elements of a step are no padding (`inside` has axes of the step), and what padding is;
    None when it does not pad.
    """
    value = producer.value
    if not isinstance(value, tvm.ir.Call) or getattr(value.op, "name", "") != GUARD:
        return None
    inside: dict[int, tuple[Any, Any]] = {}
    for test in _conjuncts(value.args[0]):
        _restrict(inside, _margin(test), producer)
    return Borders(producer, value.args[1], inside), value.args[2]


def zero_padded(producer: Step) -> tuple[Any, list[int]] | None:
    """What a step of zero padding loads, and how much lies before it along each axis; None when
    the step is something else.
    """
    value = producer.value
    if not isinstance(value, tvm.ir.Call) or getattr(value.op, "name", "") != GUARD:
        return None
    tests, element, zero = value.args
    if not is_load(element) or not isinstance(zero, tirx.FloatImm) or float(zero.value) != 0.0:
        return None
    equal = tvm.sym.Analyzer().can_prove_equal
    sizes = element.source.ty.shape
    before: list[int] = []
    allowed: list[Any] = []
    for index, axis, size in zip(element.indices, producer.axes, sizes, strict=True):
        width = as_int(tvm.sym.Analyzer().simplify(axis.var - index))
        if not isinstance(width, int):
            return None
        before.append(width)
        allowed += [index, size - 1 - index]
    try:
        margins = [_margin(test) for test in _conjuncts(tests)]
    except Unfit:
        return None
    known = all(any(equal(margin, one) for one in allowed) for margin in margins)
    return (element, before) if known else None


def _conjuncts(test: Expr) -> list[Expr]:
    if isinstance(test, tirx.And):
        return [*_conjuncts(test.a), *_conjuncts(test.b)]
    return [test]


def _margin(test: Expr) -> Expr:
    """m with: `test` holds exactly when m >= 0."""
    match test:
        case tirx.GE():
            return test.a - test.b
        case tirx.LE():
            return test.b - test.a
        case tirx.GT():
            return test.a - test.b - 1
        case tirx.LT():
            return test.b - test.a - 1
    raise Unfit("a test of padding that is no comparison")


def _restrict(inside: dict[int, tuple[Any, Any]], margin: Expr, anchor: Step) -> None:
    """Takes from the range of the axis that `margin` depends on what may make it negative."""
    taps = [axis for axis in anchor.reduce if depends_on(margin, axis)]
    found = [axis for axis in anchor.axes if depends_on(margin, axis)]
    if len(found) != 1:
        raise Unfit("padding that depends on several axes")
    (axis,) = found
    slope, worst = _slope(margin, axis), margin
    for tap in taps:
        if tap.static is None:
            raise Unfit("a window of symbolic size")
        tap_at = 0 if _slope(margin, tap) >= 0 else tap.static - 1
        worst = substitute(worst, {key(tap.var): tirx.const(tap_at, dtype_of(tap))})
    rest = substitute(worst, {key(axis.var): tirx.const(0, dtype_of(axis))})
    first, last = inside.get(key(axis.var), (0, axis.extent))
    simplify = tvm.sym.Analyzer().simplify
    if slope > 0:  # slope * x + rest >= 0
        first = most(first, as_int(simplify((slope - 1 - rest) // slope)))
    else:
        last = least(last, as_int(simplify(rest // -slope + 1)))
    inside[key(axis.var)] = (first, last)


def _slope(value: Expr, axis: Axis) -> int:
    """What one more of `axis` adds to `value`. Unfit when that is no constant."""
    dtype = dtype_of(axis)
    at = [substitute(value, {key(axis.var): tirx.const(k, dtype)}) for k in range(3)]
    steps = [as_int(tvm.sym.Analyzer().simplify(b - a)) for a, b in pairwise(at)]
    if not isinstance(steps[0], int) or steps[0] != steps[1] or steps[0] == 0:
        raise Unfit("padding that is not linear")
    return steps[0]


def most(a: Any, b: Any) -> Any:
    """The larger of two sizes, an int when both are static."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(a, b)


def least(a: Any, b: Any) -> Any:
    """The smaller of two sizes, an int when both are static."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def share_inside(found: Borders, anchor: Step) -> float:
    """Which part of the outputs reads no padding; 1 where that depends on symbolic sizes."""
    share = 1.0
    for axis in anchor.axes:
        first, last = found.inside.get(key(axis.var), (0, axis.extent))
        if all(isinstance(size, int) for size in (first, last, axis.extent)):
            share *= max(0, last - first) / max(1, axis.extent)
    return share
