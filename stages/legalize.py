"""Relax operators as tensor expressions: TVM's LegalizeOps, but that rectifiers, clips, maxima and
minima of floats keep NaN, as torch and ONNX have it (`tirx.max` gives the other operand), and
softplus its precision.

A bound that is known is compared first, so that x86 needs one `maxps` or `minps`: those give the
second operand where one is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi

from .compat import tvm
from .dataflow import scalar_value
from .softplus import softplus

rx, te, tirx, topi = tvm.relax, tvm.te, tvm.tirx, tvm.topi


def legalize_operators() -> Any:
    """The pass."""
    forms = {
        "relax.nn.relu": _keeping_nan("relu", topi.nn.relu),
        "relax.clip": _keeping_nan("tir_clip", topi.clip),
        "relax.maximum": _keeping_nan("maximum", topi.maximum),
        "relax.minimum": _keeping_nan("minimum", topi.minimum),
        "relax.nn.softplus": softplus,
    }
    return rx.transform.LegalizeOps(forms)


def _keeping_nan(name: str, function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def made_of(*args: Any) -> Any:
        plain = function(*args)
        (value,), axes = plain.op.body, [axis.var for axis in plain.op.axis]

        def element(*at: Any) -> Any:
            place = dict(zip(axes, at, strict=True))
            here = tvm_ffi.structural_map(value, (tirx.Var, lambda var: place.get(var, var)))
            return tvm_ffi.structural_map(here, ((tirx.Max, tirx.Min), _compared))

        return te.compute(plain.shape, element, name=plain.op.name)

    def legalized(builder: Any, call: Any) -> Any:
        args = list(map(_number, call.args))
        if not any(isinstance(arg, rx.Var) for arg in args):
            args[0] = call.args[0]
        return builder.call_te(made_of, *args, primfunc_name_hint=name)

    return legalized


def _number(arg: Any) -> Any:
    """A scalar constant as the number itself."""
    number = scalar_value(arg) if getattr(arg.ty, "ndim", None) == 0 else None
    return arg if number is None else tirx.const(number, str(arg.ty.dtype))


def _compared(node: Any) -> Any:
    """A maximum or minimum by comparison."""
    if "float" not in str(node.ty.dtype):
        return node
    beyond = (lambda a, b: a > b) if isinstance(node, tirx.Max) else (lambda a, b: a < b)
    bound, other = (node.b, node.a) if _is_known(node.b) else (node.a, node.b)
    chosen = tirx.Select(beyond(bound, other), bound, other)
    return chosen if _is_known(bound) else tirx.Select(tirx.isnan(bound), bound, chosen)


def _is_known(value: Any) -> bool:
    number = value.value if isinstance(value, tirx.Cast) else value
    return isinstance(number, tirx.FloatImm | tirx.IntImm)
