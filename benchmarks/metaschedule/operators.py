"""The operators that the papers of TensorIR and MetaSchedule measure, batch 1, as our rooms lower
them, and small programs of their kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tapml.stage import Context, Target
from tapml_stages.compat import tvm
from tapml_stages.program import Io, Program, TensorSpec
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower

rx, op = tvm.relax, tvm.relax.op
Shape = tuple[int, ...]


def _conv(rank: int, **options: Any) -> Callable[..., Any]:
    made = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}[rank]
    return lambda x, w: made(x, w, **options)


# name: shape of x, shape of w (None: no weight), what is computed
OPERATORS: dict[str, tuple[Shape, Shape | None, Callable[..., Any]]] = {
    "C1D": ((1, 64, 256), (128, 64, 3), _conv(1, strides=2, padding=1)),
    "C2D": ((1, 3, 224, 224), (64, 3, 7, 7), _conv(2, strides=2, padding=3)),
    "C3D": ((1, 3, 16, 56, 56), (64, 3, 7, 7, 7), _conv(3, strides=2, padding=3)),
    "DEP": ((1, 32, 112, 112), (32, 1, 3, 3), _conv(2, padding=1, groups=32)),
    "DIL": ((1, 3, 224, 224), (64, 3, 7, 7), _conv(2, strides=2, padding=3, dilation=2)),
    "GMM": ((128, 128), (128, 128), op.matmul),
    "GRP": ((1, 64, 56, 56), (128, 16, 3, 3), _conv(2, strides=2, padding=1, groups=4)),
    "T2D": (
        (1, 512, 4, 4),
        (512, 256, 4, 4),
        lambda x, w: op.nn.conv2d_transpose(x, w, strides=2, padding=1),
    ),
    "1x1": ((1, 144, 28, 28), (32, 144, 1, 1), _conv(2)),
    "DEN": ((32, 768), (768, 3072), op.matmul),
    "BMM": ((12, 128, 64), (12, 64, 128), op.matmul),
    "softmax": ((256, 256), None, lambda x: op.nn.softmax(x, axis=-1)),
    "norm": ((1, 65536), None, lambda x: op.sqrt(op.sum(op.multiply(x, x), axis=[1]))),
    "layernorm": (
        (256, 768),
        None,
        lambda x: op.divide(
            op.subtract(x, op.mean(x, axis=[-1], keepdims=True)),
            op.sqrt(op.variance(x, axis=[-1], keepdims=True)),
        ),
    ),
}
MATRICES = {"BMM"}  # both operands change from call to call


def operator(name: str, target: Target) -> Program:
    """The program of one operator, lowered, its weight packed by the transform function."""
    x, w, compute = OPERATORS[name]
    inputs = {"x": x, **({"w": w} if w is not None and name in MATRICES else {})}
    weights = {"w": w} if w is not None and name not in MATRICES else {}
    return _lowered(inputs, weights, compute, target)


def chain(layers: Sequence[Shape], target: Target) -> Program:
    """A stack of equal or unequal linear layers: shapes of their weights, for 32 rows."""

    def compute(x: Any, *weights: Any) -> Any:
        for weight in weights:
            x = op.nn.relu(op.matmul(x, weight))
        return x

    weights = {f"w{number}": shape for number, shape in enumerate(layers)}
    return _lowered({"x": (32, layers[0][0])}, weights, compute, target)


def pooling(size: int, window: int, target: Target) -> Program:
    """A pool of maxima with a large window, as object detectors have them."""

    def compute(x: Any) -> Any:
        return op.nn.max_pool2d(x, (window, window), padding=window // 2)

    return _lowered({"x": (1, 256, size, size)}, {}, compute, target)


def _lowered(
    inputs: dict[str, Shape],
    weights: dict[str, Shape],
    compute: Callable[..., Any],
    target: Target,
) -> Program:
    builder = rx.BlockBuilder()
    params = [rx.Var(n, rx.TensorType(s, "float32")) for n, s in {**inputs, **weights}.items()]
    with builder.function("main", params, attrs={"num_input": len(inputs)}):
        with builder.dataflow():
            made = compute(*params)
            out = builder.emit_output(made)
        builder.emit_func_output(out)
    mod = builder.get()
    for _, transform in passes():
        mod = transform(mod)
    shape = tuple(int(size) for size in mod["main"].ret_ty.shape)

    def specs(tensors: dict[str, Shape]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name, shape, "float32") for name, shape in tensors.items())

    io = Io(specs(inputs), (TensorSpec("y", shape, "float32"),), specs(weights))
    return lower(Program(mod, io), target)


def context(folder: Path) -> Context:
    """A context whose tuning database is in `folder`."""
    import logging

    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder))
    return Context(work, logging.getLogger("search"), folder / "database")
