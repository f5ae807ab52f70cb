"""Whether a kernel computes what it should: run here on random activations, against the dense
product in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tapml.stage import Target

from ..compat import tvm
from ..regions import Epilogue, Region
from ..target import tvm_target

MAX_ERROR = 1e-4  # relative to the largest magnitude; sums of thousands of products stay below 1e-5


def relative_error(
    region: Region,
    epilogue: Epilogue | None,
    kernel: Any,
    args: Sequence[int | np.ndarray],
    weights: Mapping[int, np.ndarray],
    rows: int,
    target: Target,
) -> float:
    """Largest difference from the reference, relative to its largest magnitude; inf where the
    kernel wrote no number.

    In: `args` of the kernel before its output, numbers standing for parameters of the region;
        `weights` by parameter.
    """
    random = np.random.default_rng(0)
    inputs = {
        index: _value(param, weights.get(index), rows, random)
        for index, param in enumerate(region.func.params)
        if index != region.parameter
    }
    matrix = weights[region.parameter].astype(np.float64)
    product = inputs[region.activation] @ (matrix if region.transpose else matrix.T)
    expected = product
    if epilogue is not None:
        given = [
            product.astype(np.float32) if index is None else inputs[index]
            for index in epilogue.inputs.values()
        ]
        expected = _run(epilogue.func, given, product.shape, target)
    actual = _run(
        kernel, [inputs[a] if isinstance(a, int) else a for a in args], product.shape, target
    )
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def _value(
    param: Any, known: np.ndarray | None, rows: int, random: np.random.Generator
) -> np.ndarray:
    if known is not None:
        return known
    shape = [int(n) if isinstance(n, tvm.tirx.IntImm) else rows for n in param.ty.shape.values]
    return random.standard_normal(shape).astype(str(param.ty.dtype))


def _run(
    func: Any, args: Sequence[np.ndarray], shape: tuple[int, ...], target: Target
) -> np.ndarray:
    """Output of a PrimFunc whose last parameter it is; NaN where it wrote nothing."""
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    library = tvm.compile(mod, tvm_target(target))
    output = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    library["main"](*(tvm.runtime.tensor(np.ascontiguousarray(arg)) for arg in args), output)
    return output.numpy()
