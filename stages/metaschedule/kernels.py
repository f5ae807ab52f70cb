"""The kernels of a program and the calls that decide what their time is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tapml.errors import StageError

from ..compat import tvm
from ..dataflow import kernel_of, op_name
from ..measure import Arg
from ..opaque import CELL, KERNEL
from ..program import REGION, TRANSFORM, Program
from ..records import Record
from ..recurrence import RECUR

relax = tvm.relax
Args = tuple[Arg | int, ...]


@dataclass(frozen=True)
class Site:
    """The calls of one kernel in one clone of `main`, at concrete sizes.

    args: arguments of the PrimFunc in order, the last `outputs` of them written, beside those that
          the kernel updates in place
    """

    clone: str
    args: Args
    outputs: int
    count: int = 1


@dataclass(frozen=True)
class Kernel:
    """A PrimFunc of the program that `main` reaches: what tensorir proposes for it, who calls it.

    region:   the region that it implements, or ""
    symbolic: it takes sizes that are known at run time only; sites hold a size in the middle
    """

    name: str
    func: Any
    default: Record
    sites: tuple[Site, ...]
    region: str
    symbolic: bool

    @property
    def calls(self) -> int:
        return sum(site.count for site in self.sites)


def find_kernels(program: Program, defaults: Sequence[Record]) -> tuple[Kernel, ...]:
    """Every kernel that is called, in the order of the calls.

    Raises: StageError for a kernel without a default record.
    """
    by_kernel = {record.kernel: record for record in defaults}
    kernels = []
    for name, sites in _sites(program).items():
        func = program.mod[name]
        if name not in by_kernel:
            raise StageError(message=f"kernel {name} has no default schedule among the records")
        kernels.append(
            Kernel(
                name=name,
                func=func,
                default=by_kernel[name],
                sites=tuple(sites),
                region=str(func.attrs.get(REGION, "")),
                symbolic=is_symbolic(func),
            )
        )
    return tuple(kernels)


def middle(program: Program) -> dict[str, int]:
    """The sizes at which symbolic kernels are timed."""
    return {name: round(math.sqrt(b.min * b.max)) for name, b in program.io.dims.items()}


def _sites(program: Program) -> dict[str, list[Site]]:
    sizes = middle(program)
    found: dict[str, dict[tuple[str, Args], Site]] = {}
    for gv, func in sorted(program.mod.functions_items(), key=lambda item: item[0].name_hint):
        clone = gv.name_hint
        if not isinstance(func, relax.Function) or clone == TRANSFORM:
            continue
        symbols = {str(var.name) for var in relax.analysis.defined_symbolic_vars(func)}
        func = func.bind_symbolic_vars({name: sizes[name] for name in symbols & sizes.keys()})
        for call in _calls(func):
            kernel = kernel_of(call)
            site = _site(clone, kernel, call)
            site = replace(site, args=_with_positions(program.mod[kernel], site.args))
            known = found.setdefault(kernel, {})
            if (before := known.get((clone, site.args))) is not None:
                site = replace(site, count=before.count + 1)
            known[clone, site.args] = site
    return {kernel: list(by_args.values()) for kernel, by_args in found.items()}


def _calls(func: Any) -> list[Any]:
    """The calls of PrimFuncs in a Relax function, in order."""
    calls: list[Any] = []

    def visit(node: Any) -> None:
        if kernel_of(node):
            calls.append(node)

    relax.analysis.post_order_visit(func.body, visit)
    return calls


def _site(clone: str, kernel: str, call: Any) -> Site:
    try:
        inputs = [
            _tensor(arg.ty) if isinstance(arg.ty, relax.TensorType) else int(arg)
            for arg in call.args[1].fields
        ]
        outputs = [_tensor(ty) for ty in _new(call)]
    except TypeError as error:  # a size that binding the dims has left open
        message = f"kernel {kernel} in {clone} has a size that follows from no dimension"
        raise StageError(message=message) from error
    return Site(clone, (*inputs, *outputs), len(outputs))


def _new(call: Any) -> list[Any]:
    """Types of the outputs of a call that are not one of its arguments, updated in place."""
    fields = [
        field
        for ty in call.ty_args
        for field in (ty.fields if isinstance(ty, relax.TupleType) else [ty])
    ]
    if op_name(call) != "relax.call_tir_inplace":
        return fields
    pairs = zip(fields, call.attrs.inplace_indices, strict=True)
    return [field for field, place in pairs if int(place) < 0]


def _with_positions(func: Any, args: Args) -> Args:
    """The arguments of a kernel on states: a cache is half full there, a recurrence goes on through
    all tokens.
    """
    attrs = func.attrs or {}
    if attrs.get(KERNEL, CELL) == CELL:
        return args
    if attrs[KERNEL] == RECUR:
        half = next(arg for arg in args[3:] if isinstance(arg, Arg)).shape[1]
    else:
        new, context = sorted(arg.shape[2] for arg in args[:2] if isinstance(arg, Arg))
        half = (context - new) // 2
    return tuple(
        replace(arg, fill=half) if isinstance(arg, Arg) and arg.dtype == "int64" else arg
        for arg in args
    )


def _tensor(ty: Any) -> Arg:
    return Arg(tuple(int(dim) for dim in ty.shape), str(ty.dtype))


def is_symbolic(func: Any) -> bool:
    """Whether a PrimFunc takes sizes that are known at run time only."""
    shapes = (param.ty.shape for param in func.params if hasattr(param.ty, "shape"))
    return any(not isinstance(dim, tvm.tirx.IntImm) for shape in shapes for dim in shape)
