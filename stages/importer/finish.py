"""What every importer does with the Relax function it got: names, provenance, weights, io."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compat import tvm
from ..dataflow import KERNEL_CALLS, bindings, is_operator_call, op_name
from ..program import Bounds, Io, Origin, Program, TensorSpec
from .source import UnknownShapeError, Unsupported, refuse

rx = tvm.relax
# without a legalization, by other means: tensorir has orders and running sums
_LOWERED = KERNEL_CALLS | {
    f"relax.{name}" for name in ("sort", "argsort", "topk", "cumsum", "cumprod")
}
_ADVICE = "no kernel for it can be made: end the model before it, run it on the host"


@dataclass(frozen=True)
class Node:
    """The source node that a binding comes from."""

    node: str
    op: str


class Names:
    """Unique identifiers from source names."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def fresh(self, name: str) -> str:
        base = re.sub(r"\W", "_", name)
        base = base if base and not base[0].isdigit() else f"v_{base}"
        fresh, count = base, 1
        while fresh in self._taken:
            count += 1
            fresh = f"{base}_{count}"
        self._taken.add(fresh)
        return fresh


def attribute(
    bindings: Iterable[Any], mark: str, order: Sequence[Node], sources: dict[str, Node], last: Node
) -> None:
    """Writes into `sources` which node each binding comes from.

    In: a binding named `mark` holds the place in `order` of the node that made those before it; one
        that repeats a value is that value's; what no mark follows is `last`'s.
    """
    pending: list[str] = []
    for binding in bindings:
        if binding.var.name.startswith(mark):
            sources.update(dict.fromkeys(pending, order[int(binding.value.value.numpy())]))
            pending = []
        elif isinstance(binding.value, rx.Var) and binding.value.name in sources:
            sources[binding.var.name] = sources[binding.value.name]
        else:
            pending.append(binding.var.name)
    sources.update(dict.fromkeys(pending, last))


def finish(
    mod: Any,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray],
    params: Mapping[str, str],
    sources: Mapping[str, Node],
    dims: Mapping[str, Bounds],
    buckets: Iterable[Mapping[str, int]],
    where: str,
) -> tuple[Program, dict[str, np.ndarray]]:
    """The program of an imported module, and the weights that it uses.

    In:     `params`: name of a parameter of `main` → source name of its weight; the others are
            inputs, in the order of `inputs`. `sources`: name of a binding → where it comes from.
            `where`: what errors call the model
    Out:    float constants with ndim > 0 are parameters too; unused weights are gone; bindings are
            named after their sources.
    Raises: StageError listing every operator that no kernel can be made for; UnknownShapeError
            listing every value whose shape is unknown.
    """
    weights = dict(weights)
    mod = rx.transform.CanonicalizeBindings()(mod)
    mod = rx.transform.DeadCodeElimination(["main"])(mod)
    func = mod["main"]
    refuse(where, _unlowered(func, sources))
    _demand_known_shapes(func, sources, dims)
    named = _Finisher(func, inputs, weights, params, sources)
    func = named.function(dims)
    mod.update_func(mod.get_global_var("main"), func)  # `mod` is ours: the passes made it
    mod = rx.transform.Normalize()(mod)
    func = mod["main"]
    io = Io(
        inputs=tuple(_spec(name, var.ty) for name, var in zip(inputs, func.params, strict=False)),
        outputs=tuple(_spec(*pair) for pair in zip(outputs, outputs_of(func), strict=True)),
        params=tuple(
            _spec(name, var.ty)
            for name, var in zip(named.weight_names, func.params[len(inputs) :], strict=True)
        ),
        dims=dict(dims),
        buckets=tuple(dict(bucket) for bucket in buckets),
    )
    used = {name: weights[name] for name in named.weight_names}
    return Program(mod=mod, io=io, provenance=named.provenance(func)), used


class _Finisher:
    """Renames, lifts and drops, once; keeps the maps that provenance and io are written from."""

    def __init__(
        self,
        func: Any,
        inputs: Sequence[str],
        weights: dict[str, np.ndarray],
        params: Mapping[str, str],
        sources: Mapping[str, Node],
    ) -> None:
        self.func, self.weights, self.sources = func, weights, sources
        self.names = Names()
        self.origins: dict[str, Node] = {}  # new variable name → source
        self.remap: dict[str, str] = {}  # old variable name → new
        self.weight_names: list[str] = []  # in the order of the parameters
        self.weight_of: dict[str, str] = {}  # new parameter name → source name
        used = {var.name for var in rx.analysis.free_vars(func.body)}
        self.params = []
        for name, param in zip(
            inputs, (p for p in func.params if p.name not in params), strict=True
        ):
            self.remap[param.name] = self.names.fresh(name)
            self.params.append(param)
        for param in func.params:
            if param.name in params and param.name in used:
                self._add_weight(params[param.name], self._rename(param.name, params[param.name]))
                self.params.append(param)
        for block in func.body.blocks:
            for binding in block.bindings:
                source = sources[binding.var.name]
                new = self._rename(binding.var.name, source.node)
                self.origins[new] = source

    def _rename(self, old: str, wanted: str) -> str:
        self.remap[old] = self.names.fresh(wanted)
        return self.remap[old]

    def _add_weight(self, source_name: str, param: str) -> None:
        self.weight_names.append(source_name)
        self.weight_of[param] = source_name

    def lift(self, array: np.ndarray) -> Any:
        """A new parameter for a float constant that the importer left in the IR."""
        name = f"constant.{sum(one.startswith('constant.') for one in self.weights)}"
        self.weights[name] = array
        var = rx.Var(self.names.fresh(name), rx.TensorType(array.shape, str(array.dtype)))
        self._add_weight(name, var.name)
        self.lifted.append(var)
        return var

    def function(self, dims: Mapping[str, Bounds]) -> Any:
        self.lifted: list[Any] = []
        rename = _Rename(self.remap, self.lift)
        params = [rename.define(param) for param in self.params]
        body = rename.visit_expr(self.func.body)
        ty = self.func.body.body.ty
        func = rx.Function([*params, *self.lifted], body, ty, is_pure=True)
        attrs: dict[str, Any] = {
            "global_symbol": "main",
            "num_input": len(params) + len(self.lifted) - len(self.weight_names),
        }
        if dims:
            attrs["tir_var_lower_bound"] = {name: bounds.min for name, bounds in dims.items()}
            attrs["tir_var_upper_bound"] = {name: bounds.max for name, bounds in dims.items()}
        return func.with_attrs(attrs)

    def provenance(self, func: Any) -> tuple[Origin, ...]:
        """Value → source; weights count when read directly or through values made of weights."""
        made_of: dict[str, frozenset[str]] = {  # values computed from weights only
            param: frozenset([name]) for param, name in self.weight_of.items()
        }
        rows: list[Origin] = []
        for block in func.body.blocks:
            for binding in block.bindings:
                read = [var.name for var in rx.analysis.free_vars(binding.value)]
                weights = frozenset[str]().union(*(made_of.get(name, ()) for name in read))
                if read and all(name in made_of for name in read):
                    made_of[binding.var.name] = weights
                source = self.origins[binding.var.name]
                rows.append(
                    Origin(binding.var.name, (source.node,), source.op, tuple(sorted(weights)))
                )
        return tuple(rows)


@rx.expr_functor.mutator
class _Rename(rx.PyExprMutator):
    """Gives variables the names of a map, and hands float constants with dimensions to `lift`."""

    def __init__(self, names: Mapping[str, str], lift: Any) -> None:
        super().__init__()
        self.names, self.lift = names, lift

    def define(self, var: Any) -> Any:
        kind = rx.DataflowVar if isinstance(var, rx.DataflowVar) else rx.Var
        new = kind(self.names[var.name], var.ty)
        self.set_var_remap(var, new)
        return new

    def visit_var_def_(self, var: Any) -> Any:
        return self.define(var)

    def visit_dataflow_var_def_(self, var: Any) -> Any:
        return self.define(var)

    def visit_generic_const_(self, op: Any) -> Any:
        array = op.value.numpy()
        return self.lift(array) if array.ndim and array.dtype.kind == "f" else op


def shape_of(ty: Any) -> tuple[int | str, ...]:
    """Sizes of a tensor's type, and names of its dims."""
    return tuple(
        int(dim) if isinstance(dim, tvm.tirx.IntImm) else str(dim) for dim in ty.shape.values
    )


def outputs_of(func: Any) -> list[Any]:
    """The types of what a function gives; it may be declared to give less than its body tells."""
    ty = func.body.body.ty
    return list(ty.fields) if isinstance(ty, rx.TupleType) else [ty]


def _spec(name: str, ty: Any) -> TensorSpec:
    return TensorSpec(name, shape_of(ty), str(ty.dtype))


def _unlowered(func: Any, sources: Mapping[str, Node]) -> list[Unsupported]:
    """Nodes that became operators without a lowering; they would fail two stages later."""
    rows: dict[str, dict[str, None]] = defaultdict(dict)
    for var, value in bindings(func):
        name = op_name(value)
        if not is_operator_call(value) or name in _LOWERED:
            continue
        if value.op.get_attr("FLegalize") is None:
            source = sources[var.name]
            rows[name if source.op == name else f"{source.op} ({name})"][source.node] = None
    return [Unsupported(op, tuple(nodes), _ADVICE) for op, nodes in rows.items()]


def _demand_known_shapes(
    func: Any, sources: Mapping[str, Node], dims: Mapping[str, Bounds]
) -> None:
    """Raises UnknownShapeError that lists bindings whose shapes are not made of sizes and dims."""

    def known(ty: Any) -> bool:
        if isinstance(ty, rx.TupleType):
            return all(known(field) for field in ty.fields)
        if not isinstance(ty, rx.TensorType):
            return True
        return isinstance(ty.shape, rx.ShapeExpr) and _symbols(ty.shape.values) <= dims.keys()

    unknown = {
        sources[binding.var.name]: None
        for block in func.body.blocks
        for binding in block.bindings
        if not known(binding.var.ty)
    }
    if unknown:
        nodes = ", ".join(f"{source.node} ({source.op})" for source in unknown)
        message = f"the shapes of {len(unknown)} nodes cannot be told from the inputs': {nodes}"
        raise UnknownShapeError(message=message)


def _symbols(values: Iterable[Any]) -> set[str]:
    return {var.name for one in values for var in tvm.tirx.analysis.undefined_vars(one)}
