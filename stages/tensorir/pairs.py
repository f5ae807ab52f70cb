"""1x1 convolutions and the depthwise ones that read them, made one kernel where what lies between
them is larger than caches: it would be written to memory and read back.

After FuseOps, so that the epilogues of both are in place. Whether a pair can be one kernel is for
the rule `pointwise_depthwise` to say.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tapml.stage import Target

from ..compat import tvm
from ..dataflow import Writer, bindings, kernel_of, op_name, rewrite, rx, shape_of, use_counts
from ..program import REGION
from .kernel import Unfit
from .rules.pointwise_depthwise import pointwise_depthwise

LARGE = 4 << 20  # bytes; what is smaller stays in second-level caches, and each kernel has its tile


def pair_convolutions(mod: Any, target: Target, name: str = "main") -> Any:
    """`mod` whose function `name` calls one kernel for each such pair."""
    uses = use_counts(mod[name])

    def visit(writer: Writer, _var: Any, call: Any) -> Any:
        if (second := _group(mod, call)) is None:
            return None
        for k, operand in enumerate(call.args):
            before = writer.definition(operand)
            first = _group(mod, before)
            if before is None or first is None or uses[operand.name] > 1 or not _is_large(operand):
                continue
            both = _joined(writer, first, second, k)
            if not _is_taken(mod, both, target):
                continue
            rest = op_name(call).removeprefix("fused_")
            gvar = writer.add_function(both, f"{op_name(before)}_{rest}")
            return rx.Call(gvar, [*before.args, *call.args[:k], *call.args[k + 1 :]])
        return None

    return rewrite(mod, visit, name)


def _group(mod: Any, call: Any) -> Any | None:
    """The function that FuseOps made, when this calls one."""
    if not isinstance(call, rx.Call) or not isinstance(call.op, rx.GlobalVar):
        return None
    func = mod.functions.get(call.op)  # none yet of a pair
    fused = isinstance(func, rx.Function) and func.attrs and "Primitive" in func.attrs
    return func if fused and REGION not in func.attrs else None


def _is_large(value: Any) -> bool:
    """Whether it has more bytes than `LARGE`, of sizes that are known."""
    sizes = shape_of(value)
    return all(isinstance(size, int) for size in sizes) and 4 * prod(sizes) > LARGE


def _joined(writer: Writer, first: Any, second: Any, k: int) -> Any:
    """`first`, and `second` on its result, which is argument `k` of it."""
    first, second = map(rx.utils.copy_with_new_vars, (first, second))
    params = [*first.params, *second.params[:k], *second.params[k + 1 :]]
    inner = writer.nested(params)
    for var, value in bindings(first):
        inner.bind(var, value)
    inner.values[second.params[k]] = inner.substitute(first.body.body)
    result = second.body.body
    for var, value in bindings(second):
        inner.bind(var, value, result=var.same_as(result))
    return inner.function(params, inner.substitute(result), second.attrs)


def _is_taken(mod: Any, func: Any, target: Target) -> bool:
    """Whether the rule takes the kernel that FuseTIR makes of a group."""
    kernels = {gv: one for gv, one in mod.functions_items() if isinstance(one, tvm.tirx.PrimFunc)}
    builder = rx.BlockBuilder(tvm.IRModule(kernels))
    pair = builder.add_func(func, "pair")
    params = [rx.Var(param.name, param.ty) for param in func.params]
    with builder.function("caller", params):
        with builder.dataflow():
            result = builder.emit_output(rx.Call(pair, params))
        builder.emit_func_output(result)
    fused = rx.transform.FuseTIR()(builder.get())
    ((_, call),) = bindings(fused["caller"])
    kernel = fused[kernel_of(call)]
    try:
        return pointwise_depthwise(kernel, target) is not None
    except Unfit:
        return False
