"""Loops for steps on their own: elementwise outputs as vectors over the last axis, reductions
element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from tapml.stage import Target

from ..compat import tvm
from .intrinsics import vectorizable
from .kernel import (
    Axis,
    Expr,
    Kernel,
    Step,
    calls,
    depends_on,
    key,
    loads,
    product,
    same,
    substitute,
)
from .loops import dtype_of, lanes, loop, nest, parallel, seq, store
from .tiling import SYMBOLIC

tirx = tvm.tirx
Held = Mapping[int, Callable[..., Expr]]

PARALLEL_ELEMENTS = 1 << 14  # below it, a parallel launch (1-2 µs) costs more than it brings
INNER_SYMBOLIC = 128  # what a symbolic size counts as in the work of one task
INNER_ELEMENTS = 1 << 12  # of a task at least, so that finding its indices costs nothing


def float_lanes(target: Target) -> int:
    return max(4, target.vector_bits // 32)


def elementwise(kernel: Kernel, step: Step, held: Held, target: Target) -> Any:
    """All of an injective step; the injective ones before it are inlined."""
    own = tuple(axis.var for axis in step.axes)
    value = vectorizable(kernel.inline(step.value, held, step))
    if not step.axes:
        return store(step.buffer, step.indices, value)
    dtype = dtype_of(step.axes[0])

    def at(position: list[Expr]) -> Any:
        env = {key(var): index for var, index in zip(own, position, strict=True)}
        indices = [substitute(index, env) for index in step.indices]
        return store(step.buffer, indices, vectorizable(kernel.value(step, env, held)))

    extents = [axis.extent for axis in step.axes]
    heavy = 4 if len(calls(value)) > 0 else 1
    work = prod(axis.static or SYMBOLIC for axis in step.axes) * heavy
    width = float_lanes(target)
    last = step.axes[-1].static
    if (
        step.is_identity
        and all(axis.static is not None for axis in step.axes[1:])
        and _aligned(step, value)
        and (last is None or last % width or last < 4 * width)
    ):
        return _flat(extents, at, width, dtype, serial=work < PARALLEL_ELEMENTS)

    inner = 1  # how many of the innermost axes a task runs by itself; enough tasks must be left
    while (
        inner < len(extents)
        and prod(axis.static or INNER_SYMBOLIC for axis in step.axes[-inner:]) < INNER_ELEMENTS
        and (
            work < PARALLEL_ELEMENTS
            or prod(axis.static or 1 for axis in step.axes[: -inner - 1]) >= 2 * target.cores
        )
    ):
        inner += 1
    outer, rest = step.axes[: len(extents) - inner], step.axes[len(extents) - inner : -1]
    return parallel(
        [axis.extent for axis in outer] or [1],
        lambda first: nest(
            rest,
            lambda middle: vector(
                step.axes[-1], width, lambda x: at([*first[: len(outer)], *middle, x]), dtype
            ),
        ),
        dtype,
        serial=work < PARALLEL_ELEMENTS,
    )


def vector(axis: Axis, width: int, body: Callable[[Expr], Any], dtype: str) -> Any:
    """A loop over a whole axis: vectors of `width`, then the rest one by one."""
    size = axis.static
    if size is None:
        full = axis.extent // width
        main = loop(
            "vector",
            full,
            lambda v: lanes(width, lambda x: body(v * width + x), dtype),
            dtype=dtype,
        )
        return seq(
            [
                main,
                loop(
                    "rest",
                    axis.extent - full * width,
                    lambda x: body(full * width + x),
                    dtype=dtype,
                ),
            ]
        )
    if size in (2, 4, 8, 16):
        return lanes(size, body, dtype)
    full, tail = divmod(size, width)
    parts = []
    if full:
        parts.append(
            loop(
                "vector",
                full,
                lambda v: lanes(width, lambda x: body(v * width + x), dtype),
                dtype=dtype,
            )
        )
    if tail:
        start = tirx.const(full * width, dtype)
        parts.append(loop("rest", tail, lambda x: body(start + x), dtype=dtype))
    return seq(parts)


def reduction(kernel: Kernel, step: Step, held: Held, target: Target) -> Any:
    """A reduction in memory, parallel over its outer axes; its producers are inlined.

    Vectors run over the last spatial axis where the step's loads do; else sums are made one by one.
    """
    dtype = dtype_of((*step.axes, *step.reduce)[0])
    total = prod(axis.static or SYMBOLIC for axis in (*step.axes, *step.reduce))
    across = bool(step.axes) and step.is_identity and runs_along(step, step.axes[-1])
    outer, inner = (step.axes[:-1], step.axes[-1]) if across else (step.axes, None)
    whole = {**held, key(step.buffer): in_memory(step)}

    def over(body: Callable[[list[Expr]], Any]) -> Any:
        return vector(inner, float_lanes(target), lambda x: body([x]), dtype) if inner else body([])

    def element(position: list[Expr]) -> Any:
        def environment(last: list[Expr]) -> dict[int, Expr]:
            return {
                key(axis.var): at for axis, at in zip(step.axes, [*position, *last], strict=True)
            }

        def put(env: Mapping[int, Expr], value: Expr) -> Any:
            return store(step.buffer, [substitute(index, env) for index in step.indices], value)

        def add(taps: list[Expr], last: list[Expr]) -> Any:
            env = environment(last)
            full = {
                **env,
                **{key(axis.var): tap for axis, tap in zip(step.reduce, taps, strict=True)},
            }
            return put(env, vectorizable(kernel.value(step, full, whole)))

        return seq(
            [
                over(lambda last: put(environment(last), step.init)),
                nest(step.reduce, lambda taps: over(lambda last: add(taps, last))),
            ]
        )

    extents = [axis.extent for axis in outer] or [1]
    return parallel(
        extents, lambda p: element(p[: len(outer)]), dtype, serial=total < PARALLEL_ELEMENTS
    )


def runs_along(step: Step, axis: Axis) -> bool:
    """Whether the axis is, in every load that has it, the last index or a term of it."""
    for load in loads(step.value):
        if any(depends_on(index, axis) for index in load.indices[:-1]):
            return False
        if load.indices and depends_on(load.indices[-1], axis):
            index = load.indices[-1]
            moved = substitute(index, {key(axis.var): axis.var + 1})
            if not tvm.sym.Analyzer().can_prove_equal(moved - index, 1):
                return False
    return True


def in_memory(step: Step) -> Callable[..., Expr]:
    """Elements of a step as loads of its buffer, for `held`."""
    return lambda *indices: tirx.BufferLoad(step.buffer, list(indices))


def _aligned(step: Step, value: Expr) -> bool:
    """Whether every load reads the element that is written, of a buffer of the same shape, or no
    axis at all.
    """
    own = [axis.var for axis in step.axes]
    for load in loads(value):
        if len(load.indices) != len(own) or not all(map(same, load.indices, own)):
            return False
        shape = load.source.ty.shape
        if not all(
            tvm.sym.Analyzer().can_prove_equal(a, b)
            for a, b in zip(shape, step.buffer.ty.shape, strict=True)
        ):
            return False
    return True


def _flat(
    extents: list[Any], at: Callable[[list[Expr]], Any], width: int, dtype: str, *, serial: bool
) -> Any:
    """Loops over the elements in memory order, whatever the shape."""

    def element(flat: Expr) -> Any:
        position: list[Expr] = []
        for extent in reversed(extents[1:]):
            position.append(flat % extent)
            flat = flat // extent
        return at([flat, *reversed(position)])

    total = product(extents)
    full = total // width
    parts = []
    if not isinstance(total, int) or full:
        parts.append(
            loop(
                "vector",
                full,
                lambda v: lanes(width, lambda x: element(v * width + x), dtype),
                tirx.ForKind.SERIAL if serial else tirx.ForKind.PARALLEL,
                dtype,
            )
        )
    if not isinstance(total, int) or total % width:
        rest = total - full * width
        first = full * width if not isinstance(total, int) else tirx.const(full * width, dtype)
        parts.append(loop("rest", rest, lambda x: element(first + x), dtype=dtype))
    return seq(parts)
