"""Kernels for the rules' tests: PrimFuncs as the pipeline makes them, built and run on outputs full
of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tapml.stage import Device, Target
from tapml_stages.compat import tvm
from tapml_stages.legalize import legalize_operators
from tapml_stages.target import tvm_target
from tapml_stages.tensorir import te_ops
from tapml_stages.tensorir.te_ops import Window
from tapml_stages.work_stealing import PIPELINE

te, tirx, relax = tvm.te, tvm.tirx, tvm.relax

BASELINE = Target(
    kind="llvm",
    mcpu="x86-64-v3",
    cores=2,
    vector_bits=256,
    vector_registers=16,
    device=Device(threads=2),
)


def lower(build: Callable[..., Any], *shapes: Sequence[Any]) -> Any:
    """The one PrimFunc that legalizing and fusing a Relax function of float32 tensors gives."""
    return lower_typed(build, *((shape, "float32") for shape in shapes))


def lower_typed(build: Callable[..., Any], *types: tuple[Sequence[Any], str]) -> Any:
    """The same of tensors of any types."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(*one)) for i, one in enumerate(types)]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(build(builder, *params))
        builder.emit_func_output(out)
    passes = [
        legalize_operators(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    mod = tvm.ir.transform.Sequential(passes)(builder.get())
    (func,) = [f for f in mod.functions.values() if isinstance(f, tirx.PrimFunc)]
    return func


def anchored(builder: Any, function: Callable[..., Any], *args: Any) -> Any:
    """A call of a tensor expression that FuseOps may fuse an epilogue into, as the layout pass
    emits it.
    """
    return builder.emit_te(function, *args, primfunc_attrs={"op_pattern": 4})


def dense(builder: Any, x: Any, w: Any, columns: int) -> Any:
    return anchored(builder, lambda a, b: te_ops.dense(a, b, columns), x, w)


def conv(builder: Any, x: Any, w: Any, window: Window, **options: Any) -> Any:
    return anchored(builder, lambda a, b: te_ops.conv(a, b, window, **options), x, w)


def window(rank: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Window:
    return Window((stride,) * rank, (pad,) * rank, (pad,) * rank, (dilation,) * rank)


def build(func: Any, target: Target = BASELINE) -> Any:
    """A callable of a scheduled kernel."""
    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    return tvm.compile(mod, tvm_target(target), tir_pipeline=PIPELINE)["kernel"]


def run(kernel: Any, inputs: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """The output of a kernel, on one thread and on two, which must be equal; it starts as NaN."""
    call = build(kernel) if isinstance(kernel, tirx.PrimFunc) else kernel
    threads = tvm.get_global_func("runtime.config_threadpool")
    args = [tvm.runtime.tensor(np.array(value, order="C")) for value in inputs]
    outputs = []
    for count in (1, 2):
        threads(1, count)
        out = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
        call(*args, out)
        outputs.append(out.numpy())
    assert np.array_equal(*outputs, equal_nan=True)
    return outputs[0]


def randoms(*shapes: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 3e-6) -> None:
    """Both have the same shape, no NaN, and differ little against the largest expected value."""
    assert found.shape == expected.shape
    assert not np.isnan(found).any()
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-6)


def conv_reference(
    x: np.ndarray,
    w: np.ndarray,
    stride: int = 1,
    pad: int = 0,
    dilation: int = 1,
    depthwise: bool = False,
) -> np.ndarray:
    """Blocked convolution in float64."""
    spatial, taps = x.shape[2:-1], w.shape[1:-1] if depthwise else w.shape[2:-2]
    padded = np.pad(x.astype("float64"), [(0, 0), (0, 0), *[(pad, pad)] * len(taps), (0, 0)])
    out = [
        (s + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for s, k in zip(spatial, taps, strict=True)
    ]
    total: Any = 0.0
    for tap in np.ndindex(*taps):
        part = tuple(
            slice(t * dilation, t * dilation + (o - 1) * stride + 1, stride)
            for t, o in zip(tap, out, strict=True)
        )
        seen = padded[(slice(None), slice(None), *part)]
        if depthwise:
            weight = w[(slice(None), *tap)].astype("float64")
            total = total + seen * weight.reshape(
                1, weight.shape[0], *[1] * len(taps), weight.shape[1]
            )
        else:
            weight = w[(slice(None), slice(None), *tap)].astype("float64")
            total = total + np.einsum("nc...i,ociv->no...v", seen, weight)
    return total


def pack(weight: np.ndarray, panel: int = te_ops.PANEL) -> np.ndarray:
    """[K, N] → [ceil(N/P), K, P]."""
    k, n = weight.shape
    padded = np.zeros((k, -(-n // panel) * panel), "float32")
    padded[:, :n] = weight
    return padded.reshape(k, -1, panel).transpose(1, 0, 2)
