"""Which imported values each kernel call computes, rebuilt after fusion; none may be lost.

FuseOps merges equal groups and renames their results, so calls are followed by what they compute:
a call of a kernel on known values is the value that had this kernel and these operands before
fusion.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tapml.errors import StageError

from ..dataflow import bindings, is_constant, kernel_of, num_input, op_name, operands, rx
from ..program import IMPORTED, REGION, Origin


def fused_values(before: Any, after: Any, name: str) -> list[list[str]]:
    """For each call of function `name` after FuseOps, the values it computes, as named before."""
    known: dict[tuple[Any, ...], list[str]] = {}
    # an element of a tuple, a constant, or the first value of those that are computed alike
    alias: dict[Any, str] = {}
    first: dict[str, str] = {}
    for var, value in bindings(before[name]):
        if isinstance(value, rx.TupleGetItem) and isinstance(value.tuple_value, rx.Var):
            source = value.tuple_value
            alias[var] = _element(alias.get(source, source.name), value.index)
        elif is_constant(value):
            alias[var] = _leaf(value)
        elif isinstance(value, rx.Call):
            named = _key(value, lambda leaf: alias.get(leaf, leaf.name))
            same = known.setdefault(named, [])
            alias[var] = first[var.name] = first[same[0]] if same else var.name
            same.append(var.name)
    sites: list[list[str]] = []

    def walk(func: Any, names: dict[Any, Any]) -> Any:
        """Names of the values that `func` returns; its kernel calls join the site, or are sites."""
        for var, value in bindings(func):
            if not isinstance(value, rx.Call):
                names[var] = resolve(value, names)
            elif _is_group(callee := _callee(after, value)):
                sites.append([])
                args = [resolve(arg, names) for arg in value.args]
                names[var] = walk(callee, dict(zip(callee.params, args, strict=True)))
            else:
                same = known[_key(value, lambda leaf: resolve(leaf, names))]
                own = same.pop(0) if len(same) > 1 else same[0]
                names[var] = first[own]
                if func is after_main:
                    sites.append([])
                sites[-1].append(own)
        return resolve(func.body.body, names)

    def resolve(expr: Any, names: dict[Any, Any]) -> Any:
        if isinstance(expr, rx.Tuple):
            return tuple(resolve(field, names) for field in expr.fields)
        if isinstance(expr, rx.TupleGetItem):
            return _element(resolve(expr.tuple_value, names), expr.index)
        return names.get(expr, expr.name) if isinstance(expr, rx.Var) else _leaf(expr)

    after_main = after[name]
    walk(after_main, {})
    return sites


def _is_group(func: Any) -> bool:
    """Whether FuseOps made this function; a region was one before."""
    return isinstance(func, rx.Function) and REGION not in func.attrs


def _callee(mod: Any, call: Any) -> Any:
    return mod[call.op] if isinstance(call.op, rx.GlobalVar) else None


def _key(call: Any, name: Any) -> tuple[Any, ...]:
    return (
        kernel_of(call) or op_name(call),
        *(name(leaf) if isinstance(leaf, rx.Var) else _leaf(leaf) for leaf in operands(call)),
    )


def _element(source: Any, index: int) -> Any:
    """Field `index` of a tuple, or its name when `source` names what one kernel gives."""
    return source[index] if isinstance(source, tuple) else f"{source}[{index}]"


def _leaf(expr: Any) -> str:
    """A constant, also one that FuseOps made an argument of a group; or what is no tensor."""
    return str(expr.value if is_constant(expr) else expr)


class Imported:
    """The dataflow of the imported program, in which the cone of every kernel is found."""

    def __init__(self, mod: Any, provenance: Iterable[Origin]) -> None:
        self.reads: dict[str, list[str]] = json.loads(mod.attrs[IMPORTED])
        self.nodes = {origin.value: origin.nodes for origin in provenance}
        main = mod["main"]
        count = num_input(main)
        self.values = {var.name for var, _ in bindings(main)}
        self.results = [leaf.name for leaf in operands(main.body.body)]
        # several results in one value, or one of them: nothing is computed for it
        self.tuples = {
            var.name
            for var, value in bindings(main)
            if isinstance(value, rx.Tuple | rx.TupleGetItem)
        }
        self.inputs = {param.name for param in main.params[:count]}
        self.names = self.reads.keys() | {param.name for param in main.params}

    def base(self, name: str) -> str | None:
        """The imported value that a value made on the way to it is named after."""
        while name not in self.names:
            shorter = re.sub(r"__\d+$", "", name)
            if shorter == name:
                return None
            name = shorter
        return name

    def cone(self, root: str, stops: set[str]) -> set[str]:
        """`root` and what it is computed from, down to `stops`."""
        found, stack = set(), [root]
        while stack:
            name = stack.pop()
            if name in found or name not in self.reads or (name in stops and name != root):
                continue
            found.add(name)
            if not (name == root and root in stops):
                stack.extend(self.reads[name])
        return found

    def left_out(self, names: set[str]) -> set[str]:
        """Values that only those of the program beside `names` are computed from."""
        kept, dropped = (
            {base for name in some if (base := self.base(name)) is not None}
            for some in (names, self.values - names)
        )
        return set().union(*(self.cone(name, kept) for name in dropped - kept))

    def needed(self) -> tuple[set[str], set[str]]:
        """(values that depend on inputs, values of weights alone) that the results need."""
        live = set().union(*(self.cone(name, set()) for name in self.results))
        varying: set[str] = set()
        for name, reads in self.reads.items():  # in order of definition
            if any(read in varying or read in self.inputs for read in reads):
                varying.add(name)
        return live & varying, live - varying


def groups(
    imported: Imported,
    before: Any,
    after: Any,
    calls: dict[str, list[str | None]],
    needed: dict[str, set[str]],
) -> dict[str, Any]:
    """groups.json: per clone, each kernel call with the imported values and source nodes of it.

    In:     the module before and after FuseOps; clone → the kernel of each of its calls, in order,
            None for a view; clone → the values of the program that it needs at its sizes.
    Out:    a view's values belong to the kernel called next.
    Raises: StageError when an imported operator is in no group, neither folded nor part of the
            packing of weights.
    """
    varying, packed = imported.needed()
    out: dict[str, Any] = {
        "folded": sorted(imported.reads.keys() - varying - packed),
        "transform": sorted(packed),
    }
    for clone, kernels in calls.items():
        reads = _reads(before[clone])
        rows: list[dict[str, Any]] = []
        left_out = imported.left_out(needed[clone])
        covered: set[str] = set()
        cone: set[str] = set()
        for kernel, values in zip(kernels, fused_values(before, after, clone), strict=True):
            for value in values:
                if (root := imported.base(value)) is not None:
                    stops = {
                        base for read in reads[value] if (base := imported.base(read)) is not None
                    }
                    cone |= imported.cone(root, stops | left_out)
            covered |= cone
            if kernel is not None:
                ordered = [name for name in imported.reads if name in cone]
                nodes = list(
                    dict.fromkeys(node for name in ordered for node in imported.nodes.get(name, ()))
                )
                rows.append(
                    {"call": len(rows), "kernel": kernel, "values": ordered, "nodes": nodes}
                )
                cone = set()
        if lost := varying - covered - imported.tuples - left_out:
            raise StageError(
                stage="tensorir", message=f"{clone}: no kernel covers {', '.join(sorted(lost))}"
            )
        out[clone] = rows
    return out


def _reads(func: Any) -> dict[str, list[str]]:
    """Value → the values and inputs that it reads, packed weights left out; for a tuple's element,
    what gave the tuple.
    """
    count = num_input(func)
    weights = {param.name for param in func.params[count:]}
    whole = {
        var: value.tuple_value
        for var, value in bindings(func)
        if isinstance(value, rx.TupleGetItem) and isinstance(value.tuple_value, rx.Var)
    }
    return {
        var.name: [
            whole.get(leaf, leaf).name
            for leaf in operands(value)
            if isinstance(leaf, rx.Var) and leaf.name not in weights
        ]
        for var, value in bindings(func)
    }
