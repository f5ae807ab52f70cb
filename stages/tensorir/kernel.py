"""A PrimFunc read as tensor expressions, so that rules see structure instead of names.

Every block becomes a `Step`: `buffer[indices] = value` over spatial axes, or a reduction. Rules ask
for a step's value at given indices, with the injective steps before it inlined, and emit loops
around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tvm_ffi

from ..compat import tvm

tirx = tvm.tirx
Expr = Any  # a TIR expression
Buffer = Any  # a Var of buffer type
GUARD = "prim.if_then_else"  # the operator whose branches are computed only where they are taken
_IN_FLOAT = ("int8", "uint8", "int16", "uint16")


@dataclass(frozen=True)
class Axis:
    """An iteration variable from 0 to `extent` (an int, or an expression over symbolic sizes)."""

    var: Any
    extent: Any

    @property
    def static(self) -> int | None:
        return self.extent if isinstance(self.extent, int) else None


@dataclass(frozen=True)
class Step:
    """One block. `value` is what is stored; in a reduction it reads `buffer[indices]` itself, and
    `init` starts it.
    """

    name: str
    buffer: Buffer
    indices: tuple[Expr, ...]
    axes: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    init: Expr | None
    value: Expr

    @cached_property
    def is_identity(self) -> bool:
        """Whether element (i, j, …) is written by iteration (i, j, …)."""
        return len(self.indices) == len(self.axes) and all(
            index.same_as(axis.var) for index, axis in zip(self.indices, self.axes, strict=True)
        )

    @cached_property
    def element(self) -> Expr | None:
        """What a reduction adds, when it is a sum: `b` of `acc + b`."""
        if self.init is None or not isinstance(self.value, tirx.Add):
            return None
        for acc, other in ((self.value.a, self.value.b), (self.value.b, self.value.a)):
            if is_load(acc) and same(acc.source, self.buffer):
                return other
        return None


@dataclass(frozen=True)
class Kernel:
    """A PrimFunc whose blocks were all understood. `params` are its buffers in order, `steps` in
    execution order.
    """

    func: Any
    params: tuple[Buffer, ...]
    steps: tuple[Step, ...]

    @cached_property
    def producers(self) -> Mapping[int, Step]:
        return {key(step.buffer): step for step in self.steps}

    @cached_property
    def outputs(self) -> tuple[Step, ...]:
        """Steps that write a parameter."""
        names = {key(param) for param in self.params}
        return tuple(step for step in self.steps if key(step.buffer) in names)

    @cached_property
    def reductions(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.reduce)

    def uses(self, step: Step) -> tuple[Step, ...]:
        """Steps that read what `step` writes."""
        return tuple(
            user
            for user in self.steps
            if user is not step
            and any(same(load.source, step.buffer) for load in loads(user.value))
        )

    def value(
        self,
        step: Step,
        at: Mapping[int, Expr],
        held: Mapping[int, Callable[..., Expr]],
        shared: Shared | None = None,
    ) -> Expr:
        """The value that `step` stores at axis values `at`, injective steps before it inlined.

        held: buffers that are in memory or registers: key → function of the indices that gives the
        element.
        """
        return self.inline(substitute(step.value, at), held, step, shared)

    def inline(
        self,
        value: Expr,
        held: Mapping[int, Callable[..., Expr]],
        step: Step | None = None,
        shared: Shared | None = None,
    ) -> Expr:
        """`value` with loads of inlinable steps replaced by what they compute, and of `held` ones
        by their element.

        What is read twice, however many steps before, is computed once (a `Let` around the whole),
        unless a guard might forbid to compute it. `shared`: where those that need this value keep
        what they share.
        """
        own = Shared() if shared is None or has_guard(value) else shared

        def expand(load: Any) -> Expr:
            source = key(load.source)
            if source in held:
                return held[source](*load.indices)
            producer = self.producers.get(source)
            if producer is None or producer is step:
                return load
            if producer.reduce or not producer.is_identity:
                raise Unfit(f"{producer.name} can not be inlined")
            at = {
                key(axis.var): _unbound(index)
                for axis, index in zip(producer.axes, load.indices, strict=True)
            }
            if has_guard(value):
                return self.value(producer, at, held)
            return own.once(load, lambda: self.value(producer, at, held, own))

        result = map_loads(value, expand)
        return result if own is shared else own.around(result)


class Shared:
    """Values that an expression reads, each computed once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, Expr]] = {}  # structural key → variable, value

    def once(self, load: Any, compute: Callable[[], Expr]) -> Expr:
        """What stands for a load; TVM's analyzer wants an integer variable bound in one place, so
        that only small integers, which a float holds as well, are shared.
        """
        dtype = str(load.ty.dtype)
        if not dtype.startswith("float") and dtype not in _IN_FLOAT:
            return compute()
        name = tvm_ffi.StructuralKey(load)
        if name not in self._known:
            kept_in = dtype if dtype.startswith("float") else "float32"
            value = compute().astype(kept_in)
            self._known[name] = (tirx.Var("shared", kept_in), value)
        return self._known[name][0].astype(dtype)

    def around(self, value: Expr) -> Expr:
        """`value` with the variables that it reads more than once bound, the others replaced."""
        for var, bound in reversed(self._known.values()):
            uses = 0

            def count(one: Any, var: Any = var) -> None:
                nonlocal uses
                uses += same(one, var)

            tvm_ffi.structural_walk(value, (tirx.Var, count))
            value = (
                substitute(value, {key(var): bound}) if uses < 2 else tirx.Let(var, bound, value)
            )
        return value


class Unfit(Exception):
    """A rule met a structure that it does not cover; the dispatcher asks the next rule."""


def read(func: Any, *, accumulates: bool = False) -> Kernel | None:
    """The kernel in an unscheduled PrimFunc; None when a block is neither store nor reduction.

    accumulates: its reductions add to what is there, as those that describe an instruction do.
    """
    root = func.body
    if not isinstance(root, tvm.s_tir.SBlockRealize) or root.block.iter_vars:
        return None
    body = root.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    steps = [_step(nest, accumulates) for nest in nests]
    if any(step is None for step in steps):
        return None
    steps = tuple(step for step in steps if step is not None)
    if len({key(step.buffer) for step in steps}) != len(steps) or _overwrites(steps):
        return None
    buffers = tuple(param for param in func.params if hasattr(param.ty, "shape"))
    return Kernel(func, buffers, steps)


def _overwrites(steps: Sequence[Step]) -> bool:
    """Whether a step reads what a later one writes."""
    later = {key(step.buffer) for step in steps}
    for step in steps:
        later.remove(key(step.buffer))
        if any(key(load.source) in later for load in loads(step.value)):
            return True
    return False


def _step(nest: Any, accumulates: bool) -> Step | None:
    extents: dict[int, Any] = {}  # of the loops that bind no variable yet
    while isinstance(nest, tirx.For):
        if int(nest.kind) != int(tirx.ForKind.SERIAL) or not is_constant(nest.min, 0):
            return None
        extents[key(nest.loop_var)] = nest.extent
        nest = nest.body
    if not isinstance(nest, tvm.s_tir.SBlockRealize) or not is_constant(nest.predicate, 1):
        return None
    block = nest.block
    if block.alloc_buffers or block.match_buffers or not isinstance(block.body, tirx.BufferStore):
        return None
    for value, var in zip(nest.iter_values, block.iter_vars, strict=True):
        # every variable runs over its whole domain, whatever the others do
        extent = 1 if is_constant(value, 0) else extents.pop(key(value), None)
        if extent is None or not is_constant(var.dom.min, 0) or not equal(extent, var.dom.extent):
            return None
    if not all(is_constant(extent, 1) for extent in extents.values()):
        return None
    axes = [Axis(iv.var, as_int(iv.dom.extent)) for iv in block.iter_vars if iv.iter_type == 0]
    reduce = [Axis(iv.var, as_int(iv.dom.extent)) for iv in block.iter_vars if iv.iter_type == 2]
    starts = bool(reduce) and not accumulates
    if len(axes) + len(reduce) != len(block.iter_vars) or starts != (block.init is not None):
        return None
    if block.init is not None and not isinstance(block.init, tirx.BufferStore):
        return None
    store = block.body
    own = [load for load in loads(store.value) if same(load.source, store.buffer)]
    if own and not (reduce and all(_is_at(load, store.indices) for load in own)):
        return None
    init = block.init.value if block.init is not None else None
    indices = tuple(store.indices)
    if len(axes) < len(indices):
        indices, axes = _with_unit_axes(store.buffer, indices, axes)
    elif not indices and all(axis.static == 1 for axis in axes):
        axes = []
    return Step(
        block.name_hint,
        store.buffer,
        indices,
        tuple(axes),
        tuple(reduce),
        init,
        store.value,
    )


def _is_at(load: Any, indices: Sequence[Expr]) -> bool:
    return all(map(tvm_ffi.structural_equal, load.indices, indices))


def _with_unit_axes(
    buffer: Buffer, indices: tuple[Expr, ...], axes: list[Axis]
) -> tuple[tuple[Expr, ...], list[Axis]]:
    """The same with an axis for each dimension of one element that is written at 0, so that the
    step is an identity if it was one but for these.
    """
    given, left, every = iter(axes), len(axes), []
    for index, size in zip(indices, buffer.ty.shape, strict=True):
        if is_constant(index, 0) and is_constant(size, 1):
            every.append(Axis(tirx.Var("unit", index.ty.dtype), 1))
        elif left:
            every.append(next(given))
            left -= 1
    if len(every) != len(indices) or left:
        return indices, axes
    same_order = all(
        is_constant(index, 0) or index.same_as(axis.var)
        for index, axis in zip(indices, every, strict=True)
    )
    return (tuple(axis.var for axis in every), every) if same_order else (indices, axes)


def key(node: Any) -> int:
    """Identity of a TVM node: two Python handles of one node have one key."""
    return int(node.__chandle__())


def same(a: Any, b: Any) -> bool:
    return a.same_as(b)


def equal(a: Any, b: Any) -> bool:
    """Whether two sizes are provably equal."""
    if isinstance(as_int(a), int) and isinstance(as_int(b), int):
        return as_int(a) == as_int(b)
    return bool(tvm.sym.Analyzer().can_prove_equal(a, b))


def is_load(node: Any) -> bool:
    return isinstance(node, tvm.ir.TensorLoad)


def as_int(value: Any) -> Any:
    """A Python int when `value` is constant."""
    return int(value) if isinstance(value, (int, tirx.IntImm)) else value


def is_constant(value: Any, constant: int) -> bool:
    return isinstance(value, (int, tirx.IntImm)) and int(value) == constant


def loads(value: Expr) -> list[Any]:
    """All loads in an expression, with repetitions."""
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (tvm.ir.TensorLoad, found.append))
    return found


def map_loads(value: Expr, replace: Callable[[Any], Expr]) -> Expr:
    """`value` with every load replaced, inner ones first."""
    unfit: list[Unfit] = []

    def guarded(load: Any) -> Expr:  # an exception that crosses TVM comes back as another
        try:
            return replace(load)
        except Unfit as error:
            unfit.append(error)
            return load

    result = tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, guarded))
    if unfit:
        raise unfit[0]
    return result


def _unbound(index: Expr) -> Expr:
    """An index without `Let`: it may be put in several places, and a variable is bound in one."""

    def inlined(let: Any) -> Expr:
        return substitute(let.body, {key(let.var): let.value})

    return tvm_ffi.structural_map(index, (tirx.Let, inlined))


def substitute(value: Expr, at: Mapping[int, Expr]) -> Expr:
    """`value` with variables replaced: key of the variable → expression."""
    return tvm_ffi.structural_map(value, (tirx.Var, lambda var: at.get(key(var), var)))


def depends_on(value: Expr, axis: Axis) -> bool:
    """Whether an expression reads the axis."""
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (tirx.Var, found.append))
    return any(same(var, axis.var) for var in found)


def has_guard(value: Expr) -> bool:
    return GUARD in calls(value)


def calls(value: Expr) -> list[str]:
    """Names of the operators that an expression calls."""
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (tvm.ir.Call, found.append))
    return [getattr(call.op, "name", "") for call in found]


def product(extents: Sequence[Any]) -> Any:
    """Product of extents, an int when all are static."""
    result: Any = 1
    for extent in extents:
        result = result * extent
    return as_int(result)


def ceil_div(size: Any, block: int) -> Any:
    """How many blocks hold `size`, an int when that is static."""
    return -(-size // block) if isinstance(size, int) else (size + block - 1) // block


def bounded(axes: Sequence[Axis]) -> Any:
    """An analyzer that knows the range of every axis."""
    analyzer = tvm.sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, tvm.ir.Range(0, axis.extent))
    return analyzer


def element_dtype(buffer: Buffer) -> str:
    return str(buffer.ty.dtype)
