"""A Relax function written anew, binding by binding, every value keeping its name.

Names are how a kernel is traced to its source operators: a rewritten value keeps its name, what a
rewrite adds on the way to value `v` is called `v__1`, `v__2`, … .
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .compat import tvm

rx = tvm.relax
Visit = Callable[["Writer", Any, Any], Any]


def _ops(names: str) -> frozenset[str]:
    return frozenset(f"relax.{name}" for name in names.split())


UNARY = _ops(
    """abs acos asin atan ceil clip cos cosh erf exp floor log negative round rsqrt sigmoid sign
    sin sinh sqrt square tan tanh nn.relu nn.gelu nn.gelu_tanh nn.silu nn.leakyrelu nn.softplus
    astype logical_not"""
)
BINARY = _ops("add subtract multiply divide maximum minimum power mod floor_divide")
# Zero in, finite out, whatever the other operand, as long as that is finite too.
ZERO_SAFE = _ops(
    """abs add subtract multiply maximum minimum clip tanh sigmoid erf sqrt square negative
    floor ceil round sin cos nn.relu nn.gelu nn.gelu_tanh nn.silu nn.leakyrelu nn.softplus astype"""
)
ELEMENTWISE = UNARY | BINARY
KERNEL_CALLS = _ops("call_tir call_tir_inplace")


class Writer:
    """The new body in the making. `values`: old variable → new expression; `definitions`: new
    variable → its value."""

    def __init__(
        self, mod: Any, params: Sequence[Any] = (), num_input: int = 0, builder: Any = None
    ) -> None:
        self.mod = mod
        self.values: dict[Any, Any] = {}
        self.definitions: dict[Any, Any] = {}
        self._weights = set(params[num_input:])
        self._names = {param.name for param in params}
        self._builder = rx.BlockBuilder(mod) if builder is None else builder
        self._bindings: list[Any] = []
        self._name = "value"
        self._added = 0

    def emit(self, expr: Any, name: str | None = None) -> Any:
        """A new variable bound to `expr`; named after the value being written unless told."""
        if isinstance(expr, rx.Var):
            return expr
        if name is None:
            self._added += 1
            name = f"{self._name}__{self._added}"
        return self._bind(expr, name, rx.DataflowVar)

    def definition(self, expr: Any, *ops: str) -> Any | None:
        """The call that `expr` is bound to, if it is of one of `ops` (any, when none is given)."""
        call = self.definitions.get(expr) if isinstance(expr, rx.Var) else None
        return call if call is not None and (not ops or op_name(call) in ops) else None

    def is_weight(self, expr: Any) -> bool:
        """Whether `expr` depends on weights and constants alone, so that it is computed once."""
        return all(leaf in self._weights or is_constant(leaf) for leaf in operands(expr))

    def typed(self, expr: Any) -> Any:
        """`expr` with its type inferred."""
        return self._builder.normalize(expr)

    def call_te(
        self, fn: Callable[..., Any], *args: Any, hint: str, attrs: dict[str, Any] | None = None
    ) -> Any:
        """A call_tir to a PrimFunc made from a TE function (added to the module), not yet bound."""
        return self._builder.call_te(fn, *args, primfunc_name_hint=hint, primfunc_attrs=attrs)

    def write(self, func: Any, visit: Visit) -> Any:
        """The function that `visit` makes of `func`."""
        results = set(operands(func.body.body))
        for var, old in bindings(func):
            self._name, self._added = var.name, 0
            value = self.substitute(old)
            new = visit(self, var, value)
            new = value if new is None else new
            if var in results:
                written, new = new, self._bind(self._take_back(new), var.name, rx.Var)
                same = [one for one, value in self.values.items() if written.same_as(value)]
                self.values.update(dict.fromkeys(same, new))  # what else stands for it
            elif not isinstance(new, rx.Var) and scalar_value(new) is None:
                new = self._bind(new, var.name, rx.DataflowVar)
            self.values[var] = new
        return self.function(func.params, self.substitute(func.body.body), func.attrs)

    def bind(self, var: Any, value: Any, *, result: bool = False) -> None:
        """Writes an old binding over the new variables; `result` when the function returns it."""
        self.values[var] = self._bind(
            self.substitute(value), var.name, rx.Var if result else rx.DataflowVar
        )

    def function(self, params: Sequence[Any], result: Any, attrs: Any = None) -> Any:
        """A function over all that was written."""
        body = rx.SeqExpr([rx.DataflowBlock(self._bindings)], result)
        return rx.Function(params, self._builder.normalize(body), None, True, attrs)

    def nested(self, params: Sequence[Any]) -> Writer:
        """A writer for another function of the same module."""
        return Writer(self.mod, params, len(params), self._builder)

    def add_function(self, func: Any, name: str) -> Any:
        """The global variable of a function added to the module; equal functions are added once."""
        return self._builder.add_func(func, name)

    def module(self) -> Any:
        """The module with the PrimFuncs that `call_te` added."""
        return self._builder.get()

    def substitute(self, expr: Any) -> Any:
        """`expr` over the new variables; its type is inferred again where an operand changed."""
        if isinstance(expr, rx.Var):
            return self.values.get(expr, expr)
        if isinstance(expr, rx.Tuple):
            return rx.Tuple([self.substitute(field) for field in expr.fields])
        if isinstance(expr, rx.TupleGetItem):
            source = self.substitute(expr.tuple_value)
            fields: Any = source if isinstance(source, rx.Tuple) else self.definitions.get(source)
            return (
                fields.fields[expr.index]
                if isinstance(fields, rx.Tuple)
                else rx.TupleGetItem(source, expr.index)
            )
        if isinstance(expr, rx.Call):
            args = [self.substitute(arg) for arg in expr.args]
            return rx.Call(expr.op, args, expr.attrs, expr.ty_args)
        return expr

    def _take_back(self, expr: Any) -> Any:
        """The value of `expr`, its binding removed, when that was the last one written."""
        if self._bindings and self._bindings[-1].var.same_as(expr):
            self._names.discard(expr.name)
            return self._bindings.pop().value
        return expr

    def _bind(self, expr: Any, name: str, kind: type) -> Any:
        value = self._builder.normalize(expr)
        unique, k = name, 1
        while unique in self._names:
            unique, k = f"{name}__{k}", k + 1
        self._names.add(unique)
        var = kind(unique, value.ty)
        self._bindings.append(rx.VarBinding(var, value))
        self.definitions[var] = value
        if self.is_weight(value):
            self._weights.add(var)
        return var


def rewrite(mod: Any, visit: Visit, name: str = "main") -> Any:
    """`mod` with the bindings of function `name` written anew.

    `visit(writer, var, value)` sees each value over the new variables and answers with what takes
    its place: an expression, a variable already written, or None to keep it.
    """
    func = mod[name]
    writer = Writer(mod, func.params, num_input(func))
    new = writer.write(func, visit)
    out = writer.module()
    out.update_func(out.get_global_var(name), new)
    return out


def remove_dead_code(mod: Any, *entries: str) -> Any:
    """`mod` without bindings and functions that no entry needs."""
    return rx.transform.DeadCodeElimination(list(entries or ("main",)))(mod)


def num_input(func: Any) -> int:
    """How many of the parameters are inputs; the rest are weights."""
    return (
        int(func.attrs["num_input"])
        if func.attrs and "num_input" in func.attrs
        else len(func.params)
    )


def use_counts(func: Any) -> Counter[str]:
    """Value name → how many operands read it; what the function returns counts as well."""
    counts = Counter(leaf.name for leaf in operands(func.body.body) if isinstance(leaf, rx.Var))
    for _, value in bindings(func):
        counts.update(leaf.name for leaf in operands(value) if isinstance(leaf, rx.Var))
    return counts


def bindings(func: Any) -> Iterator[tuple[Any, Any]]:
    """Every (variable, value) of a Relax function, in order."""
    for block in func.body.blocks:
        for binding in block.bindings:
            yield binding.var, binding.value


def op_name(expr: Any) -> str:
    """`relax.add`, …; of a call of a function its name; "" for what is no call."""
    if not isinstance(expr, rx.Call):
        return ""
    return expr.op.name if isinstance(expr.op, tvm.ir.Op) else getattr(expr.op, "name_hint", "")


def kernel_of(expr: Any) -> str:
    """Name of the PrimFunc that a call_tir or a call_tir_inplace runs; "" for anything else."""
    return expr.args[0].name_hint if op_name(expr) in KERNEL_CALLS else ""


def is_operator_call(expr: Any) -> bool:
    """Whether this is a call of an operator of Relax, not of a function."""
    return isinstance(expr, rx.Call) and isinstance(expr.op, tvm.ir.Op)


def operands(expr: Any) -> Iterator[Any]:
    """The variables and constants that a value reads, tuples opened, shapes left out."""
    if isinstance(expr, rx.Call):
        for arg in expr.args:
            yield from operands(arg)
    elif isinstance(expr, rx.Tuple):
        for field in expr.fields:
            yield from operands(field)
    elif isinstance(expr, rx.TupleGetItem):
        yield from operands(expr.tuple_value)
    elif isinstance(expr, rx.Var) or is_constant(expr):
        yield expr


def parameters(names: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
    """Parameters of a function to be called with `arguments`.

    A size such as `batch * 5` is a symbol of its own there, since nothing in the function would
    define `batch`.
    """
    symbols: dict[str, Any] = {}

    def size(expr: Any) -> Any:
        if isinstance(expr, tvm.tirx.IntImm | tvm.tirx.Var):
            return expr
        return symbols.setdefault(str(expr), tvm.tirx.Var(f"rows{len(symbols) or ''}", "int64"))

    return [
        rx.Var(name, rx.TensorType([size(n) for n in arg.ty.shape.values], arg.ty.dtype))
        for name, arg in zip(names, arguments, strict=True)
    ]


def is_constant(expr: Any) -> bool:
    return isinstance(expr, tvm.ir.GenericConst)


def shape_of(expr: Any) -> list[Any]:
    """The sizes of a tensor: int where static, else the symbolic expression."""
    return [
        int(size) if isinstance(size, tvm.tirx.IntImm) else size for size in expr.ty.shape.values
    ]


def scalar_value(expr: Any) -> float | int | None:
    """The number in a constant of one element, else None."""
    if not is_constant(expr):
        return None
    value = expr.value.numpy()
    return value.reshape(()).item() if value.size == 1 else None


def same_dtype(*tensors: Any) -> bool:
    """Whether they have one element type; a product of a wider one does not: `out_dtype`."""
    return len({str(tensor.ty.dtype) for tensor in tensors}) == 1


def same_shape(left: Any, right: Any) -> bool:
    """Whether two lists of sizes are provably equal."""
    return len(left) == len(right) and all(
        tvm.sym.Analyzer().can_prove_equal(a, b) for a, b in zip(left, right, strict=True)
    )
