"""A search module: the largest of a window as the largest of its lines' largest.

A window of 13 by 13 elements then costs 26 comparisons instead of 169, for a buffer of lines. That
no loop order brings; whether it pays for a kernel at hand is measured like any other schedule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tapml.stage import Target
from tapml_stages.compat import tvm
from tapml_stages.search_modules import Decisions, Space, Variants
from tapml_stages.tensorir.kernel import Axis, Kernel, Step, depends_on, is_load, read
from tapml_stages.tensorir.rules.fallback import step_by_step

tirx = tvm.tirx


def space(func: Any, target: Target) -> Space | None:
    """Which axis of the window is reduced first; None for what is no pool of maxima."""
    kernel = read(func)
    if kernel is None or (pool := window_of_maxima(kernel)) is None:
        return None

    def build(decisions: Decisions) -> Any | None:
        return step_by_step(separated(kernel, pool, int(decisions["last"])), target)

    return Space(
        knobs={"last": (0, 1)},
        default={},
        build=build,
        legal=lambda decisions: True,
        features=lambda decisions: [
            float(decisions["last"]),
            *(float(a.extent) for a in pool.reduce),
        ],
    )


def window_of_maxima(kernel: Kernel) -> Step | None:
    """The one reduction of a kernel, when it takes maxima over two axes of what it loads."""
    if len(kernel.reductions) != 1:
        return None
    (pool,) = kernel.reductions
    is_maximum = isinstance(pool.value, tirx.Max) and is_load(pool.value.b)
    if not is_maximum or not pool.is_identity or len(pool.reduce) != 2:
        return None
    return pool if all(axis.static for axis in (*pool.axes, *pool.reduce)) else None


def separated(kernel: Kernel, pool: Step, last: int) -> Kernel:
    """The kernel with a step for the lines: it reduces one axis of the window, `pool` the other."""
    load = pool.value.b
    reduced, kept = pool.reduce[1 - last], pool.reduce[last]
    (place,) = (n for n, index in enumerate(load.indices) if depends_on(index, kept))
    index = load.indices[place]
    line = Axis(tirx.Var("line", index.ty.dtype), int(load.source.ty.shape[place]))
    axes = (*pool.axes[:place], line, *pool.axes[place + 1 :])
    buffer = tirx.decl_buffer([axis.extent for axis in axes], str(pool.buffer.ty.dtype), "lines")
    own = tuple(axis.var for axis in axes)
    element = tirx.BufferLoad(
        load.source, [*load.indices[:place], line.var, *load.indices[place + 1 :]]
    )
    value = tirx.Max(tirx.BufferLoad(buffer, own), element)
    lines = Step("lines", buffer, own, axes, (reduced,), pool.init, value)
    whole = tirx.BufferLoad(buffer, [*pool.indices[:place], index, *pool.indices[place + 1 :]])
    rest = replace(pool, reduce=(kept,), value=tirx.Max(pool.value.a, whole))
    steps = [part for step in kernel.steps for part in ((lines, rest) if step is pool else (step,))]
    return replace(kernel, steps=tuple(steps))


MODULE = Variants(space)
