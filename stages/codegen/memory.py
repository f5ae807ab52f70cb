"""Which activations share memory: tensors to storages, the largest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..compat import tvm
from ..dataflow import op_name

relax = tvm.relax
PAGE = 4096  # the VM's allocator rounds up to it


def plan_memory(mod: Any) -> Any:
    """`mod` whose tensors of bounded size lie in storages that they share.

    StaticPlanBlockMemory says which tensors can be planned, but gives them storages in the order of
    the program, so that small ones occupy what large ones need. Here the largest are placed first,
    each into a storage that is free while it lives.
    In:     after CallTIRRewrite; upper bounds of symbols as attributes of the functions.
    Source: "greedy by size" and "greedy by breadth" for shared objects, Pisarchyk and Lee 2020
            (arXiv 2001.03288).
    """
    planned = relax.transform.StaticPlanBlockMemory()(mod)
    out = tvm.IRModule(planned.functions, attrs=planned.attrs)
    for gvar, func in planned.functions.items():
        if isinstance(func, relax.Function) and (moved := _share(func)) is not None:
            out.update_func(gvar, moved)
    return out


@dataclass
class _Tensor:
    """An activation: its call of alloc_tensor, its size in bytes, the bindings that it lives in."""

    var: Any
    call: Any
    bytes: int
    first: int
    last: int


@dataclass
class _Storage:
    bytes: int
    tensors: list[_Tensor] = field(default_factory=list)

    def is_free(self, tensor: _Tensor) -> bool:
        return all(one.last < tensor.first or tensor.last < one.first for one in self.tensors)


def _share(func: Any) -> Any | None:
    """The function over storages that are shared anew; None when that needs no fewer bytes."""
    bindings = [binding for block in func.body.blocks for binding in block.bindings]
    if any(not isinstance(b, relax.VarBinding) or isinstance(b.value, relax.If) for b in bindings):
        return None
    sizes = _storage_sizes(bindings)
    tensors = _tensors(func, bindings, sizes)
    storages = _assign(tensors)
    used = {one.call.args[0] for one in tensors}
    if _total(storages) >= sum(sizes[var] for var in used):
        return None
    return _rewritten(func, bindings, storages, used)


def _storage_sizes(bindings: Sequence[Any]) -> dict[Any, int]:
    """Storages of constant size, in bytes."""
    sizes = {}
    for binding in bindings:
        if op_name(binding.value) == "relax.memory.alloc_storage":
            (size,) = binding.value.args[0].values
            if isinstance(size, tvm.tirx.IntImm):
                sizes[binding.var] = pages(int(size))
    return sizes


def _tensors(func: Any, bindings: Sequence[Any], sizes: dict[Any, int]) -> list[_Tensor]:
    """The planned tensors with what they need, and from which binding to which they live."""
    upper = dict((func.attrs or {}).get("tir_var_upper_bound", {}))
    analyzer = tvm.sym.Analyzer()
    for var in relax.analysis.defined_symbolic_vars(func):
        if var.name in upper:
            analyzer.bind(var, tvm.ir.Range(0, int(upper[var.name]) + 1))
    found: dict[Any, _Tensor] = {}
    roots: dict[Any, set[Any]] = {}  # variable → tensors whose memory it may be
    for index, binding in enumerate(bindings):
        var, value = binding.var, binding.value
        if op_name(value) == "relax.memory.alloc_tensor" and value.args[0] in sizes:
            bound = _bytes(value, analyzer, sizes[value.args[0]])
            found[var], roots[var] = _Tensor(var, value, bound, index, index), {var}
            continue
        read = set[Any]().union(*(roots.get(leaf, ()) for leaf in _variables(value)))
        for root in read:
            found[root].last = index
        roots[var] = read
    for leaf in _variables(func.body.body):
        for root in roots.get(leaf, ()):
            found[root].last = len(bindings)
    return list(found.values())


def _bytes(call: Any, analyzer: Any, most: int) -> int:
    """The largest size of a tensor; that of the storage that it was given, where none is proven."""
    tensor = call.ty
    size = tvm.tirx.IntImm("int64", -(-tvm.DataType(str(tensor.dtype)).bits // 8))
    for extent in tensor.shape.values:
        size = size * extent
    bound = int(analyzer.const_int_bound(analyzer.simplify(size)).max_value)
    return pages(min(bound, most))


def pages(size: int) -> int:
    """Bytes that the allocator takes for `size`."""
    return -(-size // PAGE) * PAGE


def _variables(expr: Any) -> Iterator[Any]:
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            yield from _variables(arg)
    elif isinstance(expr, relax.Tuple):
        for one in expr.fields:
            yield from _variables(one)
    elif isinstance(expr, relax.TupleGetItem):
        yield from _variables(expr.tuple_value)


def _assign(tensors: Sequence[_Tensor]) -> list[_Storage]:
    """Each tensor in a storage: the best of two orders of placing them."""
    return min((_placed(order) for order in (_by_size(tensors), _by_breadth(tensors))), key=_total)


def _total(storages: Sequence[_Storage]) -> int:
    return sum(one.bytes for one in storages)


def _by_size(tensors: Sequence[_Tensor]) -> list[_Tensor]:
    return sorted(tensors, key=lambda one: (-one.bytes, one.first))


def _by_breadth(tensors: Sequence[_Tensor]) -> list[_Tensor]:
    """Those that live where most bytes do come first, the largest of them before the others."""
    alive: dict[int, list[_Tensor]] = {}
    for tensor in tensors:
        for at in range(tensor.first, tensor.last + 1):
            alive.setdefault(at, []).append(tensor)
    fullest = sorted(alive, key=lambda at: -sum(one.bytes for one in alive[at]))
    order = {id(one): one for at in fullest for one in _by_size(alive[at])}
    return list(order.values())


def _placed(order: Sequence[_Tensor]) -> list[_Storage]:
    """Each tensor in the smallest storage that is free and large enough; else the largest free one
    grows; else there is one more.
    """
    storages: list[_Storage] = []
    for tensor in order:
        free = sorted((one for one in storages if one.is_free(tensor)), key=lambda one: one.bytes)
        chosen = next(
            (one for one in free if one.bytes >= tensor.bytes), free[-1] if free else None
        )
        if chosen is None:
            storages.append(chosen := _Storage(0))
        chosen.bytes = max(chosen.bytes, tensor.bytes)
        chosen.tensors.append(tensor)
    return storages


def _rewritten(
    func: Any, bindings: Sequence[Any], storages: Sequence[_Storage], dropped: set[Any]
) -> Any:
    """The function with a storage before the first of its tensors, and each tensor in its own."""
    place = {one.var: storage for storage in storages for one in storage.tensors}
    made: dict[int, Any] = {}  # index of a storage → its variable
    builder = relax.BlockBuilder()
    new: list[Any] = []
    for binding in bindings:
        if binding.var in dropped:
            continue
        storage = place.get(binding.var)
        if storage is None:
            new.append(binding)
            continue
        number = storages.index(storage)
        if number not in made:
            value = builder.normalize(
                relax.op.memory.alloc_storage(
                    relax.ShapeExpr([storage.bytes]), 0, "global", "uint8"
                )
            )
            made[number] = relax.Var(f"storage_{number}", value.ty)
            new.append(relax.VarBinding(made[number], value))
        old = binding.value
        value = relax.Call(old.op, [made[number], *old.args[1:]], old.attrs, old.ty_args)
        new.append(relax.VarBinding(binding.var, builder.normalize(value)))
    body = relax.SeqExpr([relax.BindingBlock(new)], func.body.body)
    return relax.Function(
        func.params, builder.normalize(body), func.ret_ty, func.is_pure, func.attrs
    )
