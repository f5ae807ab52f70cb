"""Weights that stay the integers of a GGUF file, their scales and minima beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tapml.formats.gguf import INTEGERS, Header
from tapml.stage import Table

from ...compat import tvm
from ...program import TensorSpec, minima_name, scales_name
from ...quantization import Scheme, dequantize, integers_of
from ..source import Imported

rx = tvm.relax

KEPT = {  # type → how it stores the rows of a matrix
    kind: Scheme(bits, 32, 1, minima, given=True) for kind, (bits, minima) in INTEGERS.items()
}


@dataclass(frozen=True)
class Blocks:
    """A matrix as integers: what `integers_of` finds has these scales and minima (float16)."""

    kind: str
    how: Scheme
    scales: np.ndarray
    minima: np.ndarray | None = None


def blocks_of(
    weight: np.ndarray, kind: str, scales: np.ndarray, minima: np.ndarray | None
) -> Blocks | None:
    """The blocks of a dequantised matrix, or None where it is not what they stand for.

    In: scales and minima as whoever read the matrix has put them in order with it: its rows may be
        permuted, or it may be transposed
    """
    how, groups = KEPT[kind], list(weight.shape)
    groups[1] //= how.group
    if list(scales.shape) != groups:
        how = replace(how, axis=0)
        groups = [weight.shape[0] // how.group, weight.shape[1]]
    if list(scales.shape) != groups:
        return None
    integers = integers_of(weight, scales, minima, how)
    if not np.array_equal(dequantize(integers, scales, how, minima), weight):
        return None
    half = None if minima is None else minima.astype(np.float16)
    return Blocks(kind, how, scales.astype(np.float16), half)


def keep(made: Imported, blocks: Mapping[str, Blocks]) -> Imported:
    """The import whose program says which of its weights are integers, and has their scales."""
    io, func = made.program.io, made.program.mod["main"]
    kept = {spec.name: blocks[spec.name] for spec in io.params if spec.name in blocks}
    arrays: dict[str, np.ndarray] = {}
    for name, one in kept.items():
        arrays[scales_name(name)] = one.scales
        if one.minima is not None:
            arrays[minima_name(name)] = one.minima
    specs = [TensorSpec(name, array.shape, str(array.dtype)) for name, array in arrays.items()]
    params = [rx.Var(_variable(spec.name), rx.TensorType(spec.shape, spec.dtype)) for spec in specs]
    mod = made.program.mod.clone()
    mod["main"] = rx.Function(
        [*func.params, *params], func.body, func.ret_ty, func.is_pure, func.attrs
    )
    io = replace(
        io,
        params=(*io.params, *specs),
        blocks={name: one.how for name, one in kept.items()},
    )
    program = replace(made.program, mod=mod, io=io)
    return replace(made, program=program, weights={**made.weights, **arrays})


def _variable(name: str) -> str:
    return name.replace(".", "_")


def table(header: Header, blocks: Iterable[Blocks]) -> Table:
    """How many tensors of each type stay as they are."""
    kept = Counter(one.kind for one in {id(one): one for one in blocks}.values())
    types = Counter(one.dtype for one in header.tensors.values())
    rows = tuple((kind, count, kept[kind], count - kept[kind]) for kind, count in types.items())
    return Table("Tensors of the file", ("type", "tensors", "kept", "as float32"), rows)
