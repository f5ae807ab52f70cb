"""Torch's symbolic sizes as TIR expressions over the recipe's dims.

Torch names a symbol itself (`s27`); the recipe's name for it is read off the inputs' shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree
from torch.utils._sympy import functions as torch_functions
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from tapml.errors import StageError

from ...compat import tvm
from ...program import Bounds

Shape = Sequence[int | str | None]
_DIVISIONS = (torch_functions.FloorDiv, torch_functions.CleanDiv)
_REMAINDERS = (torch_functions.Mod, torch_functions.PythonMod)


class Sizes:
    """Sizes in a torch graph → sizes in Relax; one TIR variable for each dim of the recipe."""

    def __init__(self, names: Mapping[sympy.Symbol, str | int], dims: Mapping[str, Bounds]) -> None:
        variables = {name: tvm.tirx.Var(name, "int64") for name in names.values() if name in dims}
        self._vars = {symbol: variables.get(name, name) for symbol, name in names.items()}
        self._ranges = {
            symbol: ValueRanges(dims[name].min, dims[name].max)
            if isinstance(name, str)
            else ValueRanges(name, name)
            for symbol, name in names.items()
        }

    def shape(self, shape: Sequence[Any]) -> list[Any]:
        return [self.size(size) for size in shape]

    def size(self, size: Any) -> Any:
        """An int, or a TIR expression. StageError for a size that depends on data."""
        if isinstance(size, torch.SymInt):
            return self._expression(size.node.expr)
        return int(size)

    def depend_on_data(self, value: Any) -> bool:
        """Whether a torch value (a size, a tensor, a nest of them) has sizes beyond the dims'."""
        symbols = {
            symbol
            for leaf in pytree.tree_leaves(value)
            for size in (leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,))
            if isinstance(size, torch.SymInt)
            for symbol in size.node.expr.free_symbols
        }
        return not symbols <= self._vars.keys()

    def same(self, left: Any, right: Any) -> bool:
        """Whether two sizes are equal whatever the dims are."""
        return sympy.expand(_sympy(left) - _sympy(right)) == 0

    def _expression(self, expr: Any) -> Any:
        match expr:
            case sympy.Integer():
                return int(expr)
            case sympy.Symbol():
                if expr not in self._vars:
                    raise StageError(
                        message=f"the size {expr} depends on data, not on the inputs' shapes",
                        hint="compute a fixed size: a mask instead of a selection, padding "
                        "instead of nonzero()",
                    )
                return self._vars[expr]
            case sympy.Add():
                return self._folded(expr.args, lambda a, b: a + b)
            case sympy.Mul():
                return self._folded(expr.args, lambda a, b: a * b)
            case sympy.Pow(args=(base, sympy.Integer() as power)) if power > 0:
                return self._folded([base] * int(power), lambda a, b: a * b)
            case sympy.Min() | torch_functions.Min():
                return self._extreme(expr.args, tvm.tirx.min, least=True)
            case sympy.Max() | torch_functions.Max():
                return self._extreme(expr.args, tvm.tirx.max, least=False)
        if isinstance(expr, _DIVISIONS):
            return self._folded(expr.args, tvm.tirx.floordiv)
        if isinstance(expr, _REMAINDERS):
            return self._folded(expr.args, tvm.tirx.floormod)
        raise StageError(message=f"the size {expr} ({type(expr).__name__}) has no form in Relax")

    def _folded(self, args: Sequence[Any], op: Any) -> Any:
        first, *rest = [self._term(arg) for arg in args]
        for term in rest:
            first = op(first, term)
        return first

    def _term(self, expr: Any) -> Any:
        term = self._expression(expr)
        return tvm.tirx.IntImm("int64", term) if isinstance(term, int) else term

    def _extreme(self, args: Sequence[Any], op: Any, *, least: bool) -> Any:
        """Min or Max without the arguments that the dims' bounds prove never to be taken."""
        ranges = {arg: bound_sympy(arg, self._ranges) for arg in args}
        kept = list(args)
        for arg in args:
            others = [ranges[one] for one in kept if one is not arg]
            low, high = ranges[arg].lower, ranges[arg].upper
            if any(low >= one.upper if least else high <= one.lower for one in others):
                kept.remove(arg)
        return self._expression(kept[0]) if len(kept) == 1 else self._folded(kept, op)


def _sympy(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def symbols(
    shapes: Mapping[str, Sequence[Any]], wanted: Mapping[str, Shape]
) -> dict[sympy.Symbol, str | int]:
    """Torch's symbol → the recipe's dim, or the size that the recipe fixes.

    In:     shapes of the exported inputs, and of the recipe's, by input name
    Raises: StageError for a dim that the export fixed, or tied to another.
    """
    names: dict[sympy.Symbol, str | int] = {}
    for name, shape in wanted.items():
        for axis, (size, dim) in enumerate(zip(shapes[name], shape, strict=True)):
            where = f"input {name!r}, axis {axis}"
            symbol = _sympy(size)
            if not isinstance(symbol, sympy.Symbol):
                if symbol != dim:
                    raise StageError(
                        message=f"{where} is {symbol} in the exported program, "
                        f"{dim!r} in the recipe",
                        hint="export it with this axis dynamic, or write the size",
                    )
            elif names.setdefault(symbol, dim) != dim:  # pyright: ignore[reportArgumentType]  # all are named
                raise StageError(
                    message=f"{where}: dim {dim!r} is the same as {names[symbol]!r} in the "
                    "exported program",
                    hint="give both the same name in model.inputs",
                )
    return names
