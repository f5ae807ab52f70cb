"""Which operator is converted by what: ours, before TVM's own; and what of TVM's is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...compat import tvm
from . import arithmetic, indexing, network
from .call import Call

op = tvm.relax.op
Converter = Callable[[Call], Any]

_BINARY = {
    "add": arithmetic.binary(op.add, bools=op.logical_or),
    "sub": arithmetic.binary(op.subtract),
    "mul": arithmetic.binary(op.multiply, bools=op.logical_and),
    "div": arithmetic.binary(op.divide),
    "remainder": arithmetic.binary(op.floor_mod),
    "eq": arithmetic.binary(op.equal),
    "ne": arithmetic.binary(op.not_equal),
    "lt": arithmetic.binary(op.less),
    "le": arithmetic.binary(op.less_equal),
    "gt": arithmetic.binary(op.greater),
    "ge": arithmetic.binary(op.greater_equal),
    "bitwise_and": arithmetic.binary(op.bitwise_and, bools=op.logical_and),
    "bitwise_or": arithmetic.binary(op.bitwise_or, bools=op.logical_or),
    "bitwise_xor": arithmetic.binary(op.bitwise_xor, bools=op.logical_xor),
}
_SHIFTS = {"lshift": op.left_shift, "rshift": op.right_shift}
_FLOAT = {
    name: arithmetic.unary(getattr(op, name))
    for name in (
        *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf", "exp", "log"),
        *("rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh"),
    )
}

CONVERTERS: dict[str, Converter] = {
    **{f"{name}.{kind}": one for name, one in _BINARY.items() for kind in ("Tensor", "Scalar")},
    **{f"{name}.default": one for name, one in _FLOAT.items()},
    **{
        f"__{name}__.{kind}": arithmetic.binary(one)
        for name, one in _SHIFTS.items()
        for kind in ("Tensor", "Scalar")
    },
    "_cdist_forward.default": network.distances,
    **{
        name: network.largest(name)
        for name in ("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
    },
    "_log_softmax.default": network.softmax(op.nn.log_softmax),
    "_native_batch_norm_legit.no_stats": network.batch_statistics_norm,
    "_native_batch_norm_legit_no_training.default": network.batch_norm,
    "_softmax.default": network.softmax(op.nn.softmax),
    "_to_copy.default": arithmetic.to_copy,
    "_unsafe_view.default": indexing.reshape,
    "addmm.default": network.add_product("mat1", "mat2"),
    "amax.default": arithmetic.reduction(op.max),
    "amin.default": arithmetic.reduction(op.min),
    "any.default": arithmetic.any_,
    "any.dim": arithmetic.any_,
    "any.dims": arithmetic.any_,
    "arange.default": arithmetic.arange,
    "arange.start": arithmetic.arange,
    "arange.start_step": arithmetic.arange,
    "avg_pool2d.default": network.average_pool,
    "baddbmm.default": network.add_product("batch1", "batch2"),
    "bitwise_not.default": arithmetic.bitwise_not,
    "bmm.default": network.matmul("mat2"),
    "cat.default": indexing.concatenate,
    "clamp.Tensor": arithmetic.clamp,
    "clamp.default": arithmetic.clamp,
    "constant_pad_nd.default": indexing.pad,
    "convolution.default": network.convolution,
    "cumprod.default": arithmetic.scan(op.cumprod),
    "cumsum.default": arithmetic.scan(op.cumsum),
    "div.Tensor_mode": arithmetic.division,
    "div.Scalar_mode": arithmetic.division,
    "elu.default": network.elu,
    "embedding.default": indexing.embedding,
    "empty.memory_format": arithmetic.full(0),
    "empty_like.default": arithmetic.full(0),
    "erfc.default": arithmetic.erfc,
    "exp2.default": arithmetic.exp2,
    "expand.default": indexing.expand,
    "fmax.default": arithmetic.ignoring_nan(op.maximum),
    "fmin.default": arithmetic.ignoring_nan(op.minimum),
    "full.default": arithmetic.full(),
    "full_like.default": arithmetic.full(),
    "gather.default": indexing.gather,
    "getitem": network.getitem,
    "grid_sampler_2d.default": network.grid_sample,
    "hypot.default": arithmetic.hypotenuse,
    "index.Tensor": indexing.index,
    "index_put.default": indexing.index_put,
    "index_select.default": indexing.index_select,
    "isfinite.default": arithmetic.is_finite,
    "isinf.default": arithmetic.is_inf,
    "isnan.default": arithmetic.is_nan,
    "layer_norm.default": network.layer_norm,
    "linear.default": network.linear,
    "logical_and.default": arithmetic.logical(op.logical_and),
    "logical_not.default": arithmetic.logical_not,
    "logical_or.default": arithmetic.logical(op.logical_or),
    "logical_xor.default": arithmetic.logical(op.logical_xor),
    "masked_scatter.default": indexing.masked_scatter,
    "matmul.default": network.matmul("other"),
    "max.dim": arithmetic.extreme(op.max, op.argmax),
    "maximum.default": arithmetic.binary(op.maximum, bools=op.logical_or),
    "mean.default": arithmetic.reduction(op.mean),
    "mean.dim": arithmetic.reduction(op.mean),
    "min.dim": arithmetic.extreme(op.min, op.argmin),
    "minimum.default": arithmetic.binary(op.minimum, bools=op.logical_and),
    "mm.default": network.matmul("mat2"),
    "mv.default": network.matmul("vec"),
    "native_group_norm.default": network.native_group_norm,
    "native_layer_norm.default": network.native_layer_norm,
    "topk.default": network.topk,
    "new_full.default": arithmetic.full(),
    "new_ones.default": arithmetic.full(1),
    "new_zeros.default": arithmetic.full(0),
    "ones.default": arithmetic.full(1),
    "ones_like.default": arithmetic.full(1),
    "pow.Scalar": arithmetic.power,
    "pow.Tensor_Scalar": arithmetic.power,
    "pow.Tensor_Tensor": arithmetic.power,
    "prod.default": arithmetic.reduction(op.prod),
    "prod.dim_int": arithmetic.reduction(op.prod),
    "remainder.Scalar_Tensor": _BINARY["remainder"],
    "repeat.default": indexing.repeat,
    "reshape.default": indexing.reshape,
    "scalar_tensor.default": arithmetic.scalar_tensor,
    "scaled_dot_product_attention.default": network.attention,
    "scatter.reduce": indexing.scatter,
    "scatter.src": indexing.scatter,
    "scatter.value": indexing.scatter,
    "scatter.value_reduce": indexing.scatter,
    "scatter_add.default": indexing.scatter,
    "scatter_reduce.two": indexing.scatter_reduce,
    "select.int": indexing.select,
    "select_scatter.default": indexing.select_scatter,
    "slice.Tensor": indexing.slice_,
    "slice_scatter.default": indexing.slice_scatter,
    "sort.default": indexing.sort,
    "sort.stable": indexing.sort,
    "split.Tensor": indexing.split,
    "split_with_sizes.default": indexing.split,
    "stack.default": indexing.stack,
    "sum.default": arithmetic.reduction(op.sum),
    "sum.dim_IntList": arithmetic.reduction(op.sum),
    "unbind.int": indexing.unbind,
    "unfold.default": indexing.unfold,
    "upsample_bicubic2d.vec": network.resize("cubic"),
    "upsample_bilinear2d.vec": network.resize("linear"),
    "upsample_nearest2d.vec": network.resize("nearest_neighbor"),
    "var.correction": arithmetic.variance,
    "var_mean.correction": arithmetic.variance_and_mean,
    "view.default": indexing.reshape,
    "where.self": arithmetic.where,
    "zeros.default": arithmetic.full(0),
    "zeros_like.default": arithmetic.full(0),
}

DATA_DEPENDENT = (
    "its size depends on data: use a mask or a fixed size, or run this part on the host"
)
_RANDOM = "a library gives the same for the same inputs: take the random numbers as an input"
_COMPLEX = "compute real and imaginary parts apart: there are no complex numbers"
# what to do without them; some TVM would convert, and give something else without saying so
REFUSED: Mapping[str, str] = {
    "_native_batch_norm_legit_functional.default": "it learns while it runs: call .eval() first",
    "_upsample_bilinear2d_aa.default": "resize without antialiasing, or on the host",
    "bernoulli.p": _RANDOM,
    "complex.default": _COMPLEX,
    "exponential.default": _RANDOM,
    "masked_select.default": DATA_DEPENDENT,
    "polar.default": _COMPLEX,
    "randn.default": _RANDOM,
    "randn_like.default": _RANDOM,
    "view_as_complex.default": _COMPLEX,
    "view_as_real.default": _COMPLEX,
}
