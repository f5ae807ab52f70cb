"""Products of small integers for the tests of tensorization: unscheduled kernels, and running them
on outputs full of a poison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tapml.stage import Target
from tapml.target import TargetSection, resolve
from tapml_stages.compat import tvm
from tapml_stages.target import tvm_target

te, tirx = tvm.te, tvm.tirx
POISON = -1_987_654_321


def target(mcpu: str) -> Target:
    """The resolved target of a CPU of LLVM's."""
    return resolve(TargetSection(mcpu=mcpu))


def product(
    shape: Sequence[Any],
    dtypes: tuple[str, str] = ("uint8", "int8"),
    out: str = "int32",
    *,
    transposed: tuple[bool, bool] = (False, False),
    batch: int | None = None,
) -> Any:
    """An unscheduled max(X [M, K] times W [K, N] - 3, 0), each perhaps transposed, in a batch."""
    m, k, n = shape
    lead = [] if batch is None else [batch]
    sizes = [(k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n)]
    x, w = (te.placeholder([*lead, *size], d) for size, d in zip(sizes, dtypes, strict=True))
    r = te.reduce_axis((0, k), "r")

    def element(*at: Any) -> Any:
        *b, i, j = at
        left = x(*b, r, i) if transposed[0] else x(*b, i, r)
        right = w(*b, j, r) if transposed[1] else w(*b, r, j)
        return te.sum(left.astype(out) * right.astype(out), axis=r)

    y = te.compute([*lead, m, n], element, "product")
    z = te.compute(y.shape, lambda *at: tirx.max(y(*at) - 3, tirx.const(0, out)), "epilogue")
    return te.create_prim_func([x, w, z])


def run(func: Any, where: Target, arrays: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """What a scheduled kernel gives, equal on one thread and on two."""
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    kernel = tvm.compile(mod, tvm_target(where))["kernel"]
    return call(kernel, arrays, shape, str(func.params[-1].ty.dtype))


def call(kernel: Any, arrays: Sequence[np.ndarray], shape: Sequence[int], dtype: str) -> np.ndarray:
    threads = tvm.get_global_func("runtime.config_threadpool")
    poison = np.nan if dtype.startswith("float") else POISON
    outputs = []
    for count in (1, 2):
        threads(1, count)
        out = tvm.runtime.tensor(np.full(shape, poison, dtype))
        kernel(*(tvm.runtime.tensor(np.array(one, order="C")) for one in arrays), out)
        outputs.append(out.numpy())
    assert np.array_equal(*outputs)
    return outputs[0]


def integers(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Every value of the dtype may be there; the ends, where saturation shows, are frequent."""
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, shape, endpoint=True)
    ends = rng.choice([info.min, info.max], shape)
    return np.where(rng.random(shape) < 0.5, ends, values).astype(dtype)
