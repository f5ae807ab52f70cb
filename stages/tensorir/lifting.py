"""What depends on weights alone, out of the clones of `main` and into one function for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi

from ..compat import tvm
from ..dataflow import Writer, bindings, num_input, rx
from ..program import TRANSFORM

_SUFFIX = "_transform_params"


def lift_packing(mod: Any, clones: Sequence[str]) -> Any:
    """`mod` whose clones take packed weights; one `main_transform_params` packs them for all.

    Clones need not pack alike: at a fixed length, the first rows of a table of positions are
    weights too. What two clones compute alike is computed once; each takes all that is packed.
    """
    mod = rx.transform.LiftTransformParams()(mod)
    lifted = [mod[f"{name}{_SUFFIX}"] for name in clones]
    union = _Union(mod, lifted[0].params[0].ty)
    taken = [union.add(func) for func in lifted]
    functions = {
        gvar: func for gvar, func in mod.functions.items() if not gvar.name_hint.endswith(_SUFFIX)
    }
    out = tvm.IRModule(functions, attrs=mod.attrs)
    for name, where in zip(clones, taken, strict=True):
        func, own, writer = mod[name], dict[int, Any](), Writer(mod, mod[name].params)
        count = num_input(func)
        for k, param in zip(where, func.params[count:], strict=True):
            writer.values[param] = own.setdefault(k, param)  # a weight that is read twice
        func = writer.write(func, lambda _writer, _var, _value: None)
        packed = [
            own[k] if k in own else rx.Var(f"packed_{k}", ty) for k, ty in enumerate(union.types())
        ]
        out[name] = rx.Function(
            [*func.params[:count], *packed], func.body, func.ret_ty, func.is_pure, func.attrs
        )
    out[TRANSFORM] = union.function().with_attr("global_symbol", TRANSFORM)
    return out


class _Union:
    """One function of the raw weights that gives what several give, equal values once."""

    def __init__(self, mod: Any, raw: Any) -> None:
        self._raw = rx.Var("params", raw)
        self._writer = Writer(mod, [self._raw])
        self._known: dict[int, list[tuple[Any, Any]]] = {}  # by structural hash: value, variable
        self._results: dict[Any, int] = {}  # variable → its place in the result

    def add(self, func: Any) -> list[int]:
        """Writes what `func` computes; the place of each of its results."""
        self._writer.values[func.params[0]] = self._raw
        for var, old in bindings(func):
            value = self._writer.substitute(old)
            self._writer.values[var] = (
                value if isinstance(value, rx.Tuple) else self._once(var, value)
            )
        result = self._writer.substitute(func.body.body)
        fields = result.fields if isinstance(result, rx.Tuple) else self._unpacked(result)
        return [self._results.setdefault(one, len(self._results)) for one in fields]

    def _unpacked(self, weights: Any) -> list[Any]:
        """Every field of the raw weights, which a function gives back where it packs none."""
        return [
            self._once(rx.Var(f"weight_{k}", ty), rx.TupleGetItem(weights, k))
            for k, ty in enumerate(weights.ty.fields)
        ]

    def types(self) -> list[Any]:
        return [var.ty for var in self._results]

    def function(self) -> Any:
        last = rx.Var("packed", rx.TupleType(self.types()))
        self._writer.bind(last, rx.Tuple(list(self._results)), result=True)
        return self._writer.function([self._raw], self._writer.substitute(last))

    def _once(self, var: Any, value: Any) -> Any:
        if isinstance(value, rx.Var):
            return value
        alike = self._known.setdefault(tvm_ffi.structural_hash(value), [])
        for other, written in alike:
            if tvm_ffi.structural_equal(other, value):
                return written
        self._writer.bind(var, value)
        alike.append((value, self._writer.values[var]))
        return self._writer.values[var]
