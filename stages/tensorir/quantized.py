"""Quantised weights as a kernel reads them: integers and scales in panels, decoded in registers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..compat import tvm
from ..dataflow import Writer
from ..quantization import Scheme
from .kernel import ceil_div
from .te_ops import dense

te, tirx = tvm.te, tvm.tirx


def pack_integers(writer: Writer, panels: Any, how: Scheme) -> Any:
    """Integers in panels [N/P, K, P], as bytes hold them: [N/P, K, P], or two in a byte."""
    if how.bits == 8:
        return panels
    return writer.emit(writer.call_te(partial(_nibbles, how=how), panels, hint="nibbles"))


def _nibbles(panels: Any, how: Scheme) -> Any:
    """[N/P, K, P] → [N/P, ceil(K/G)*G/2, P]: a byte holds element r of both halves of a group of G,
    counted from the least that there is.

    So the two halves of a group are read one after the other, each from a whole vector of bytes.
    """
    depth, half = int(panels.shape[1]), how.group // 2
    groups = ceil_div(depth, how.group)

    def nibble(j: Any, k: Any, p: Any) -> Any:
        value = panels(j, k, p)
        if depth % how.group:
            value = tirx.if_then_else(k < depth, value, tirx.const(0, "int8"))
        return (value.astype("int32") + _least(how)).astype("uint8")

    def byte(j: Any, b: Any, p: Any) -> Any:
        first = b // half * how.group + b % half
        return nibble(j, first, p) | (nibble(j, first + half, p) << tirx.const(4, "uint8"))

    return te.compute((panels.shape[0], groups * half, panels.shape[2]), byte, "nibbles")


def _least(how: Scheme) -> int:
    """What is added to an integer before it is stored in four bits."""
    return 0 if how.minima else 8


def product(x: Any, packed: Any, *scaling: Any, columns: int, how: Scheme) -> Any:
    """The product of X [M, K] with packed integers, decoded where they are read.

    Where groups are whole, K is summed over in pieces, groups first: what a group has one of is
    then no part of its inner sum (rules/grouped.py).

    In: `scaling`: scales in panels [N/P, ceil(K/G), P], and minima where the scheme has them
    """
    depth, (panels, _, lanes) = int(x.shape[1]), packed.shape
    pieces = [how.group] if how.bits == 8 else [2, how.group // 2]
    cut = [depth] if depth % how.group else [depth // how.group, *pieces]

    def decoded(j: Any, k: Any, *rest: Any) -> Any:
        *inner, p = rest
        place = (k, *inner) if inner else _place(k, how)
        return _decoded(packed, scaling, how, j, place, p)

    return dense(x, te.compute((panels, *cut, lanes), decoded, "decoded"), columns)


def rows(indices: Any, packed: Any, *scaling: Any, shape: Sequence[int], how: Scheme) -> Any:
    """Rows of the weight [N, K] that lies in panels, decoded: [*indices, K]; NaN where there is no
    such row.
    """
    count, depth = shape
    lanes = packed.shape[2]

    def value(*at: Any) -> Any:
        row = indices(*at[:-1])
        there = _decoded(packed, scaling, how, row // lanes, _place(at[-1], how), row % lanes)
        inside = tirx.all(row >= 0, row < count)
        return tirx.if_then_else(inside, there, tirx.const(math.nan, "float32"))

    return te.compute((*indices.shape, depth), value, "rows")


def _place(k: Any, how: Scheme) -> tuple[Any, ...]:
    """An index along K as group and place in it; of four bits the half, and place in that."""
    group, r = k // how.group, k % how.group
    half = how.group // 2
    return (group, r) if how.bits == 8 else (group, r // half, r % half)


def _decoded(
    packed: Any, scaling: Sequence[Any], how: Scheme, j: Any, place: tuple[Any, ...], p: Any
) -> Any:
    """integer * scale + least, the last where integers count from a least one."""
    group, *half, r = place
    if half:
        byte = packed(j, group * (how.group // 2) + r, p).astype("int32")
        # no arithmetic with the half, which TVM would do in the 64 bits of an index
        integer = tirx.Select(half[0] == 0, byte & 15, byte >> 4)
    else:
        integer = packed(j, group * how.group + r, p)
    scale, *least = (one(j, group, p).astype("float32") for one in scaling)
    value = integer.astype("float32") * scale
    if how.bits == 4 and not how.minima:
        least = [scale * tirx.const(-_least(how), "float32")]
    return value + least[0] if least else value


def call_dense(
    writer: Writer, x: Any, packed: Any, scaling: Sequence[Any], columns: int, how: Scheme
) -> Any:
    """The call of `product`."""
    fn = partial(product, columns=columns, how=how)
    return writer.call_te(fn, x, packed, *scaling, hint="dense")


def call_rows(
    writer: Writer,
    indices: Any,
    packed: Any,
    scaling: Sequence[Any],
    shape: Sequence[int],
    how: Scheme,
) -> Any:
    """The call of `rows`."""
    fn = partial(rows, shape=shape, how=how)
    return writer.call_te(fn, indices, packed, *scaling, hint="lookup")
