"""Parts of kernels that are written loop by loop, and that no pass looks into: those on states.

A faster kernel of the same meaning finds them by the attribute KERNEL.
"""

from __future__ import annotations

from typing import Any

from .compat import tvm

KERNEL = "tapml.kernel"  # of a PrimFunc: which kernel it is
CELL = "cell"  # an LSTM, GRU or RNN that walks its steps, in loops of vectors
OPAQUE = {"op_pattern": 8}  # no fusion: a state must be read and written by these alone

Size = int | None  # None: a symbolic size, `batch` or `n`


def integer(value: int) -> Any:
    return tvm.tirx.IntImm("int64", value)


def floating(value: float) -> Any:
    return tvm.tirx.FloatImm("float32", value)


def size_of(size: Size, name: str) -> Any:
    return tvm.tirx.Var(name, "int64") if size is None else integer(size)


def buffer(name: str, shape: tuple[Any, ...], dtype: str = "float32") -> Any:
    """A parameter of the function that is being built."""
    from tvm.script.ir_builder import tirx as T

    sizes = [integer(one) if isinstance(one, int) else one for one in shape]
    return T.arg(name, T.buffer(sizes, dtype, layout=None, buffer_name=name))


def grid(*extents: Any) -> Any:
    from tvm.script.ir_builder import tirx as T

    return T.grid(*(integer(one) if isinstance(one, int) else one for one in extents))
