"""Sizes written as expressions, as torch.export writes them: checked, and evaluated without sympy.

torch gives such texts to `sympy.sympify`, and guards to `exec`, which run any Python in them. Here
they are parsed, and only what a size or a guard is made of passes.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_MAX_TEXT = 10_000  # characters
_MAX_POWER = 16
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

Number = int | float | bool


def _power(base: Number, power: Number) -> Number:
    return base**power


def _quotient(x: Number, y: Number) -> Number:
    return x / y


def _floor_quotient(x: Number, y: Number) -> Number:
    return x // y


def _ceil_quotient(x: Number, y: Number) -> Number:
    return -(-x // y)


def _remainder(x: Number, y: Number) -> Number:
    return x % y


def _modular(value: Number, divisor: Number, modulus: Number) -> Number:
    return value // divisor % modulus


def _total(*values: Number) -> Number:
    return sum(values)


def _product(*values: Number) -> Number:
    return math.prod(values)


def _same(value: Number) -> Number:
    return value


def _where(condition: Number, x: Number, y: Number) -> Number:
    return x if condition else y


def _all(*values: Number) -> bool:
    return all(values)


def _any(*values: Number) -> bool:
    return any(values)


_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "Add": _total,
    "Mul": _product,
    "Pow": _power,
    "PowByNatural": _power,
    "Integer": _same,
    "Float": float,
    "Rational": _quotient,
    "Max": max,
    "Min": min,
    "Mod": _remainder,
    "PythonMod": _remainder,
    "FloorDiv": _floor_quotient,
    "CleanDiv": _floor_quotient,
    "CeilDiv": _ceil_quotient,
    "ModularIndexing": _modular,
    "IntTrueDiv": _quotient,
    "FloatTrueDiv": _quotient,
    "ToFloat": float,
    "TruncToInt": int,
    "FloorToInt": math.floor,
    "CeilToInt": math.ceil,
    "RoundToInt": round,
    "floor": math.floor,
    "ceiling": math.ceil,
    "Where": _where,
    "Equality": operator.eq,
    "Eq": operator.eq,
    "Unequality": operator.ne,
    "Ne": operator.ne,
    "StrictLessThan": operator.lt,
    "LessThan": operator.le,
    "StrictGreaterThan": operator.gt,
    "GreaterThan": operator.ge,
    "And": _all,
    "Or": _any,
    "Not": operator.not_,
}
_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: _floor_quotient,
    ast.Div: _quotient,
    ast.Mod: _remainder,
    ast.Pow: _power,
}
_POWERS = ("Pow", "PowByNatural")
_GUARD_CALLS = frozenset({"size", "stride", "dim", "storage_offset", "numel", "ndimension"})
_GUARD_NODES = (
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.Compare,
    ast.cmpop,
    ast.UnaryOp,
    ast.unaryop,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.Div,
    ast.Mod,
    ast.Subscript,
    ast.Load,
    ast.IfExp,
)


class UnsafeError(ValueError):
    """A text that is no size and no guard."""


def check(text: str) -> None:
    """Raises UnsafeError when `text` is anything but a size made of symbols and numbers."""
    try:
        _check(_parsed(text))
    except RecursionError as error:
        raise UnsafeError("nested too deep") from error


def size(text: str, sizes: Mapping[str, int]) -> int | None:
    """The value of a checked size; None where it needs a symbol that `sizes` lacks."""
    try:
        return int(_value(_parsed(text), sizes))
    except (KeyError, ArithmeticError, TypeError, ValueError):
        return None


def check_guard(text: str) -> None:
    """Raises UnsafeError when `text` is anything but a condition on the sizes of inputs."""
    for node in ast.walk(_parsed(text)):
        match node:
            case ast.Name(id=name) if name in ("L", "args", *_FUNCTIONS):
                pass
            case ast.Constant(value=bool() | int() | float()):
                pass
            case ast.Constant(value=str(key)) if _is_name(key):
                pass
            case ast.Call(func=ast.Attribute(attr=name), keywords=[]) if name in _GUARD_CALLS:
                pass
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                pass
            case ast.Attribute(attr=name) if name in _GUARD_CALLS:
                pass
            case _ if isinstance(node, _GUARD_NODES):
                pass
            case _:
                raise UnsafeError(f"{type(node).__name__} is no part of a guard")


def symbol(text: str) -> str | None:
    """The name, of a size that is a symbol and nothing else."""
    match _parsed(text):
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return name
        case ast.Name(id=name):
            return name
        case _:
            return None


def _parsed(text: str) -> ast.expr:
    if len(text) > _MAX_TEXT:
        raise UnsafeError(f"{len(text)} characters of one expression")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeError("no expression") from error


def _check(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=bool() | int() | float()):
            pass
        case ast.Name(id=name) if _SYMBOL.fullmatch(name):
            pass
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            _check_power(left, right)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left)
            _check(right)
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            if not _SYMBOL.fullmatch(name):
                raise UnsafeError(f"{name!r} is no symbol")
            _check_flags(node)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))]):
            if not re.fullmatch(r"-?[\d.]{1,40}(e-?\d{1,3})?|inf|-inf", text):
                raise UnsafeError(f"{text!r} is no number")
            _check_flags(node)
        case ast.Call(func=ast.Name(id=name), args=[base, power], keywords=[]) if name in _POWERS:
            _check_power(base, power)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            for one in args:
                _check(one)
        case _:
            raise UnsafeError(f"{type(node).__name__} is no part of a size")


def _check_flags(node: ast.Call) -> None:
    for one in node.keywords:
        if not (
            one.arg and isinstance(one.value, ast.Constant) and type(one.value.value) in (bool, int)
        ):
            raise UnsafeError("a flag that is no constant")


def _check_power(base: ast.expr, power: ast.expr) -> None:
    """A power is a small number, and of no other power: else its value fills any memory."""
    _check(base)
    for node in ast.walk(base):
        if isinstance(node, ast.Pow) or (isinstance(node, ast.Name) and node.id in _POWERS):
            raise UnsafeError("a power of a power")
    while isinstance(power, ast.Call | ast.UnaryOp):
        match power:
            case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[inner]):
                power = inner
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                power = inner
            case _:
                break
    match power:
        case ast.Constant(value=int() | float() as value) if abs(value) <= _MAX_POWER:
            pass
        case _:
            raise UnsafeError("a power that is no small number")


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="true" | "True"):
            return True
        case ast.Name(id="false" | "False"):
            return False
        case ast.Name(id=name):
            return sizes[name]
        case ast.UnaryOp(operand=operand):
            value = _value(operand, sizes)
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return sizes[name]
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(one, sizes) for one in args))
        case _:
            raise TypeError(type(node).__name__)


def _is_name(key: str) -> bool:
    """Whether a key of inputs is a plain name: nothing that closes the text torch puts it in."""
    return re.fullmatch(r"[\w.\- ]{1,200}", key) is not None


def plain(text: str) -> str:
    """The expression as people write it: `2*s0 - 1`."""
    return _plain(_parsed(text))


def _plain(node: ast.expr) -> str:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=name)]):
            return str(name)
        case ast.Call(func=ast.Name(id="Integer"), args=[value]):
            return _plain(value)
        case ast.Call(func=ast.Name(id="Add"), args=args):
            return " + ".join(map(_plain, args)).replace("+ -", "- ")
        case ast.Call(func=ast.Name(id="Mul"), args=args):
            return "*".join(f"({t})" if " " in (t := _plain(one)) else t for one in args)
        case ast.Call(func=ast.Name(id="FloorDiv"), args=[left, right]):
            return f"({_plain(left)})//{_plain(right)}"
        case ast.Call(func=ast.Name(id=name), args=args):
            return f"{name}({', '.join(map(_plain, args))})"
        case _:
            return ast.unparse(node)
