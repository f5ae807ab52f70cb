"""Products that an intrinsic will compute, written over a weight that is packed for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.stage import Device, Target

from ...compat import tvm
from ...dataflow import Writer
from ..kernel import Axis, Expr, Step, key, map_loads, read, substitute
from ..te_ops import OUT_EWISE_FUSABLE
from .intrinsic import Intrinsic, installed, usable
from .tile import Tiled, best, reads

te, tirx = tvm.te, tvm.tirx
Build = Callable[[Any, Any], Any]  # tensors X and W → the product, a tensor expression


@dataclass(frozen=True)
class Instructions:
    """The intrinsics that a target has, as the passes over Relax see them."""

    target: Target
    known: tuple[Intrinsic, ...]

    @classmethod
    def of(cls, target: Target) -> Instructions:
        return cls(target, usable(installed(), target))

    def find(self, build: Build, x: Any, w: Any) -> Packed | None:
        """How a product of tensors `x` and `w` (shape, dtype) is computed; None without."""
        if not self.known:
            return None
        tensors = [
            te.placeholder(shape, dtype, name) for (shape, dtype), name in ((x, "x"), (w, "w"))
        ]
        kernel = read(te.create_prim_func([*tensors, build(*tensors)]))
        if kernel is None:
            return None
        found = best(kernel, self.known, self.target, kernel.params[1])
        return Packed(found) if found is not None else None


NONE = Instructions(Target(kind="llvm", mcpu="", cores=1, device=Device(threads=1)), ())


@dataclass(frozen=True)
class Packed:
    """A product of two tensors by an intrinsic; the second one, a weight, may be packed first."""

    over: Tiled

    def call(self, writer: Writer, x: Any, weight: Any, hint: str) -> Any:
        """The call that computes the product."""
        first, second, _ = self.over.kernel.params
        packs = [copy for copy in self.over.copies if copy is not None and reads(copy, second)]
        copy = packs[0] if packs else None
        if copy is not None:

            def pack(w: Any) -> Any:
                return _expressions([copy], {key(second): w})

            weight = writer.emit(writer.call_te(pack, weight, hint="pack"))
            second = copy.buffer
        steps = [step for step in self.over.kernel.steps if step is not copy]

        def product(x: Any, w: Any) -> Any:
            return _expressions(steps, {key(first): x, key(second): w})

        return writer.call_te(product, x, weight, hint=hint, attrs=OUT_EWISE_FUSABLE)


def _expressions(steps: Iterable[Step], tensors: Mapping[int, Any]) -> Any:
    """The steps as tensor expressions over `tensors` (by key of the buffer); the last one's."""
    known = dict(tensors)
    for step in steps:
        known[key(step.buffer)] = _expression(step, known)
    return [*known.values()][-1]


def _expression(step: Step, known: Mapping[int, Any]) -> Any:
    summed = [te.reduce_axis((0, axis.extent), axis.var.name) for axis in step.reduce]

    def element(value: Expr, at: Mapping[int, Expr]) -> Expr:
        return map_loads(substitute(value, at), lambda load: known[key(load.source)](*load.indices))

    def compute(*indices: Any) -> Any:
        at = {
            **_bound(step.axes, indices),
            **_bound(step.reduce, [axis.var for axis in summed]),
        }
        if not step.reduce:
            return element(step.value, at)
        return te.sum(element(step.element, at), axis=summed)

    return te.compute([axis.extent for axis in step.axes], compute, step.name)


def _bound(axes: Sequence[Axis], values: Sequence[Expr]) -> dict[int, Expr]:
    return {key(axis.var): value for axis, value in zip(axes, values, strict=True)}
