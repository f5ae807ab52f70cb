"""Weights of regions as small integers: quantised outside the region, decoded inside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from tapml.errors import StageError

from ..compat import tvm
from ..dataflow import (
    Writer,
    bindings,
    num_input,
    op_name,
    operands,
    parameters,
    remove_dead_code,
    rewrite,
    rx,
)
from ..layers import Layer, match
from ..program import (
    LOOKUP,
    QUANTIZED,
    REGION,
    Io,
    Origin,
    minima_name,
    scales_name,
    source_names,
)
from ..quantization import LARGEST, Bits, Scheme

te, tirx = tvm.te, tvm.tirx


def quantizable(mod: Any, io: Io, provenance: Iterable[Origin]) -> tuple[Layer, ...]:
    """The float32 weights that regions multiply by, in order, each once."""
    nodes = {origin.value: origin.nodes[0] for origin in provenance}
    names = source_names(mod, io)
    layers: dict[str, Layer] = {}
    for region in regions(mod).values():
        weight = str(region.attrs["tapml.weight"])
        product, source, _ = parts(region)
        if source.ty.dtype != "float32":
            continue
        node = nodes.get(re.sub(r"(__\d+)+$", "", product.name), names[weight])
        shape = tuple(map(int, source.ty.shape.values))
        layers.setdefault(weight, Layer(node, names[weight], shape))
    return tuple(layers.values())


def quantize(
    mod: Any, io: Io, provenance: Iterable[Origin], patterns: Sequence[str], bits: Bits, group: int
) -> Any:
    """`mod` whose matched regions read integers and scales instead of a weight.

    `main` computes both from the weight, which is left to `main_transform_params`; what else reads
    the weight reads the values that the integers stand for, so that it is one model.
    Raises: RecipeError for a pattern that matches no layer; StageError when two regions sum over
            different axes of one weight.
    """
    chosen = match(
        patterns,
        quantizable(mod, io, provenance),
        field="relax.quantize.layers",
        can="be quantized",
    )
    wanted = {layer.weight for layer in chosen}
    names = source_names(mod, io)
    found: dict[str, Scheme] = {}  # parameter of `main` → its scheme
    for region in regions(mod).values():
        weight = str(region.attrs["tapml.weight"])
        if names[weight] in wanted:
            how = Scheme(bits, group, parts(region)[2])
            if found.setdefault(weight, how) != how:
                raise StageError(
                    message=f"{names[weight]} is multiplied along both of its axes",
                    hint="leave it out of relax.quantize.layers",
                )
    return remove_dead_code(_rewrite(mod, found, io))


def keep_blocks(mod: Any, io: Io) -> Any:
    """`mod` that reads weights which the source keeps as integers as such: in regions, and in
    lookups of rows.

    What `quantize` has rounded is left alone; so is a weight that is multiplied along the other
    axis than its groups', or read in other ways only.
    """
    names = source_names(mod, io)
    uses: dict[str, set[int]] = {}  # parameter of `main` → axes that its uses sum over
    for region in regions(mod).values():
        if QUANTIZED not in region.attrs:
            uses.setdefault(str(region.attrs["tapml.weight"]), set()).add(parts(region)[2])
    for _, value in bindings(mod["main"]):
        if looks_up_rows(value):
            uses.setdefault(value.args[0].name, set()).add(1)
    found = {
        weight: io.blocks[names[weight]]
        for weight, axes in uses.items()
        if names.get(weight) in io.blocks and axes == {io.blocks[names[weight]].axis}
    }
    return remove_dead_code(_rewrite(mod, found, io))


def looks_up_rows(value: Any) -> bool:
    """Whether this is a lookup of whole rows in a matrix that a variable holds; rows that are not
    there may be NaN.
    """
    return (
        op_name(value) == "relax.take"
        and isinstance(value.args[0], rx.Var)
        and value.args[0].ty.ndim == 2
        and value.attrs.axis == 0
        and value.attrs.mode in ("fast", "nan")
    )


def _rewrite(mod: Any, found: Mapping[str, Scheme], io: Io) -> Any:
    known = regions(mod)
    raw = mod["main"].params[num_input(mod["main"]) :]
    weights = {p.name: p for p in raw if p.name in found}
    sources = source_names(mod, io)
    given = {sources[p.name]: p for p in raw}
    stored: dict[str, tuple[Any, ...]] = {}  # parameter → its integers, scales and minima

    def scaling(writer: Writer, name: str) -> list[Any]:
        how, source = found[name], sources[name]
        if how.given:
            read = [scales_name(source), *([minima_name(source)] if how.minima else [])]
            return [given[one] for one in read]
        call = writer.call_te(partial(_scales, how=how), weights[name], hint="scales")
        return [writer.emit(call, f"{name}_scales")]

    def integers(writer: Writer, name: str) -> tuple[Any, ...]:
        if name not in stored:
            scales = scaling(writer, name)
            fn = partial(_integers, how=found[name])
            call = writer.call_te(fn, weights[name], *scales, hint="quantize")
            stored[name] = (writer.emit(call, f"{name}_integers"), *scales)
        return stored[name]

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        region = known.get(op_name(value))
        weight = str(region.attrs["tapml.weight"]) if region is not None else ""
        if region is not None and weight in found:
            args, at = list(value.args), list(region.params).index(parts(region)[1])
            args[at : at + 1] = integers(writer, weight)
            func = _decoding(writer, region, args, found[weight])
            return rx.Call(writer.add_function(func, op_name(value)), args)
        if looks_up_rows(value) and value.args[0].name in found:
            name = value.args[0].name
            if found[name].axis == 1:
                return _lookup(writer, value, name, integers(writer, name), found[name])
        for name in {leaf.name for leaf in operands(value) if isinstance(leaf, rx.Var)} & set(
            weights
        ):
            call = writer.call_te(
                partial(decode, how=found[name]), *integers(writer, name), hint="dequantize"
            )
            writer.values[weights[name]] = writer.emit(call, f"{name}_decoded")
        return writer.substitute(value)

    # without the old regions, so that the new ones have their names
    replaced = {n for n, one in known.items() if str(one.attrs["tapml.weight"]) in found}
    kept = {g: func for g, func in mod.functions.items() if g.name_hint not in replaced}
    return rewrite(tvm.IRModule(kept, attrs=mod.attrs), visit)


def _decoding(writer: Writer, region: Any, args: Sequence[Any], how: Scheme) -> Any:
    """The region over integers, scales and minima: decoded where the weight was read."""
    _, weight, _ = parts(region)
    at = list(region.params).index(weight)
    old = list(region.params)
    names = [p.name for p in old]
    names[at : at + 1] = held = _held(weight.name, how)
    params = parameters(names, args)
    inner = writer.nested(params)
    end = at + len(held)
    call = inner.call_te(partial(decode, how=how), *params[at:end], hint="dequantize")
    decoded = inner.emit(call, f"{weight.name}_decoded")
    inner.values.update(zip(old[:at], params[:at], strict=True))
    inner.values.update(zip(old[at + 1 :], params[end:], strict=True))
    inner.values[weight] = decoded
    for var, value in bindings(region):
        inner.bind(var, value, result=var.same_as(region.body.body))
    func = inner.function(params, inner.substitute(region.body.body), region.attrs)
    return rx.utils.copy_with_new_vars(func).with_attr(QUANTIZED, how.to_json())


def _lookup(writer: Writer, take: Any, name: str, held: Sequence[Any], how: Scheme) -> Any:
    """The call of a function of indices and integers that gives rows, decoded."""
    args = [take.args[1], *held]
    params = parameters(["indices", *_held(name, how)], args)
    inner = writer.nested(params)
    call = inner.call_te(partial(decode, how=how), *params[1:], hint="dequantize")
    rows = rx.op.take(inner.emit(call, "decoded"), params[0], axis=0, mode=take.attrs.mode)
    out = inner.emit(rows, "rows")
    func = rx.utils.copy_with_new_vars(inner.function(params, out)).with_attr(LOOKUP, how.to_json())
    return rx.Call(writer.add_function(func, f"lookup_{name}"), args)


def _held(weight: str, how: Scheme) -> list[str]:
    """Names of what a weight is stored as."""
    minima = ["minima"] if how.minima else []
    return [f"{weight}_{part}" for part in ("integers", "scales", *minima)]


def regions(mod: Any) -> dict[str, Any]:
    """The functions of regions, by name."""
    return {
        gvar.name_hint: func
        for gvar, func in mod.functions.items()
        if func.attrs and REGION in func.attrs
    }


def parts(region: Any) -> tuple[Any, Any, int]:
    """(variable of the product, the weight it reads as it is in the source, axis summed over)."""
    values = dict(bindings(region))
    product = next(var for var, value in values.items() if op_name(value) == "relax.matmul")
    weight = values[product].args[1]
    if op_name(values.get(weight)) == "relax.permute_dims":
        return product, values[weight].args[0], 1
    return product, weight, 0


def _at(how: Scheme, along: Any, other: Any) -> tuple[Any, Any]:
    return (along, other) if how.axis == 0 else (other, along)


def _scales(weight: Any, how: Scheme) -> Any:
    """Largest magnitude of each group / largest integer; 1 where a group is all zeros."""
    size = int(weight.shape[how.axis])
    groups, r = -(-size // how.group), te.reduce_axis((0, how.group), "r")
    zero = tirx.const(0, weight.dtype)

    def magnitude(i: Any, j: Any) -> Any:
        along, other = (i, j) if how.axis == 0 else (j, i)
        k = along * how.group + r
        value = tirx.abs(weight(*_at(how, k, other)))
        value = tirx.if_then_else(k < size, value, zero) if size % how.group else value
        return te.max(value, axis=r)

    shape = _at(how, groups, weight.shape[1 - how.axis])
    largest = te.compute(shape, magnitude, "largest")
    most = tirx.const(LARGEST[how.bits], weight.dtype)

    def scale(*at: Any) -> Any:
        value = largest(*at) / most
        return tirx.Select(value > zero, value, zero + 1)

    return te.compute(shape, scale, "scales")


def _integers(weight: Any, scales: Any, *minima: Any, how: Scheme) -> Any:
    """As in `quantization`: `quantize` for scales of the weight's own, `integers_of` for given."""
    least, most = (tirx.const(float(end), "float32") for end in how.range)

    def rounded(i: Any, j: Any) -> Any:
        scale, *low = (one(*_group(how, i, j)).astype("float32") for one in (scales, *minima))
        value = weight(i, j) - low[0] if low else weight(i, j)
        if how.given:
            zero = tirx.const(0, "float32")
            steps = tirx.nearbyint(value / tirx.Select(scale == zero, zero + 1, scale))
            steps = tirx.Select(scale == zero, zero, tirx.min(tirx.max(steps, least), most))
            return steps.astype("int8")
        return tirx.nearbyint(value / scale).astype("int8")

    return te.compute(weight.shape, rounded, "integers")


def decode(integers: Any, scales: Any, *minima: Any, how: Scheme) -> Any:
    """The float32 weight that integers, scales and minima stand for."""

    def value(i: Any, j: Any) -> Any:
        scale, *low = (one(*_group(how, i, j)).astype("float32") for one in (scales, *minima))
        product = integers(i, j).astype("float32") * scale
        return product + low[0] if low else product

    return te.compute(integers.shape, value, "decoded")


def _group(how: Scheme, i: Any, j: Any) -> tuple[Any, Any]:
    return (i // how.group, j) if how.axis == 0 else (i, j // how.group)
