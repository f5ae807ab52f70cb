"""Regions of a Relax program as alternatives see them: a product with a weight, and what
happens to it elementwise.

The epilogue becomes one scalar expression: it is legalized and fused as TVM would do it, its
blocks are inlined into one, and that block's value is what a schedule stores instead of the bare
product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tvm_ffi

from .compat import tvm
from .legalize import legalize_operators
from .program import REGION, Program, source_names

rx, tirx = tvm.relax, tvm.tirx
# an epilogue beyond this would be computed over and over: values used twice are inlined twice
EXPRESSION_NODES = 2000


class Unsupported(ValueError):
    """Why no sparse kernel can take a region's place."""


@dataclass(frozen=True)
class Region:
    """A call of a region function in `main`.

    name:       of the region function
    weight:     source name of the weight that the product reads, and `parameter`, its index in the
                function
    transpose:  the weight is used as [K, N] (compressed rows run over its columns)
    activation: index of the parameter with X [M, K]
    rows:       M, over the function's own symbols; `rows_of_call`: over the recipe's dims
    """

    name: str
    func: Any
    weight: str
    parameter: int
    transpose: bool
    activation: int
    rows: Any
    rows_of_call: Any
    n: int
    k: int
    product: Any

    def count_rows(self, sizes: Mapping[str, int]) -> int:
        """M at given sizes of the recipe's dims."""
        return _evaluate(self.rows_of_call, sizes)


def region_calls(program: Program) -> Iterator[tuple[Any, Any, dict[int, str]]]:
    """Region functions with the weights that they are called with.

    Out: call, function and {parameter index: source name}, in order of the calls.
    """
    mod, params = program.mod, source_names(program.mod, program.io)
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if not isinstance(call, rx.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
                continue
            func = mod[call.op]
            if isinstance(func, rx.Function) and (func.attrs or {}).get("Composite") == REGION:
                named = enumerate(call.args)
                weights = {
                    i: params[arg.name] for i, arg in named if getattr(arg, "name", "") in params
                }
                yield call, func, weights


def read_region(call: Any, func: Any, weights: Mapping[int, str]) -> Region:
    """The product inside a region function, as it is called.

    Raises: Unsupported with the reason.
    """
    values = {b.var: b.value for block in func.body.blocks for b in block.bindings}
    products = [(v, e) for v, e in values.items() if _is_op(e, "relax.matmul")]
    if len(products) != 1:
        raise Unsupported(f"{len(products)} matrix products")
    product, matmul = products[0]
    x, weight = matmul.args
    transpose = True
    if _is_op(values.get(weight), "relax.permute_dims"):
        weight, transpose = values[weight].args[0], False
    params = {param: index for index, param in enumerate(func.params)}
    if params.get(weight) not in weights or weight.ty.ndim != 2:
        raise Unsupported("the product reads no 2-D weight of the model")
    if x not in params:
        raise Unsupported("the activations are computed inside the region")
    if x.ty.ndim != 2:
        raise Unsupported(f"activations have {x.ty.ndim} dimensions, not 2")
    if any(v.ty.dtype != "float32" for v in (x, weight, product)):
        raise Unsupported("only float32 products have kernels")
    rows, k = x.ty.shape.values
    n = product.ty.shape.values[1]
    if not isinstance(n, tirx.IntImm) or not isinstance(k, tirx.IntImm):
        raise Unsupported("the weight's sizes are symbolic")
    index = params[weight]
    return Region(
        name=call.op.name_hint,
        func=func,
        weight=weights[index],
        parameter=index,
        transpose=transpose,
        activation=params[x],
        rows=rows,
        rows_of_call=call.args[params[x]].ty.shape.values[0],
        n=n.value,
        k=k.value,
        product=product,
    )


@dataclass(frozen=True)
class Epilogue:
    """`value`: what is stored for `product[row, column]`; `inputs`: the buffers that it
    reads → region parameter index (None: the product).

    `func`: the epilogue as a kernel of its own: `inputs` in order, then the result.
    """

    func: Any
    value: Any
    product: Any
    row: Any
    column: Any
    inputs: dict[Any, int | None]
    region: Region

    def buffers(self, m: Any) -> dict[int, Any]:
        """Region parameter index → the buffer of a kernel with m rows."""
        indices = dict.fromkeys(self.inputs.values())
        return {index: self._buffer(index, m) for index in indices if index is not None}

    def _buffer(self, index: int, m: Any) -> Any:
        type_ = self.region.func.params[index].ty
        shape = [m if _equal(n, self.region.rows) else n for n in type_.shape.values]
        sizes = [n.value if isinstance(n, tirx.IntImm) else n for n in shape]
        if any(not isinstance(n, int) and n is not m for n in sizes):
            raise Unsupported(
                "an operand of the epilogue has a symbolic size that is not the rows'"
            )
        return tirx.decl_buffer(sizes, type_.dtype, name=f"E{index}")

    def finish(self, buffers: Mapping[int, Any], product: Any, i: Any, j: Any) -> Any:
        """The expression at row i and column j of a product that was computed in place, reading
        `buffers`."""
        at = {self.row: i, self.column: j}

        def placed(read: Any) -> Any:
            if read.source.same_as(self.product):
                return product
            indices = [_narrow(index, at) for index in read.indices]
            parameter = self.inputs[read.source]
            assert parameter is not None
            return tirx.BufferLoad(buffers[parameter], indices)

        return tvm_ffi.structural_map(self.value, (tvm.ir.TensorLoad, placed))


def read_epilogue(region: Region) -> Epilogue | None:
    """The epilogue of a region; None when its result is the bare product.

    Raises: Unsupported when it is not one elementwise expression.
    """
    if region.func.body.body.same_as(region.product):
        return None
    func, operands = _fuse(region)
    block = _single_block(func)
    row, column = (one.var for one in block.iter_vars)
    store = block.body
    if len(store.indices) != 2 or not all(
        a.same_as(b) for a, b in zip(store.indices, (row, column), strict=True)
    ):
        raise Unsupported("the epilogue moves elements")
    analyzer = tvm.sym.Analyzer()
    analyzer.bind(column, tvm.ir.Range(0, tirx.const(region.n, "int64")))
    nodes = 0

    def simplified(read: Any) -> Any:
        return tirx.BufferLoad(read.source, [analyzer.simplify(index) for index in read.indices])

    def count(node: Any) -> Any:
        nonlocal nodes
        nodes += 1
        return node

    value = tvm_ffi.structural_map(store.value, (tvm.ir.TensorLoad, simplified))
    tvm_ffi.structural_map(value, count)
    if nodes > EXPRESSION_NODES:
        raise Unsupported("the epilogue uses its values too often to be computed in place")
    inputs = dict(zip(func.params, operands, strict=False))  # the last parameter is the output
    product = next(buffer for buffer, index in inputs.items() if index is None)
    return Epilogue(func, value, product, row, column, inputs, region)


def _fuse(region: Region) -> tuple[Any, list[int | None]]:
    """The epilogue as one PrimFunc, and the region parameters that it takes (None: the product)."""
    m = tirx.Var("rows", "int64")
    new: dict[Any, Any] = {
        region.product: rx.Var("product", _with_rows(region.product.ty, region, m))
    }
    params = {p: rx.Var(p.name, _with_rows(p.ty, region, m)) for p in region.func.params}
    bindings = [b for block in region.func.body.blocks for b in block.bindings]
    needed = _needed(region, bindings)
    used = [p for p in region.func.params if p in needed]
    builder = rx.BlockBuilder()
    with builder.function("main", [new[region.product], *(params[p] for p in used)]):
        with builder.dataflow():
            new.update(params)
            for binding in bindings:
                if binding.var in needed and not binding.var.same_as(region.product):
                    new[binding.var] = builder.emit(_substitute(binding.value, new, region, m))
            result = builder.emit_output(new[region.func.body.body])
        builder.emit_func_output(result)
    passes = rx.transform
    mod = tvm.transform.Sequential(
        [legalize_operators(), passes.AnnotateTIROpPattern(), passes.FuseOps(2), passes.FuseTIR()]
    )(builder.get())
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    calls = [call for call in calls if isinstance(call, rx.Call)]
    if len(calls) != 1 or not _is_op(calls[0], "relax.call_tir"):
        raise Unsupported("the epilogue is not elementwise")
    order = {params[p].name: i for i, p in enumerate(region.func.params) if p in needed}
    operands = [order.get(arg.name) for arg in calls[0].args[1].fields]
    return mod[calls[0].args[0]], operands


def _needed(region: Region, bindings: list[Any]) -> set[Any]:
    """Variables that the result depends on without looking into the product."""
    values = {binding.var: binding.value for binding in bindings}
    needed: set[Any] = set()
    todo = [region.func.body.body]
    while todo:
        var = todo.pop()
        if var in needed:
            continue
        needed.add(var)
        if var in values and not var.same_as(region.product):
            todo += [leaf for leaf in values[var].args if isinstance(leaf, rx.Var)]
    return needed


def _substitute(value: Any, new: Mapping[Any, Any], region: Region, m: Any) -> Any:
    """A call on other variables, shapes with `m` rows."""

    def argument(arg: Any) -> Any:
        if isinstance(arg, rx.ShapeExpr):
            return rx.ShapeExpr([m if _equal(n, region.rows) else n for n in arg.values])
        return new.get(arg, arg) if isinstance(arg, rx.Var) else arg

    return rx.Call(value.op, [argument(arg) for arg in value.args], value.attrs, value.ty_args)


def _with_rows(type_: Any, region: Region, m: Any) -> Any:
    shape = [m if _equal(n, region.rows) else n for n in type_.shape.values]
    return rx.TensorType(shape, type_.dtype)


def _single_block(func: Any) -> Any:
    """The one block that is left of a function when all others are inlined into it."""
    sch = tvm.s_tir.Schedule(func)
    *inner, _ = sch.get_child_blocks(sch.get_sblock("root"))
    try:
        for block in inner:
            sch.compute_inline(block)
    except tvm.s_tir.ScheduleError as error:
        raise Unsupported("the epilogue is not elementwise") from error
    (last,) = sch.get_child_blocks(sch.get_sblock("root"))
    return sch.get(last)


def _narrow(index: Any, at: Mapping[Any, Any]) -> Any:
    """An index expression in 32 bits: 64-bit casts would hide from the vectorizer that lanes are
    consecutive."""
    match index:
        case tirx.IntImm():
            return index.value
        case tirx.Var() if index in at:
            return at[index]
        case tirx.Add():
            return _narrow(index.a, at) + _narrow(index.b, at)
        case tirx.Mul():
            return _narrow(index.a, at) * _narrow(index.b, at)
        case tirx.FloorDiv():
            return tirx.floordiv(_narrow(index.a, at), _narrow(index.b, at))
        case tirx.FloorMod():
            return tirx.floormod(_narrow(index.a, at), _narrow(index.b, at))
    raise Unsupported(f"the epilogue reads an operand at {index}")


def _evaluate(size: Any, sizes: Mapping[str, int]) -> int:
    known = tvm_ffi.structural_map(
        size, (tirx.Var, lambda var: tirx.IntImm("int64", sizes[var.name]))
    )
    return int(tvm.sym.Analyzer().simplify(known))


def _equal(a: Any, b: Any) -> bool:
    return tvm_ffi.structural_equal(a, b) or bool(tvm.sym.Analyzer().can_prove_equal(a, b))


def _is_op(expr: Any, name: str) -> bool:
    return isinstance(expr, rx.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == name
