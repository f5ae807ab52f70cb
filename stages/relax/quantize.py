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
from ..program import QUANTIZED, REGION, Io, Origin, source_names
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
    return remove_dead_code(_rewrite(mod, found))


def _rewrite(mod: Any, found: Mapping[str, Scheme]) -> Any:
    known = regions(mod)
    weights = {p.name: p for p in mod["main"].params[num_input(mod["main"]) :] if p.name in found}
    stored: dict[str, tuple[Any, Any]] = {}  # parameter → its integers and scales

    def integers(writer: Writer, name: str) -> tuple[Any, Any]:
        if name not in stored:
            raw, how = weights[name], found[name]
            scales = writer.emit(
                writer.call_te(partial(_scales, how=how), raw, hint="scales"), f"{name}_scales"
            )
            call = writer.call_te(partial(_integers, how=how), raw, scales, hint="quantize")
            stored[name] = (writer.emit(call, f"{name}_integers"), scales)
        return stored[name]

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        region = known.get(op_name(value))
        weight = str(region.attrs["tapml.weight"]) if region is not None else ""
        if region is not None and weight in found:
            args, at = list(value.args), list(region.params).index(parts(region)[1])
            args[at : at + 1] = integers(writer, weight)
            func = _decoding(writer, region, args, found[weight])
            return rx.Call(writer.add_function(func, op_name(value)), args)
        for name in {leaf.name for leaf in operands(value) if isinstance(leaf, rx.Var)} & set(
            weights
        ):
            call = writer.call_te(
                partial(decode, how=found[name]), *integers(writer, name), hint="decode"
            )
            writer.values[weights[name]] = writer.emit(call, f"{name}_decoded")
        return writer.substitute(value)

    # without the old regions, so that the new ones have their names
    replaced = {n for n, one in known.items() if str(one.attrs["tapml.weight"]) in found}
    kept = {g: func for g, func in mod.functions.items() if g.name_hint not in replaced}
    return rewrite(tvm.IRModule(kept, attrs=mod.attrs), visit)


def _decoding(writer: Writer, region: Any, args: Sequence[Any], how: Scheme) -> Any:
    """The region over integers and scales: they are decoded where the weight was read."""
    _, weight, _ = parts(region)
    at = list(region.params).index(weight)
    old = list(region.params)
    names = [p.name for p in old]
    names[at : at + 1] = [f"{weight.name}_integers", f"{weight.name}_scales"]
    params = parameters(names, args)
    inner = writer.nested(params)
    call = inner.call_te(partial(decode, how=how), params[at], params[at + 1], hint="decode")
    decoded = inner.emit(call, f"{weight.name}_decoded")
    inner.values.update(zip(old[:at], params[:at], strict=True))
    inner.values.update(zip(old[at + 1 :], params[at + 2 :], strict=True))
    inner.values[weight] = decoded
    for var, value in bindings(region):
        inner.bind(var, value, result=var.same_as(region.body.body))
    func = inner.function(params, inner.substitute(region.body.body), region.attrs)
    return rx.utils.copy_with_new_vars(func).with_attr(QUANTIZED, how.to_json())


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


def _integers(weight: Any, scales: Any, how: Scheme) -> Any:
    def rounded(i: Any, j: Any) -> Any:
        return tirx.nearbyint(weight(i, j) / scales(*_group(how, i, j))).astype("int8")

    return te.compute(weight.shape, rounded, "integers")


def decode(integers: Any, scales: Any, how: Scheme) -> Any:
    """The float32 weight that integers and scales stand for."""
    return te.compute(
        integers.shape,
        lambda i, j: integers(i, j).astype("float32") * scales(*_group(how, i, j)),
        "decoded",
    )


def _group(how: Scheme, i: Any, j: Any) -> tuple[Any, Any]:
    return (i // how.group, j) if how.axis == 0 else (i, j // how.group)
