"""Shape arithmetic, simplified with the bounds of the symbolic dimensions."""

from __future__ import annotations

from typing import Any

from ..compat import tvm
from ..dataflow import Writer, op_name, rewrite, rx, shape_of


def fold_shapes(mod: Any) -> Any:
    """`mod` whose shapes are simplified: `T.min(1000000000, batch)` is `batch` where batch ≤ 64.

    Slices that turn out to take everything are removed, which is where ONNX's "to the end" bounds
    come from.
    """
    analyzer = bounded_analyzer(mod["main"])

    def simplify(expr: Any) -> Any:
        if isinstance(expr, rx.ShapeExpr):
            return rx.ShapeExpr([analyzer.simplify(size) for size in expr.values])
        return expr

    def visit(writer: Writer, _var: Any, value: Any) -> Any:
        if not isinstance(value, rx.Call):
            return None
        value = rx.Call(value.op, [simplify(arg) for arg in value.args], value.attrs, value.ty_args)
        if op_name(value) == "relax.strided_slice" and _takes_everything(
            writer.typed(value), analyzer
        ):
            return value.args[0]
        return value

    return rewrite(mod, visit)


def bounded_analyzer(func: Any) -> Any:
    """An analyzer that knows the bounds of the function's symbolic dimensions."""
    analyzer = tvm.sym.Analyzer()
    lower, upper = (func.attrs.get(f"tir_var_{side}_bound", {}) for side in ("lower", "upper"))
    for var in rx.analysis.defined_symbolic_vars(func):
        if var.name in upper:
            low = int(lower[var.name]) if var.name in lower else 0
            analyzer.bind(var, tvm.ir.Range(low, int(upper[var.name]) + 1))
    return analyzer


def _takes_everything(call: Any, analyzer: Any) -> bool:
    """Whether a slice has the shape of its input, in steps of one."""
    strides = call.args[4] if len(call.args) > 4 else rx.Tuple([])
    if any(int(step.value) != 1 for step in strides.fields):
        return False
    return all(
        analyzer.can_prove_equal(out, size)
        for out, size in zip(shape_of(call), shape_of(call.args[0]), strict=True)
    )
