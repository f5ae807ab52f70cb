"""The passes of tensorir over Relax: each on the smallest program that shows it, before and after.

What kernels compute is tested where they are run (tests/rules, test_lowered_operators.py).
"""

from __future__ import annotations

from typing import Any

from graphs import assert_same, graph, rx

from tapml_stages.compat import tvm
from tapml_stages.dataflow import remove_dead_code
from tapml_stages.program import TRANSFORM
from tapml_stages.relax.regions import mark_regions
from tapml_stages.tensorir.attention import fuse_attention
from tapml_stages.tensorir.clones import add_dispatcher, clone_buckets
from tapml_stages.tensorir.dense import pack_dense
from tapml_stages.tensorir.group_norm import lower_group_norm
from tapml_stages.tensorir.layout import block_layout
from tapml_stages.tensorir.lifting import lift_packing
from tapml_stages.tensorir.ordering import lower_ordering

op = rx.op
CLONES = {"main_b2": {"batch": 2}, "main_dyn": {}}


def tensor(*shape: int, dtype: str = "float32") -> Any:
    return rx.TensorType(shape, dtype)


def kernel(mod: Any, name: str) -> Any:
    """Gives calls of a kernel that a pass made: what it is called, and what it gives."""
    return lambda args, out: rx.call_tir(mod.get_global_var(name), args, out_ty=out)


def test_buckets_are_copies_of_main_at_their_sizes() -> None:
    def twice(emit: Any, x: Any) -> Any:
        return op.add(x, x)

    mod = clone_buckets(graph(twice, {"x": ("batch", 4)}).mod, CLONES)
    assert {gvar.name_hint for gvar in mod.get_global_vars()} == set(CLONES)
    for name, rows in (("main_b2", 2), ("main_dyn", "batch")):
        expected = graph(twice, {"x": (rows, 4)}).mod
        assert_same(mod, tvm.IRModule({name: expected["main"]}), name)


def test_main_calls_the_clone_for_the_sizes_of_its_inputs() -> None:
    program = graph(lambda emit, x: op.add(x, x), {"x": ("batch", 4)})
    mod = add_dispatcher(clone_buckets(program.mod, CLONES), CLONES)
    batch = tvm.tirx.Var("batch", "int64")
    any_size = rx.TensorType([batch, 4], "float32")
    x = rx.Var("x", any_size)

    def branch(clone: str, given: Any, wanted: Any, *bindings: Any) -> Any:
        result, common = rx.Var("result", wanted), rx.Var("common", any_size)
        call = rx.Call(mod.get_global_var(clone), [given])
        block = [*bindings, rx.VarBinding(result, call), rx.MatchCast(common, result, any_size)]
        return rx.SeqExpr([rx.BindingBlock(block)], common)

    cast = rx.Var("cast", tensor(2, 4))
    chosen = rx.Var("chosen", any_size)
    choice = rx.If(
        batch == 2,
        branch("main_b2", cast, tensor(2, 4), rx.MatchCast(cast, x, tensor(2, 4))),
        branch("main_dyn", x, any_size),
    )
    body = rx.SeqExpr([rx.BindingBlock([rx.VarBinding(chosen, choice)])], chosen)
    expected = tvm.IRModule(mod.functions)
    expected["main"] = rx.Function([x], body, any_size)
    assert_same(mod, rx.transform.Normalize()(expected))


def test_an_attention_is_one_kernel_that_reads_heads_where_they_lie() -> None:
    def written_out(emit: Any, q: Any, k: Any, v: Any) -> Any:
        q, v = (emit(op.permute_dims(one, [0, 2, 1, 3])) for one in (q, v))
        scores = emit(op.matmul(q, emit(op.permute_dims(k, [0, 2, 3, 1]))))
        powers = emit(op.nn.softmax(emit(op.multiply(scores, rx.const(0.5))), axis=-1))
        return op.permute_dims(emit(op.matmul(powers, v)), [0, 2, 1, 3])

    shapes = dict.fromkeys("qkv", (2, 8, 4, 16))  # [batch, row, head, depth]
    mod = remove_dead_code(fuse_attention(graph(written_out, shapes).mod))

    def after(emit: Any, q: Any, k: Any, v: Any) -> Any:
        mixed = emit(kernel(mod, "attention")((q, k, v), tensor(2, 8, 4, 16)))
        heads = emit(op.reshape(emit(op.permute_dims(mixed, [0, 2, 1, 3])), (2, 4, 8, 16)))
        return op.permute_dims(heads, [0, 2, 1, 3])

    assert_same(mod, graph(after, shapes).mod)


def test_a_group_norm_is_a_kernel_over_groups() -> None:
    def before(emit: Any, x: Any, g: Any, b: Any) -> Any:
        return op.nn.group_norm(x, g, b, 3, 1, [2, 3], 1e-5)

    shapes = {"x": (2, 12, 5, 7)}, {"g": (12,), "b": (12,)}
    mod = lower_group_norm(graph(before, *shapes).mod)

    def after(emit: Any, x: Any, g: Any, b: Any) -> Any:
        rows = emit(op.reshape(x, (2, 3, 4, 35)))
        g, b = (emit(op.reshape(one, (3, 4))) for one in (g, b))
        made = emit(kernel(mod, "group_norm")((rows, g, b), tensor(2, 3, 4, 35)))
        return op.reshape(made, (2, 12, 5, 7))

    assert_same(mod, graph(after, *shapes).mod)


def test_a_topk_along_another_axis_is_a_kernel_over_rows_between_transposes() -> None:
    def before(emit: Any, x: Any) -> Any:
        return op.topk(x, 2, axis=0, ret_type="values")

    mod = lower_ordering(graph(before, {"x": (5, 3)}).mod)

    def after(emit: Any, x: Any) -> Any:
        moved = emit(op.permute_dims(x, [1, 0]))
        return op.permute_dims(emit(kernel(mod, "topk")((moved,), tensor(3, 2))), [1, 0])

    assert_same(mod, graph(after, {"x": (5, 3)}).mod)


def test_a_convolution_works_on_blocks_of_channels_and_packs_its_weight() -> None:
    def before(emit: Any, x: Any, w: Any) -> Any:
        return op.abs(emit(op.nn.relu(emit(op.nn.conv2d(x, w, padding=1)))))

    shapes = {"x": (1, 3, 6, 6)}, {"w": (12, 3, 3, 3)}
    mod = remove_dead_code(block_layout(graph(before, *shapes).mod, 8))

    def after(emit: Any, x: Any, w: Any) -> Any:
        padded = emit(op.nn.pad(w, [0, 4, 0, 0, 0, 0, 0, 0]))
        blocks = emit(op.reshape(padded, (2, 8, 1, 3, 3, 3)))
        packed = emit(op.permute_dims(blocks, [0, 2, 4, 5, 3, 1]))
        y = emit(kernel(mod, "conv")((x, packed), tensor(1, 2, 6, 6, 8)))
        y = emit(op.abs(emit(op.nn.relu(y))))
        plain = emit(op.reshape(emit(op.permute_dims(y, [0, 1, 4, 2, 3])), (1, 16, 6, 6)))
        return op.reshape(emit(op.strided_slice(plain, [1], [0], [12])), (1, 12, 6, 6))

    assert_same(mod, graph(after, *shapes).mod)


def linear(emit: Any, x: Any, w: Any) -> Any:
    return op.matmul(x, emit(op.permute_dims(w)))


LINEAR = {"x": ("batch", 8)}, {"w": (21, 8)}


def test_a_product_reads_its_weight_in_panels() -> None:
    mod = remove_dead_code(pack_dense(graph(linear, *LINEAR).mod))

    def after(emit: Any, x: Any, w: Any) -> Any:
        padded = emit(op.nn.pad(emit(op.permute_dims(w)), [0, 0, 0, 11]))
        panels = emit(op.permute_dims(emit(op.reshape(padded, (8, 2, 16))), [1, 0, 2]))
        rows = x.ty.shape.values[0]
        return kernel(mod, "dense")((x, panels), rx.TensorType([rows, 21], "float32"))

    assert_same(mod, graph(after, *LINEAR).mod)


def test_a_region_takes_its_weight_in_panels_that_main_makes() -> None:
    mod = remove_dead_code(pack_dense(mark_regions(graph(linear, *LINEAR).mod)))

    def region(_emit: Any, x: Any, w: Any) -> Any:
        rows = x.ty.shape.values[0]
        return kernel(mod, "dense")((x, w), rx.TensorType([rows, 21], "float32"))

    expected = graph(region, {"x": ("batch", 8)}, {"w": (2, 8, 16)}).mod["main"]
    assert_same(mod, tvm.IRModule({"region_0__main": expected}), "region_0__main")

    def main(emit: Any, x: Any, w: Any) -> Any:
        padded = emit(op.nn.pad(w, [0, 11, 0, 0]))
        panels = emit(op.permute_dims(emit(op.reshape(padded, (2, 16, 8))), [0, 2, 1]))
        return rx.Call(mod.get_global_var("region_0__main"), [x, panels])

    assert_same(mod, graph(main, *LINEAR).mod)


def test_what_weights_give_is_computed_by_the_transform_function() -> None:
    def before(emit: Any, x: Any, w: Any) -> Any:
        return op.matmul(x, emit(op.permute_dims(emit(op.multiply(w, rx.const(2.0))))))

    mod = lift_packing(graph(before, {"x": ("batch", 8)}, {"w": (6, 8)}).mod, ("main",))
    expected = graph(lambda _emit, x, w: op.matmul(x, w), {"x": ("batch", 8)}, {"w": (8, 6)}).mod
    assert_same(mod, expected)

    params = rx.Var("params", rx.TupleType([tensor(6, 8)]))
    builder = rx.BlockBuilder()
    with builder.function(TRANSFORM, [params]):
        with builder.dataflow():
            w = builder.emit(rx.TupleGetItem(params, 0))
            packed = builder.emit(op.permute_dims(builder.emit(op.multiply(w, rx.const(2.0)))))
            out = builder.emit_output(rx.Tuple([packed]))
        builder.emit_func_output(out)
    assert_same(mod, builder.get(), TRANSFORM)
