"""Regions: each matrix product with a weight, and its elementwise epilogue, as a function.

A region is what an alternative (sparse, library) may replace, and it is timed whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from math import prod
from typing import Any

from ..dataflow import (
    ELEMENTWISE,
    Writer,
    bindings,
    is_constant,
    num_input,
    op_name,
    operands,
    parameters,
    remove_dead_code,
    rewrite,
    rx,
    same_dtype,
    same_shape,
    shape_of,
)
from ..program import REGION

RESHAPING = ("relax.reshape", "relax.permute_dims", "relax.expand_dims", "relax.squeeze")


@dataclass(frozen=True)
class Region:
    """Variables of `main` that one region computes, in order; the last is its result."""

    weight: str
    members: tuple[Any, ...]


def mark_regions(mod: Any) -> Any:
    """`mod` whose matrix products with 2-D weights are calls of composite functions `region_<k>`.

    A region's function takes activations as rows, [M, K] → [M, N] (leading axes are flattened
    around the call, a view of the same memory), and weights as they are in the source.
    """
    mod = _flatten_rows(mod)
    func = mod["main"]
    values = dict(bindings(func))
    regions = {region.members[-1].name: region for region in find_regions(func)}
    names = {result: f"region_{k}" for k, result in enumerate(regions)}

    def visit(writer: Writer, var: Any, _value: Any) -> Any:
        if var.name not in regions:
            return None
        outlined, inputs = _outline(writer, values, regions[var.name])
        gvar = writer.add_function(outlined.with_attr(REGION, names[var.name]), names[var.name])
        return rx.Call(gvar, [writer.substitute(one) for one in inputs])

    return remove_dead_code(rewrite(mod, visit))


def find_regions(func: Any) -> list[Region]:
    """The regions of a function, in the order of their matrix products.

    Where two products meet (the halves of a gated unit), what they meet in is the later one's.
    """
    values = dict(bindings(func))
    weights = set(func.params[num_input(func) :])
    users: dict[Any, list[Any]] = {}
    for var, value in values.items():
        for leaf in operands(value):
            users.setdefault(leaf, []).append(var)
    returned = set(operands(func.body.body))
    regions: list[Region] = []
    taken: set[Any] = set()
    for var, value in reversed(values.items()):
        source = _source_weight(value, values, weights)
        if source is not None:
            chain = _epilogue(var, values, weights)
            free = [*takewhile(lambda member: member not in taken, chain)]
            members = _longest_with_one_result(free, users, returned)
            taken.update(members)
            regions.insert(0, Region(source.name, members))
    return regions


def _source_weight(value: Any, values: dict[Any, Any], weights: set[Any]) -> Any | None:
    """The 2-D weight of a matrix product of one dtype, else None."""
    if op_name(value) != "relax.matmul" or value.args[0].ty.ndim != 2 or value.args[1].ty.ndim != 2:
        return None
    if not same_dtype(value, *value.args):
        return None
    weight = value.args[1]
    if op_name(values.get(weight)) == "relax.permute_dims":
        weight = values[weight].args[0]
    return weight if weight in weights and weight.ty.ndim == 2 else None


def _epilogue(first: Any, values: dict[Any, Any], weights: set[Any]) -> list[Any]:
    """`first` and the elementwise values of its shape that need nothing made from it elsewhere."""
    shape, inside, outside, chain = shape_of(first), {first}, set(), [first]
    order = list(values)
    for var in order[order.index(first) + 1 :]:
        value = values[var]
        read = {leaf for leaf in operands(value) if isinstance(leaf, rx.Var)}
        if not read & (inside | outside):
            continue
        fits = (
            op_name(value) in ELEMENTWISE
            and not read & outside
            and same_shape(shape_of(var), shape)
        )
        if fits:
            chain.append(var)
        (inside if fits else outside).add(var)
    return chain


def _longest_with_one_result(
    chain: list[Any], users: dict[Any, list[Any]], returned: set[Any]
) -> tuple[Any, ...]:
    """The longest start of `chain` of which only the last value is read elsewhere."""

    def closed(members: list[Any]) -> bool:
        inner = set(members)
        return not any(
            v in returned or any(u not in inner for u in users.get(v, ())) for v in members[:-1]
        )

    return tuple(next(chain[:end] for end in range(len(chain), 0, -1) if closed(chain[:end])))


def _outline(outer: Writer, values: dict[Any, Any], region: Region) -> tuple[Any, list[Any]]:
    """The function of a region and the variables of `main` to call it with."""
    members = _with_reshaped_weights(values, region)
    inner = set(members)
    reads = [leaf for var in members for leaf in operands(values[var])]
    reads = dict.fromkeys(leaf for leaf in reads if isinstance(leaf, rx.Var) and leaf not in inner)
    inputs = sorted(reads, key=lambda leaf: outer.is_weight(outer.substitute(leaf)))
    params = parameters([var.name for var in inputs], inputs)
    writer = outer.nested(params)
    writer.values.update(zip(inputs, params, strict=True))
    for var in members:
        writer.bind(var, values[var], result=var is members[-1])
    func = writer.function(params, writer.substitute(members[-1]))
    func = func.with_attr("Composite", REGION).with_attr("tapml.weight", region.weight)
    return rx.utils.copy_with_new_vars(func), inputs


def _with_reshaped_weights(values: dict[Any, Any], region: Region) -> list[Any]:
    """The members, and before them what reshapes weights for them: a region reads raw weights."""
    members = list(region.members)
    k = 0
    while k < len(members):
        for leaf in operands(values[members[k]]):
            if leaf in members or op_name(values.get(leaf)) not in RESHAPING:
                continue
            if _is_reshaped_param(leaf, values):
                members.insert(k, leaf)
                k = -1
                break
        k += 1
    return members


def _is_reshaped_param(var: Any, values: dict[Any, Any]) -> bool:
    while op_name(values.get(var)) in RESHAPING:
        var = values[var].args[0]
    return (
        isinstance(var, rx.Var)
        and var not in values
        and all(isinstance(n, int) for n in shape_of(var))
    )


def _flatten_rows(mod: Any) -> Any:
    """`mod` whose products of [..., K] with a weight, epilogues included, are 2-D in reshapes."""
    rows: dict[Any, Any] = {}  # variable of more than two axes → the same values as [M, N]

    def flat(writer: Writer, expr: Any, shape: Any) -> Any | None:
        """`expr` as an operand of a 2-D elementwise call of these values, or None."""
        if expr in rows and same_shape(shape_of(expr), shape):
            return rows[expr]
        if not (isinstance(expr, rx.Var) or is_constant(expr)) or expr.ty.ndim == 0:
            return expr
        sizes = shape_of(expr)
        if writer.is_weight(expr) and all(size == 1 for size in sizes[:-1]):
            return expr if len(sizes) <= 2 else writer.emit(rx.op.reshape(expr, [sizes[-1]]))
        return None

    def visit(writer: Writer, var: Any, value: Any) -> Any:
        if (
            op_name(value) == "relax.matmul"
            and value.args[0].ty.ndim > 2
            and value.args[1].ty.ndim == 2
        ):
            if not writer.is_weight(value.args[1]) or writer.is_weight(value.args[0]):
                return None
            x, sizes = value.args[0], shape_of(value.args[0])
            x = writer.emit(rx.op.reshape(x, [prod(sizes[:-1]), sizes[-1]]))
            y = writer.emit(rx.Call(value.op, [x, value.args[1]], value.attrs, value.ty_args))
            shape = shape_of(writer.typed(value))
        elif op_name(value) in ELEMENTWISE and any(
            arg in rows for arg in value.args if isinstance(arg, rx.Var)
        ):
            shape = shape_of(writer.typed(value))
            first = next(arg for arg in value.args if isinstance(arg, rx.Var) and arg in rows)
            if not same_shape(shape, shape_of(first)):
                return None
            args = [
                writer.emit(rx.op.reshape(arg, shape_of(rows[first])))
                if isinstance(arg, rx.Var)
                and arg not in rows
                and not writer.is_weight(arg)
                and same_shape(shape_of(arg), shape)
                else flat(writer, arg, shape)
                for arg in value.args
            ]
            if any(arg is None for arg in args):
                return None
            y = writer.emit(rx.Call(value.op, args, value.attrs, value.ty_args))
        else:
            return None
        wide = writer.emit(rx.op.reshape(y, shape))
        rows[wide] = y
        return wide

    return remove_dead_code(rewrite(mod, visit))
