"""Resize and Upsample: TVM's operator where it does what ONNX says, else a matrix for each axis.

Interpolation along an axis is linear: its matrix is what ONNX's own reference makes of the identity
matrix. TVM's operator takes sizes only, and computes the scale from them; ONNX keeps the scale that
the model gives, which differs where scale times size is no integer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from ...compat import tvm

rx, tirx = tvm.relax, tvm.tirx
MAX_MATRIX = 1 << 20  # elements
_PLAIN = {"asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"}


def resize(bb: Any, inputs: Any, attrs: Mapping[str, Any], opset: int) -> Any:
    """The converter of Resize; raises ValueError for what is neither static nor plain."""
    x = inputs[0]
    options = _options(attrs)
    if opset < 11:  # the scales are the second input
        options |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        scales, sizes = inputs[1], None
    else:
        scales, sizes = ([*inputs, None, None, None])[2:4]
    if options["coordinate_transformation_mode"] == "tf_crop_and_resize":
        raise ValueError("coordinate_transformation_mode tf_crop_and_resize is not supported")
    rank = len(x.ty.shape)
    axes = [axis % rank for axis in options.pop("axes", range(rank))]
    scale = dict(zip(axes, _values(scales), strict=False)) if _given(scales) else {}
    size = dict(zip(axes, _values(sizes), strict=False)) if not scale and _given(sizes) else {}
    if not scale and not size:
        raise ValueError("neither its scales nor its sizes are known")
    if size and options["keep_aspect_ratio_policy"] != "stretch":
        scale, size = _kept_ratio(x, size, options["keep_aspect_ratio_policy"]), {}
    changed = {axis: one for axis, one in scale.items() if one != 1} or {
        axis: one for axis, one in size.items() if not _equal(x.ty.shape[axis], one)
    }
    if not changed:
        return x
    if _is_plain(x, changed, bool(size), options):
        return _stock(x, changed, bool(size), options)
    for axis, one in changed.items():
        x = _along(bb, x, axis, one, bool(size), options)
    return x


def upsample(bb: Any, inputs: Any, attrs: Mapping[str, Any], _opset: int) -> Any:
    """The converter of Upsample (before opset 10), whose scales are an input or an attribute."""
    scales = inputs[1] if len(inputs) > 1 else rx.const(np.array(attrs["scales"], np.float32))
    return resize(bb, [inputs[0], scales], attrs, 10)


def _options(attrs: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        "coordinate_transformation_mode": "half_pixel",
        "mode": "nearest",
        "nearest_mode": "round_prefer_floor",
        "keep_aspect_ratio_policy": "stretch",
        "cubic_coeff_a": -0.75,
        "exclude_outside": 0,
        "antialias": 0,
    }
    given = {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in attrs.items()
        if name in defaults or name == "axes"
    }
    return defaults | given


def _given(operand: Any) -> bool:
    if operand is None:
        return False
    if isinstance(operand, rx.ShapeExpr):
        return True
    if not isinstance(operand, tvm.ir.GenericConst):
        raise ValueError("its sizes are computed from data")
    return operand.value.numpy().size > 0


def _values(operand: Any) -> list[Any]:
    if isinstance(operand, rx.ShapeExpr):
        return list(operand.values)
    return operand.value.numpy().tolist()


def static_size(dim: Any) -> int | None:
    """A size as a number; None for one that is not known, or symbolic."""
    return int(dim) if isinstance(dim, int | tirx.IntImm) else None


def _equal(dim: Any, size: Any) -> bool:
    return bool(tvm.sym.Analyzer().can_prove_equal(dim, size))


def _kept_ratio(x: Any, size: Mapping[int, Any], policy: str) -> dict[int, Any]:
    """Scales that keep the ratio of the axes, as ONNX's text has it."""
    ratios = {}
    for axis, one in size.items():
        dim, wanted = static_size(x.ty.shape[axis]), static_size(one)
        if dim is None or wanted is None:
            raise ValueError("keep_aspect_ratio_policy needs fixed sizes")
        ratios[axis] = wanted / dim
    scale = min(ratios.values()) if policy == "not_larger" else max(ratios.values())
    if any(not (scale * int(x.ty.shape[axis])).is_integer() for axis in size):
        raise ValueError("keep_aspect_ratio_policy to sizes that are not whole is not supported")
    return dict.fromkeys(size, scale)


def _output(dim: Any, change: Any, is_size: bool) -> Any:
    """The size that an axis gets."""
    if is_size:
        return change
    if (static := static_size(dim)) is not None:
        return int(np.floor(np.float32(static) * np.float32(change)))
    if change != int(change):
        raise ValueError(f"a scale of {change} of a symbolic size")
    return dim * int(change)


def _is_plain(x: Any, changed: Mapping[int, Any], is_size: bool, options: dict[str, Any]) -> bool:
    """Whether TVM's operator does the same."""
    rank = len(x.ty.shape)
    mode = options["coordinate_transformation_mode"]
    if rank != 4 or min(changed) < 2 or mode not in _PLAIN:
        return False
    if options["antialias"] or options["exclude_outside"] or options["mode"] == "cubic":
        return False
    for axis, change in changed.items():
        dim = static_size(x.ty.shape[axis])
        if dim is None:
            continue
        exact = is_size or float(np.float32(dim) * np.float32(change)).is_integer()
        one = static_size(_output(dim, change, is_size)) == 1  # align_corners divides by size - 1
        if not exact or (one and mode in ("align_corners", "pytorch_half_pixel")):
            return False
    return True


def _stock(x: Any, changed: Mapping[int, Any], is_size: bool, options: dict[str, Any]) -> Any:
    sizes = [
        _output(x.ty.shape[axis], changed[axis], is_size) if axis in changed else x.ty.shape[axis]
        for axis in (2, 3)
    ]
    return rx.op.image.resize2d(
        x,
        size=rx.ShapeExpr(sizes),
        roi=[0.0] * 4,
        layout="NCHW",
        method="nearest_neighbor" if options["mode"] == "nearest" else options["mode"],
        coordinate_transformation_mode=options["coordinate_transformation_mode"],
        rounding_method=options["nearest_mode"],
    )


def _along(bb: Any, x: Any, axis: int, change: Any, is_size: bool, options: dict[str, Any]) -> Any:
    """`x` resized along one axis by a matrix."""
    dim = static_size(x.ty.shape[axis])
    size = static_size(change) if is_size else None
    if dim is None or (is_size and size is None):
        raise ValueError(f"this mode needs a fixed size; axis {axis} has {x.ty.shape[axis]}")
    fraction = not is_size and not float(np.float32(dim) * np.float32(change)).is_integer()
    if fraction and options["coordinate_transformation_mode"] == "align_corners":
        raise ValueError("align_corners to a size that is not whole: ONNX and onnxruntime differ")
    matrix = _matrix(dim, size if size is not None else float(change), options)
    if not str(x.ty.dtype).startswith("float"):
        raise ValueError(f"this mode is not supported for {x.ty.dtype}")
    if options["mode"] == "nearest":
        return bb.emit(rx.op.take(x, rx.const(matrix.argmax(0).astype(np.int64)), axis))
    rank = len(x.ty.shape)
    weight = rx.const(matrix.astype(str(x.ty.dtype)))
    order = [one for one in range(rank) if one != axis] + [axis]
    back = [order.index(one) for one in range(rank)]
    if axis == rank - 1:
        return bb.emit(rx.op.matmul(x, weight))
    moved = bb.emit(rx.op.permute_dims(x, order))
    return bb.emit(rx.op.permute_dims(bb.emit(rx.op.matmul(moved, weight)), back))


def _matrix(dim: int, change: float, options: Mapping[str, Any]) -> np.ndarray:
    """float32[dim, size]: how each new element is made of the old ones."""
    if dim * (change if isinstance(change, int) else dim * change) > MAX_MATRIX:
        raise ValueError("this mode is supported for small sizes only")
    names = {True: ["x", "", "", "sizes"], False: ["x", "", "scales"]}[isinstance(change, int)]
    kind = TensorProto.INT64 if isinstance(change, int) else TensorProto.FLOAT
    how = {k: v for k, v in options.items() if k != "keep_aspect_ratio_policy"}
    node = helper.make_node("Resize", names, ["y"], axes=[1], **how)
    graph = helper.make_graph(
        [node],
        "axis",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [dim, dim]),
            helper.make_tensor_value_info(names[-1], kind, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    given = {"x": np.eye(dim, dtype=np.float32), names[-1]: np.array([change])}
    given[names[-1]] = given[names[-1]].astype(helper.tensor_dtype_to_np_dtype(kind))
    (result,) = ReferenceEvaluator(model).run(None, given)
    return np.asarray(result, np.float32)
