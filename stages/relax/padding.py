"""Zero padding before a convolution becomes the convolution's own."""

from __future__ import annotations

from typing import Any

from ..dataflow import Writer, op_name, rewrite, rx, scalar_value

SPATIAL = {"relax.nn.conv1d": ("NCW", 2), "relax.nn.conv2d": ("NCHW", 2)}  # layout, first axis


def fold_padding(mod: Any) -> Any:
    """`mod` whose convolutions pad their own input, where `nn.pad` put zeros around the pixels.

    Exporters write TensorFlow's "same" padding, which is not symmetric, as an operator of its own:
    a copy of the whole activation.
    """

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        layout, first = SPATIAL.get(op_name(value), ("", 0))
        if not layout or value.attrs.data_layout != layout:
            return None
        pad = writer.definition(value.args[0], "relax.nn.pad")
        if pad is None or not _zeros(pad):
            return None
        widths = [int(width) for width in pad.attrs.pad_width]
        before, after = widths[0::2], widths[1::2]
        if any(before[:first]) or any(after[:first]) or min(widths) < 0:
            return None
        own = [int(width) for width in value.attrs.padding]
        padding = [a + b for a, b in zip(own, before[first:] + after[first:], strict=True)]
        make = getattr(rx.op.nn, op_name(value).removeprefix("relax.nn."))
        attrs = value.attrs
        return make(
            pad.args[0],
            value.args[1],
            strides=attrs.strides,
            padding=padding,
            dilation=attrs.dilation,
            groups=int(attrs.groups),
            data_layout=attrs.data_layout,
            kernel_layout=attrs.kernel_layout,
            out_layout=attrs.out_layout,
            out_dtype=attrs.out_dtype,
        )

    return rewrite(mod, visit)


def _zeros(pad: Any) -> bool:
    value = scalar_value(pad.args[1]) if len(pad.args) > 1 else pad.attrs.pad_value
    return str(pad.attrs.pad_mode) == "constant" and value is not None and float(value) == 0.0
