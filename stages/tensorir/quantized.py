"""Quantised weights as a kernel reads them: integers and scales in panels, decoded in registers."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..compat import tvm
from ..dataflow import Writer, shape_of
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
    """[N/P, K, P] → [N/P, ceil(K/G)*G/2, P]: a byte holds element r of both halves of a group of G.

    So the two halves of a group are read one after the other, each from a whole vector of bytes.
    """
    depth, half = int(panels.shape[1]), how.group // 2
    groups = ceil_div(depth, how.group)

    def nibble(j: Any, k: Any, p: Any) -> Any:
        value = panels(j, k, p)
        if depth % how.group:
            value = tirx.if_then_else(k < depth, value, tirx.const(0, "int8"))
        return (value.astype("int32") + 8).astype("uint8")

    def byte(j: Any, b: Any, p: Any) -> Any:
        first = b // half * how.group + b % half
        return nibble(j, first, p) | (nibble(j, first + half, p) << tirx.const(4, "uint8"))

    return te.compute((panels.shape[0], groups * half, panels.shape[2]), byte, "nibbles")


def call_dense(writer: Writer, x: Any, packed: Any, scales: Any, columns: int, how: Scheme) -> Any:
    """The product of X [M, K] with packed integers, decoded where they are read."""
    depth = shape_of(x)[1]

    def product(x: Any, packed: Any, scales: Any) -> Any:
        read = _whole if how.bits == 8 else _half

        def decoded(j: Any, k: Any, p: Any) -> Any:
            return read(packed, how, j, k, p).astype("float32") * scales(j, k // how.group, p)

        shape = (packed.shape[0], depth, packed.shape[2])
        return dense(x, te.compute(shape, decoded, "decoded"), columns)

    return writer.call_te(product, x, packed, scales, hint="dense")


def _whole(packed: Any, _how: Scheme, j: Any, k: Any, p: Any) -> Any:
    return packed(j, k, p)


def _half(packed: Any, how: Scheme, j: Any, k: Any, p: Any) -> Any:
    half = how.group // 2
    byte = packed(j, k // how.group * half + k % half, p).astype("int32")
    return ((byte >> (k % how.group // half * 4).astype("int32")) & 15) - 8
