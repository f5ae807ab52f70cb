"""GroupNorm over two passes, in float32 at least: TVM's one pass sums the squares beside the
values, which loses digits and is no reduction that a schedule rule reads.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..compat import tvm
from ..dataflow import Writer, op_name, rewrite, rx, shape_of

te, tirx = tvm.te, tvm.tirx


def lower_group_norm(mod: Any, name: str = "main") -> Any:
    """`mod` whose function `name` normalises groups by a kernel over rows."""
    return rewrite(mod, _visit, name)


def _visit(writer: Writer, _var: Any, value: Any) -> Any:
    if op_name(value) != "relax.nn.group_norm" or writer.is_weight(value):
        return None
    x, gamma, beta = value.args
    attrs, sizes = value.attrs, shape_of(x)
    pixels, groups = sizes[2:], int(attrs.num_groups)
    axes = sorted(int(axis) % len(sizes) for axis in attrs.axes)
    if int(attrs.channel_axis) != 1 or axes != list(range(2, len(sizes))):
        return None
    shape = [sizes[0], groups, sizes[1] // groups, prod(pixels)]
    made = writer.call_te(
        lambda a, g, b: _normalised(a, g, b, float(attrs.epsilon)),
        writer.emit(rx.op.reshape(x, shape)),
        writer.emit(rx.op.reshape(gamma, shape[1:3])),
        writer.emit(rx.op.reshape(beta, shape[1:3])),
        hint="group_norm",
        attrs={"op_pattern": 4},
    )
    return rx.op.reshape(writer.emit(made), sizes)


def _normalised(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """X [N, group, channel, pixel], γ and β [group, channel]."""
    batch, groups, channels, pixels = x.shape
    kind = "float64" if str(x.dtype) == "float64" else "float32"
    one = tirx.const(1.0, kind)
    scale = one / (channels * pixels).astype(kind)

    def value(n: Any, g: Any, c: Any, s: Any) -> Any:
        return x(n, g, c, s).astype(kind)

    def over(fn: Any, name: str) -> Any:
        c, s = te.reduce_axis((0, channels), "c"), te.reduce_axis((0, pixels), "s")
        return te.compute(
            (batch, groups), lambda n, g: te.sum(fn(n, g, c, s), axis=[c, s]), name=name
        )

    total = over(value, "total")
    mean = te.compute((batch, groups), lambda n, g: total(n, g) * scale, name="mean")

    def square(n: Any, g: Any, c: Any, s: Any) -> Any:
        return (value(n, g, c, s) - mean(n, g)) * (value(n, g, c, s) - mean(n, g))

    squares = over(square, "squares")
    factor = te.compute(
        (batch, groups),
        lambda n, g: one / tirx.sqrt(squares(n, g) * scale + tirx.const(epsilon, kind)),
        name="factor",
    )

    def normalised(n: Any, g: Any, c: Any, s: Any) -> Any:
        scaled = (value(n, g, c, s) - mean(n, g)) * factor(n, g)
        return (scaled * gamma(g, c).astype(kind) + beta(g, c).astype(kind)).astype(x.dtype)

    return te.compute(x.shape, normalised, name="group_norm")
