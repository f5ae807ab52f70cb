"""BatchNorm of inference: folded into the convolution before it, or a multiply and an add."""

from __future__ import annotations

from typing import Any

from tapml.errors import StageError

from ..dataflow import Writer, op_name, rewrite, rx, shape_of, use_counts

OUTPUT_AXIS = {
    "relax.nn.conv1d": 0,
    "relax.nn.conv2d": 0,
    "relax.nn.conv2d_transpose": 1,
}  # of the kernel, OIHW and IOHW


def fold_batch_norm(mod: Any) -> Any:
    """`mod` without `nn.batch_norm`.

    y = (conv(x, W) + b - mean) * s + beta with s = gamma / sqrt(variance + epsilon) is conv(x, W *
    s) + (b - mean) * s + beta. All of it is written in Relax on the weights, so that it is
    computed once, when they are packed.

    Raises: StageError for one in training mode.
    """
    uses = use_counts(mod["main"])

    def visit(writer: Writer, var: Any, value: Any) -> Any:
        if op_name(value) != "relax.nn.batch_norm":
            return None
        if value.attrs.training:
            raise StageError(
                message=f"{var.name}: a BatchNorm in training mode normalises by its own batch",
                hint="write it with training=False; model.eval() in torch",
            )
        x, gamma, beta, mean, variance = value.args
        axis, rank, emit = int(value.attrs.axis), x.ty.ndim, writer.emit
        deviation = emit(
            rx.op.sqrt(emit(rx.op.add(variance, rx.const(value.attrs.epsilon, variance.ty.dtype))))
        )
        scale = (
            emit(rx.op.divide(gamma, deviation))
            if value.attrs.scale
            else emit(rx.op.divide(_one(gamma), deviation))
        )
        shift = emit(rx.op.negative(emit(rx.op.multiply(mean, scale))))
        if value.attrs.center:
            shift = emit(rx.op.add(beta, shift))

        def per_channel(vector: Any, at: int, ndim: int) -> Any:
            shape = [shape_of(vector)[0] if k == at else 1 for k in range(ndim)]
            return emit(rx.op.reshape(vector, shape))

        conv, bias = _convolution(writer, x, axis, uses)
        if conv is None:
            y = emit(rx.op.multiply(x, per_channel(scale, axis, rank)))
        else:
            kernel = conv.args[1]
            at = OUTPUT_AXIS[op_name(conv)]
            scaled = emit(rx.op.multiply(kernel, per_channel(scale, at, kernel.ty.ndim)))
            y = emit(rx.Call(conv.op, [conv.args[0], scaled], conv.attrs, conv.ty_args))
            if bias is not None:
                flat = emit(
                    rx.op.reshape(
                        bias, [shape_of(scale)[0] if bias.ty.ndim and axis_size(bias) > 1 else 1]
                    )
                )
                shift = emit(rx.op.add(shift, emit(rx.op.multiply(flat, scale))))
        y = emit(rx.op.add(y, per_channel(shift, axis, rank)))
        return rx.Tuple([y, mean, variance])

    return rewrite(mod, visit)


def axis_size(bias: Any) -> int:
    """Number of elements of a per-channel weight."""
    size = 1
    for extent in shape_of(bias):
        size *= extent
    return size


def _one(like: Any) -> Any:
    return rx.const(1.0, like.ty.dtype)


def _convolution(writer: Writer, x: Any, axis: int, uses: Any) -> tuple[Any, Any]:
    """The convolution that only this BatchNorm reads, and the bias added between (or None)."""

    def conv_of(expr: Any) -> Any:
        conv = writer.definition(expr, *OUTPUT_AXIS)
        if conv is None or uses[expr.name] != 1 or axis != 1 or not writer.is_weight(conv.args[1]):
            return None
        if op_name(conv) == "relax.nn.conv2d_transpose" and int(conv.attrs.groups) != 1:
            return None
        data, kernel = str(conv.attrs.data_layout), str(conv.attrs.kernel_layout)
        return conv if data.startswith("NC") and kernel[:2] in ("OI", "IO") else None

    if (conv := conv_of(x)) is not None:
        return conv, None
    add = writer.definition(x, "relax.add")
    if add is not None and uses[x.name] == 1:
        for y, bias in (add.args, reversed(add.args)):
            channels = shape_of(x)[axis]
            if (
                writer.is_weight(bias)
                and (conv := conv_of(y)) is not None
                and _is_per_channel(bias, axis, x.ty.ndim, channels)
            ):
                return conv, bias
    return None, None


def _is_per_channel(bias: Any, axis: int, rank: int, channels: int) -> bool:
    sizes = shape_of(bias)
    sizes = [1] * (rank - len(sizes)) + sizes
    return all(size == 1 or (k == axis and size == channels) for k, size in enumerate(sizes))
