"""Float32 functions as arithmetic that vectorises: LLVM calls libm once a lane for `exp`, `tanh`
and `erf`, and TVM tests for NaN lane by lane.

All keep NaN, and differ from float64 by less than 3e-7 (relative for `exp`, absolute for the
others). Source: Cephes `expf`; the rational forms of Eigen for `tanh` and `erf`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm_ffi

from ..compat import tvm
from .kernel import has_guard, key

tirx = tvm.tirx
Expr = Any

_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_TANH = (
    (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)
_ERF = (
    (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ),
    (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ),
)


def vectorizable(value: Expr) -> Expr:
    """`value` with every call that would run lane by lane replaced. Other dtypes than float32 are
    left alone.
    """
    value = tvm_ffi.structural_map(value, (tirx.Cast, _rounded))
    return _flat(tvm_ffi.structural_map(value, (tvm.ir.Call, _replace)))


def _rounded(cast: Any) -> Expr:
    """A clipped float as an integer, the clip by `min` and `max`: as an integer NaN is no number.

    A clip that keeps NaN is two selections, and TVM's simplifier takes time exponential in how many
    of them follow each other, as in a chain of quantised operators.
    """
    low = cast.value
    if not cast.ty.dtype.startswith(("int", "uint")) or not isinstance(low, tirx.Select):
        return cast
    high, least = low.false_value, low.true_value
    if not isinstance(high, tirx.Select):
        return cast
    most, x = high.true_value, high.false_value
    clip = tirx.Select(most < x, most, x)
    equal = tvm_ffi.structural_equal
    if not equal(high, clip) or not equal(low, tirx.Select(clip < least, least, clip)):
        return cast
    return tirx.Cast(cast.ty.dtype, tirx.max(tirx.min(x, most), least))


def _flat(value: Expr) -> Expr:
    """`value` with its bindings one after the other, before all else; left alone under a guard.

    TVM's vectoriser visits the operands of a product twice, and takes what is bound inside a
    binding for another value the second time.
    """
    found: dict[int, tuple[Any, Expr]] = {}

    def take(let: Any) -> Expr:
        found[key(let.var)] = (let.var, let.value)
        return let.body

    if has_guard(value):
        return value
    body = tvm_ffi.structural_map(value, (tirx.Let, take))
    placed: list[tuple[Any, Expr]] = []
    while found:
        ready = [one for one, (_, bound) in found.items() if not _variables(bound) & found.keys()]
        placed += [found.pop(one) for one in ready]
    for var, bound in reversed(placed):
        body = tirx.Let(var, bound, body)
    return body


def _variables(value: Expr) -> set[int]:
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (tirx.Var, found.append))
    return {key(var) for var in found}


def _replace(call: Any) -> Expr:
    name = getattr(call.op, "name", "")
    if name not in _FORMS or str(call.args[0].ty.dtype) != "float32":
        return call
    return _FORMS[name](*call.args)


def exp(x: Expr) -> Expr:
    """e**x; 0 below -86.6, inf above 88.7."""

    def value(x: Expr) -> Expr:
        magic = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, left in the low bits
        # the round trip over int32 keeps the simplifier from folding (a + c) - c
        rounded = tirx.reinterpret(
            "float32", tirx.reinterpret("int32", x * _f(1.44269504088896341) + _f(magic))
        )
        return _let(rounded, lambda z: scaled(x, z, z - _f(magic)))

    def scaled(x: Expr, z: Expr, n: Expr) -> Expr:
        def polynomial(r: Expr) -> Expr:
            return _horner(r, _EXP) * r * r + r + _f(1.0)

        reduced = x - n * _f(0.693359375) + n * _f(2.12194440e-4)
        half = tirx.reinterpret(
            "float32", (tirx.reinterpret("int32", z) << 23) + 0x3F000000
        )  # 2**(n-1)
        power = _let(reduced, lambda r: _let(polynomial(r), lambda p: (p + p) * half))
        power = tirx.Select(x < _f(-86.6), _f(0.0), power)
        return tirx.Select(x > _f(88.7228), tirx.infinity("float32"), power)

    return _let(x, value)


def tanh(x: Expr) -> Expr:
    return _let(_clamp(x, 7.90531110763549805), lambda t: _rational(t, _TANH))


def erf(x: Expr) -> Expr:
    return _let(_clamp(x, 4.0), lambda t: _rational(t, _ERF))


def sigmoid(x: Expr) -> Expr:
    return _f(1.0) / (_f(1.0) + exp(-x))


def rsqrt(x: Expr) -> Expr:
    return _f(1.0) / tirx.sqrt(x)


def power(x: Expr, exponent: Expr) -> Expr:
    """x**2, x**3, x**0.5 and x**-0.5 as arithmetic; other powers stay calls."""
    known = float(exponent) if isinstance(exponent, tirx.FloatImm) else None
    if known == 2.0:
        return _let(x, lambda t: t * t)
    if known == 3.0:
        return _let(x, lambda t: t * t * t)
    if known == 0.5:
        return _let(x, _root)
    if known == -0.5:
        return _let(x, lambda t: _f(1.0) / _root(t))
    return tirx.pow(x, exponent)


def _root(x: Expr) -> Expr:
    """x**0.5, which unlike sqrt is +0 of -0 and inf of -inf."""
    root = tirx.Select(x == _f(0.0), _f(0.0), tirx.sqrt(x))
    return tirx.Select(x == -tirx.infinity("float32"), tirx.infinity("float32"), root)


def isnan(x: Expr) -> Expr:
    """By the bits: TVM's simplifier takes x != x for false."""
    return (tirx.reinterpret("int32", x) & 0x7FFFFFFF) > 0x7F800000


_FORMS: dict[str, Callable[..., Expr]] = {
    "tirx.exp": exp,
    "tirx.tanh": tanh,
    "tirx.erf": erf,
    "tirx.sigmoid": sigmoid,
    "tirx.rsqrt": rsqrt,
    "tirx.pow": power,
    "tirx.isnan": isnan,
}


def _let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    if isinstance(value, (tirx.Var, tirx.FloatImm)):
        return body(value)
    var = tirx.Var("t", value.ty.dtype)
    return tirx.Let(var, value, body(var))


def _f(value: float) -> Expr:
    return tirx.const(value, "float32")


def _clamp(x: Expr, bound: float) -> Expr:
    """x within ±bound; NaN stays NaN (`tirx.max` would turn it into a number)."""

    def value(x: Expr) -> Expr:
        return tirx.Select(x < _f(-bound), _f(-bound), tirx.Select(x > _f(bound), _f(bound), x))

    return _let(x, value)


def _rational(x: Expr, coefficients: tuple[Sequence[float], Sequence[float]]) -> Expr:
    """x * p(x**2) / q(x**2)."""
    above, below = coefficients
    return _let(x * x, lambda s: x * _horner(s, above) / _horner(s, below))


def _horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    result: Expr = _f(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _f(coefficient)
    return result
