"""The program with its choices applied: chosen schedules in place, chosen alternatives at their
regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.errors import StageError

from ..compat import tvm
from ..program import TRANSFORM
from ..records import Choices, Record

relax = tvm.relax


@dataclass(frozen=True)
class Replacement:
    """What a region's call becomes in one clone: the kernel of an alternative, and its
    arguments.
    """

    clone: str
    kernel: str  # the dense PrimFunc that is called today
    func: Any  # scheduled PrimFunc
    func_name: str
    arguments: tuple[int | str, ...]


@dataclass(frozen=True)
class Applied:
    """`mod` has no transform function; `main` takes inputs, then `packed` (indices into what
    `main_transform_params` returns), then `arrays` (structure and values of alternatives)."""

    mod: Any
    packed: tuple[int, ...]
    arrays: tuple[str, ...]


def with_schedules(mod: Any, choices: Choices, records: Sequence[Record]) -> Any:
    """The module with each kernel's chosen record in place of the unscheduled PrimFunc.

    Raises: StageError when a choice names a record that is not there.
    """
    by_id = {record.id: record for record in records}
    out = mod.clone()
    for choice in choices.kernels:
        if (record := by_id.get(choice.record)) is None:
            raise StageError(
                message=f"kernel {choice.kernel}: record {choice.record} is not among the records"
            )
        scheduled = record.module()[choice.kernel].without_attr("global_symbol")  # private
        out.update_func(mod.get_global_var(choice.kernel), scheduled)
    return out


def apply(
    mod: Any, num_inputs: int, replacements: Sequence[Replacement], arrays: Mapping[str, Any]
) -> Applied:
    """Puts alternatives at their regions and gives `main` and its clones the parameters that are
    then needed.

    In:  module with `main`, its clones and scheduled PrimFuncs; `arrays`: name → TensorType of
         packed arrays.
    Out: unused packed weights are no longer parameters; the transform function is left out.
    """
    functions = {
        gv.name_hint: (gv, func)
        for gv, func in mod.functions_items()
        if isinstance(func, relax.Function) and gv.name_hint != TRANSFORM
    }
    clones = {name: pair for name, pair in functions.items() if name != "main"}
    used_arrays = tuple(
        dict.fromkeys(a for r in replacements for a in r.arguments if isinstance(a, str))
    )

    out = tvm.IRModule({}, attrs=mod.attrs)
    for gv, func in mod.functions_items():
        if not isinstance(func, relax.Function):
            out.update_func(gv, func)
    kernels = {}
    for replacement in replacements:
        if replacement.func_name not in kernels:
            gv = tvm.ir.GlobalVar(replacement.func_name)
            relax.expr._update_type(gv, replacement.func.ty)  # call_tir wants a typed callee
            kernels[replacement.func_name] = gv
            out.update_func(gv, replacement.func)

    bodies: dict[str, _Rewritten] = {}
    for name, (_, func) in functions.items():
        extra = {array: relax.Var(_identifier(array), arrays[array]) for array in used_arrays}
        here = {r.kernel: r for r in replacements if r.clone == name}
        body = _Regions(here, kernels, extra).visit_expr(func.body)
        bodies[name] = _Rewritten(func, body, extra)
    used = _used_packed(bodies, clones, num_inputs)

    new_gvs = {name: tvm.ir.GlobalVar(name) for name in functions}
    for name in [*clones, "main"]:  # main last: its calls need the new signatures
        rewritten = bodies[name]
        params = list(rewritten.func.params)
        kept = (
            params[:num_inputs]
            + [params[num_inputs + i] for i in used]
            + list(rewritten.extra.values())
        )
        body = rewritten.body
        if name == "main":
            extra = list(rewritten.extra.values())
            body = _Calls({n: new_gvs[n] for n in clones}, num_inputs, used, extra).visit_expr(body)
        func = relax.Function(
            kept, body, rewritten.func.ret_ty, rewritten.func.is_pure, rewritten.func.attrs
        )
        relax.expr._update_type(new_gvs[name], func.ty)
        out.update_func(new_gvs[name], func)
    out = relax.transform.Normalize()(out)
    return Applied(relax.transform.DeadCodeElimination(["main"])(out), used, used_arrays)


@dataclass(frozen=True)
class _Rewritten:
    func: Any
    body: Any
    extra: Mapping[str, Any]


def _used_packed(
    bodies: Mapping[str, _Rewritten], clones: Mapping[str, Any], num_inputs: int
) -> tuple[int, ...]:
    """Indices of packed weights that some body reads, handing them on to a clone not counted."""
    used: set[int] = set()
    for rewritten in bodies.values():
        index = {var: i for i, var in enumerate(rewritten.func.params[num_inputs:])}
        handed_on: list[Any] = []

        def visit(
            node: Any, index: Mapping[Any, int] = index, handed_on: list[Any] = handed_on
        ) -> None:
            if isinstance(node, relax.Call):
                if isinstance(node.op, tvm.ir.GlobalVar) and node.op.name_hint in clones:
                    handed_on.extend(node.args[num_inputs:])
                else:
                    for arg in node.args:
                        fields = arg.fields if isinstance(arg, relax.Tuple) else [arg]
                        used.update(index[field] for field in fields if field in index)
            elif isinstance(node, relax.Tuple):
                used.update(index[field] for field in node.fields if field in index)

        relax.analysis.post_order_visit(rewritten.body, visit)
    return tuple(sorted(used))


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


@relax.expr_functor.mutator
class _Regions(relax.PyExprMutator):
    """Calls of the kernels in `here` become calls of the alternatives that replace them."""

    def __init__(
        self, here: Mapping[str, Replacement], kernels: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.here, self.kernels, self.extra = here, kernels, extra

    def visit_call_(self, call: Any) -> Any:
        if not (isinstance(call.op, tvm.ir.Op) and call.op.name == "relax.call_tir"):
            return super().visit_call_(call)
        if (found := self.here.get(call.args[0].name_hint)) is None:
            return call
        inputs = call.args[1].fields
        arguments = [inputs[a] if isinstance(a, int) else self.extra[a] for a in found.arguments]
        return relax.call_tir(self.kernels[found.func_name], arguments, out_ty=list(call.ty_args))


@relax.expr_functor.mutator
class _Calls(relax.PyExprMutator):
    """Calls of clones take the packed weights that are left, and the arrays of alternatives."""

    def __init__(
        self, gvs: Mapping[str, Any], num_inputs: int, used: Sequence[int], extra: Sequence[Any]
    ) -> None:
        super().__init__()
        self.gvs, self.num_inputs, self.used, self.extra = gvs, num_inputs, used, extra

    def visit_call_(self, call: Any) -> Any:
        if not (isinstance(call.op, tvm.ir.GlobalVar) and call.op.name_hint in self.gvs):
            return super().visit_call_(call)
        args, n = list(call.args), self.num_inputs
        kept = args[:n] + [args[n + i] for i in self.used] + list(self.extra)
        return relax.Call(self.gvs[call.op.name_hint], kept)
