"""The weights that a program stores as integers, rounded in place, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..program import QUANTIZED, Program, source_names
from ..quantization import Scheme, dequantize, quantize, scheme, stored_bytes


@dataclass(frozen=True)
class Rounded:
    """A weight: its scheme, its bytes before and after, and what rounding changed.

    error:   root mean square of the change, relative to that of the weight
    largest: largest change, relative to the largest magnitude
    """

    weight: str
    shape: tuple[int, int]
    how: Scheme
    bytes: int
    stored_bytes: int
    error: float
    largest: float

    def cells(self) -> tuple[str | int | float, ...]:
        mib = round(self.stored_bytes / 2**20, 3), round(self.bytes / 2**20, 3)
        shape = " × ".join(map(str, self.shape))
        return (self.weight, shape, self.how.bits, self.how.group, *mib, self.error, self.largest)


def schemes(program: Program) -> dict[str, Scheme]:
    """Source name of each weight that is rounded to integers → how it is stored."""
    names = source_names(program.mod, program.io)
    found = {
        names[str(func.attrs["tapml.weight"])]: scheme(str(func.attrs[QUANTIZED]))
        for _, func in sorted(program.mod.functions.items(), key=lambda one: one[0].name_hint)
        if func.attrs and QUANTIZED in func.attrs
    }
    return {name: how for name, how in found.items() if not how.given}


def round_weights(program: Program, weights: dict[str, np.ndarray]) -> list[Rounded]:
    """Rounds the weights that `program` stores as integers, in place; a row for each."""
    rows = []
    for name, how in schemes(program).items():
        weight = weights[name]
        rounded = dequantize(*quantize(weight, how), how)
        change, scale = rounded - weight, float(np.sqrt(np.mean(np.square(weight))))
        rows.append(
            Rounded(
                name,
                (weight.shape[0], weight.shape[1]),
                how,
                weight.nbytes,
                stored_bytes((weight.shape[0], weight.shape[1]), how),
                float(np.sqrt(np.mean(np.square(change)))) / (scale or 1.0),
                float(np.abs(change).max()) / (float(np.abs(weight).max()) or 1.0),
            )
        )
        weights[name] = rounded
    return rows
