"""A merge sort as a kernel of its own, for rows that are too long to count (`ordering`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..compat import tvm
from .kernel import ceil_div
from .loops import constant, local, loop, parallel, scheduled, seq, store, when

tirx = tvm.tirx
Before = Callable[[Any, Any], Any]  # (a, b) → whether a must come before b

INDEX = "int64"
SYMBOLIC_ROUNDS = 31  # a run is as long as 2**32 elements after two passes of each


def sorter(
    shape: Sequence[Any],
    dtype: str,
    results: Sequence[tuple[bool, str]],
    count: Any,
    before: Before,
) -> Any:
    """PrimFunc (x) → the first `count` of each row of `x` in order, ties by index.

    results: of each output, whether it has indices (else values), and its dtype
    """
    sizes = [
        n if isinstance(n, int) else tirx.Var(f"n{axis}", INDEX) for axis, n in enumerate(shape)
    ]
    *outer, size = sizes
    wanted = [*outer, size if count is None else count]
    x = tirx.decl_buffer(sizes, dtype, "x")
    outs = [tirx.decl_buffer(wanted, kind, "indices" if at else "values") for at, kind in results]

    def row(position: list[Any]) -> Any:
        at = position[: len(outer)]
        order, other = (local(name, (size,), INDEX) for name in ("order", "other"))

        def element(index: Any) -> Any:
            return tirx.BufferLoad(x, [*at, index])

        def put(p: Any) -> Any:
            index = tirx.BufferLoad(order, [p])
            return seq(
                store(out, [*at, p], index.astype(kind) if is_index else element(index))
                for out, (is_index, kind) in zip(outs, results, strict=True)
            )

        return seq(
            [
                tirx.AllocBuffer(order),
                tirx.AllocBuffer(other),
                loop("p", size, lambda p: store(order, [p], p)),
                _merged(order, other, size, lambda a, b: before(element(a), element(b))),
                loop("p", wanted[-1], put),
            ]
        )

    func = tirx.PrimFunc([x, *outs], tirx.Evaluate(0))
    func = func.with_attrs({"op_pattern": 8, "tirx.noalias": True})
    return scheduled(func, parallel(outer or [1], row, INDEX))


def _merged(order: Any, other: Any, size: Any, before: Before) -> Any:
    """`order` sorted: rounds of two passes, there and back, over runs twice as long each."""
    rounds = SYMBOLIC_ROUNDS if not isinstance(size, int) else (size.bit_length() + 1) // 2
    extent = constant(size, INDEX)

    def both(r: Any) -> Any:
        width = tirx.const(1, INDEX) << (2 * r)
        passes = seq(
            [
                _pass(order, other, extent, width, before),
                _pass(other, order, extent, 2 * width, before),
            ]
        )
        return when(width < extent, passes)

    return loop("round", rounds, both)


def _pass(source: Any, target: Any, size: Any, width: Any, before: Before) -> Any:
    """Pairs of sorted runs of `width` in `source` as one each in `target`."""
    left, zero = local("left", (1,), INDEX), tirx.const(0, INDEX)

    def pair(k: Any) -> Any:
        first = 2 * k * width
        middle, last = (tirx.min(first + n * width, size) for n in (1, 2))

        def step(p: Any) -> Any:
            of_left = tirx.BufferLoad(left, [zero])
            of_right = middle + p - (of_left - first)
            # past the end of its run an index is that of the last: it is read, not taken
            a = tirx.BufferLoad(source, [tirx.min(of_left, middle - 1)])
            b = tirx.BufferLoad(source, [tirx.min(of_right, last - 1)])
            right = tirx.any(of_left >= middle, tirx.all(of_right < last, before(b, a)))
            return seq(
                [
                    store(target, [first + p], tirx.Select(right, b, a)),
                    store(left, [zero], of_left + tirx.Select(right, zero, zero + 1)),
                ]
            )

        return seq([store(left, [zero], first), loop("p", last - first, step)])

    return seq([tirx.AllocBuffer(left), loop("pair", ceil_div(size, 2 * width), pair)])
