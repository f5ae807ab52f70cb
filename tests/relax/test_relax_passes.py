"""The passes of the relax room: each on the smallest program that shows it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from graphs import assert_golden, assert_same, graph, random_weights, run, rx
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name, remove_dead_code
from tapml_stages.noops import remove_noops
from tapml_stages.program import IMPORTED, Program, load
from tapml_stages.relax.arithmetic import canonicalize
from tapml_stages.relax.batch_norm import fold_batch_norm
from tapml_stages.relax.gather import elementwise_before_take, one_hot_to_take
from tapml_stages.relax.norms import fuse_rms_norm
from tapml_stages.relax.padding import fold_padding
from tapml_stages.relax.passes import operator_counts, passes, remember_imported
from tapml_stages.relax.regions import mark_regions
from tapml_stages.relax.shapes import fold_shapes
from tapml_stages.relax.stage import RelaxPasses

op = rx.op


def operators(mod, name: str = "main") -> list[str]:
    return [op_name(value).removeprefix("relax.") for _, value in bindings(mod[name])]


def relax_all(program: Program):
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    return mod


def test_clip_as_onnx_imports_it_becomes_one_clip():
    def imported(emit, x):
        low = emit(op.where(op.isnan(rx.const(0.0)), rx.const(-np.inf), rx.const(0.0)))
        high = emit(op.where(op.isnan(rx.const(6.0)), rx.const(np.inf), rx.const(6.0)))
        return op.minimum(emit(op.maximum(x, low)), high)

    before = graph(imported, {"x": ("batch", 4)})
    expected = graph(lambda emit, x: op.clip(x, 0.0, 6.0), {"x": ("batch", 4)})
    assert_same(remove_dead_code(canonicalize(before.mod)), expected.mod)


def test_a_maximum_that_comes_as_tensorir_is_a_maximum_again():
    builder = rx.BlockBuilder()
    x = rx.Var("x", rx.TensorType((3, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(builder.call_te(tvm.topi.maximum, x, rx.const(0.0)))
        builder.emit_func_output(out)
    expected = graph(lambda emit, x: op.maximum(x, rx.const(0.0)), {"x": (3, 4)})
    mod = remove_dead_code(canonicalize(builder.get()))
    assert_same(mod, expected.mod)


def test_bounds_that_cross_are_no_clip():
    def crossed(emit, x):
        return op.minimum(emit(op.maximum(x, rx.const(6.0))), rx.const(0.0))

    assert operators(canonicalize(graph(crossed, {"x": (4,)}).mod)) == ["maximum", "minimum"]


def test_a_bound_that_gives_the_result_its_shape_stays():
    """One row and a bound of four are four rows, also where the bound is one number."""

    def bounded(emit, x, bound):
        four = emit(op.broadcast_to(rx.const(bound), (4, 5)))
        return op.sum(emit(op.maximum(x, four)), axis=0)

    for bound in (0.25, -np.inf):
        before = graph(lambda emit, x, c=bound: bounded(emit, x, c), {"x": (1, 5)})
        after = before.with_mod(remove_dead_code(canonicalize(before.mod)))
        x = np.random.default_rng(0).uniform(-1, 1, (1, 5)).astype("float32")
        np.testing.assert_array_equal(run(after.mod, [x], []), run(before.mod, [x], []))


def test_a_maximum_of_other_elements_than_its_own_stays_tensorir():
    te = tvm.te

    def crossed(a, b):
        return te.compute(a.shape, lambda i, j: tvm.tirx.max(a[i, j], b[j, i]))

    builder = rx.BlockBuilder()
    params = [rx.Var(name, rx.TensorType((4, 4), "float32")) for name in "ab"]
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(builder.call_te(crossed, *params))
        builder.emit_func_output(out)
    assert operators(canonicalize(builder.get())) == ["call_tir"]


def test_a_kernel_of_two_results_stays_tensorir():
    te, builder = tvm.te, rx.BlockBuilder()
    a, b = (te.placeholder((3,), name=name) for name in "ab")
    outs = [te.compute((3,), lambda i: a[i] + b[i]), te.compute((3,), lambda i: a[i] - b[i])]
    x, y = (rx.Var(name, rx.TensorType((3,), "float32")) for name in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            kernel = builder.add_func(te.create_prim_func([a, b, *outs]), "both")
            out = builder.emit_output(rx.call_tir(kernel, [x, y], [x.ty, y.ty]))
        builder.emit_func_output(out)
    assert operators(canonicalize(builder.get())) == ["call_tir"]


def test_an_infinite_bound_is_none():
    before = graph(
        lambda emit, x: op.abs(emit(op.maximum(rx.const(-np.inf), x))), {"x": ("batch", 4)}
    )
    expected = graph(lambda emit, x: op.abs(x), {"x": ("batch", 4)})
    assert_same(remove_dead_code(canonicalize(before.mod)), expected.mod)


def test_the_maximum_of_a_stack_is_a_maximum():
    def stacked(emit, x):
        zeros = emit(op.broadcast_to(rx.const(0.0), (2, 4)))
        return op.max(emit(op.stack((zeros, x), axis=0)), axis=[0])

    before = graph(stacked, {"x": (2, 4)})
    expected = graph(lambda emit, x: op.maximum(rx.const(0.0), x), {"x": (2, 4)})
    assert_same(remove_dead_code(canonicalize(before.mod)), expected.mod)


def test_division_by_a_constant_is_multiplication():
    before = graph(lambda emit, x: op.divide(x, rx.const(4.0)), {"x": (3,)})
    expected = graph(lambda emit, x: op.multiply(x, rx.const(0.25)), {"x": (3,)})
    assert_same(canonicalize(before.mod), expected.mod)


def test_division_by_a_constant_whose_inverse_loses_digits_stays():
    for dtype, number in (("float32", 1e-40), ("float16", 60000.0)):
        divisor = rx.const(number, dtype)
        before = graph(lambda emit, x, c=divisor: op.divide(x, c), {"x": (3,)}, dtype=dtype)
        assert operators(canonicalize(before.mod)) == ["divide"]


def test_division_stays_when_the_recipe_says_so():
    before = graph(lambda emit, x: op.divide(x, rx.const(4.0)), {"x": (3,)})
    assert operators(canonicalize(before.mod, reciprocal=False)) == ["divide"]


def test_a_slice_to_the_end_is_no_slice_within_the_bounds():
    def sliced(emit, x):
        return op.abs(emit(op.strided_slice(x, [0], [0], [10**9], [1], assume_inbound=False)))

    before = graph(sliced, {"x": ("batch", 4)})
    expected = graph(lambda emit, x: op.abs(x), {"x": ("batch", 4)})
    assert_same(fold_shapes(before.mod), expected.mod)


def test_a_slice_of_a_part_stays():
    before = graph(lambda emit, x: op.strided_slice(x, [1], [0], [3]), {"x": ("batch", 4)})
    assert_same(fold_shapes(before.mod), before.mod)


def test_chains_that_move_nothing_vanish():
    def moved(emit, x):
        y = emit(op.permute_dims(emit(op.permute_dims(x, [1, 0, 2])), [1, 0, 2]))
        y = emit(op.squeeze(emit(op.expand_dims(y, [0])), [0]))
        return op.abs(emit(op.reshape(emit(op.reshape(y, (6, 4))), (2, 3, 4))))

    before = graph(moved, {"x": (2, 3, 4)})
    expected = graph(lambda emit, x: op.abs(x), {"x": (2, 3, 4)})
    assert_same(remove_dead_code(remove_noops(before.mod)), expected.mod)


def test_a_broadcast_that_the_operator_does_itself_vanishes():
    def wide(emit, x, b):
        return op.add(x, emit(op.broadcast_to(b, (3, 4))))

    before = graph(wide, {"x": (3, 4)}, {"b": (4,)})
    expected = graph(lambda emit, x, b: op.add(x, b), {"x": (3, 4)}, {"b": (4,)})
    assert_same(remove_dead_code(remove_noops(before.mod)), expected.mod)


def one_hot(emit, ids, table):
    column = emit(op.reshape(ids, (2, 5, 1)))
    hot = emit(op.equal(column, rx.const(np.arange(7).reshape(1, 1, 7), "int32")))
    return op.matmul(emit(op.astype(hot, "float32")), table)


def test_a_product_with_one_hot_rows_is_a_lookup_in_a_table_with_zero_rows_around():
    def looked_up(emit, ids, table):
        column = emit(op.reshape(ids, (2, 5, 1)))
        padded = emit(op.nn.pad(table, [1, 1, 0, 0]))
        row = emit(op.reshape(column, (2, 5)))
        row = emit(op.add(emit(op.clip(row, -1, 7)), rx.const(1, "int32")))
        return op.take(padded, row, axis=0, mode="fast")

    shapes = {"ids": (2, 5)}, {"table": (7, 3)}
    mod = remove_dead_code(one_hot_to_take(graph(one_hot, *shapes, dtype="int32").mod))
    assert_same(mod, graph(looked_up, *shapes, dtype="int32").mod)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(ids=st.lists(st.integers(-3, 9), min_size=10, max_size=10))
def test_one_hot_rows_are_looked_up_and_ids_out_of_range_give_zeros(ids):
    before = graph(one_hot, {"ids": (2, 5)}, {"table": (7, 3)}, dtype="int32")
    mod = remove_dead_code(one_hot_to_take(before.mod))
    assert "take" in operators(mod)
    assert "matmul" not in operators(mod)
    weights, values = random_weights(before), np.array(ids, "int32").reshape(2, 5)
    inside = ((values >= 0) & (values < 7))[..., None]
    expected = np.where(inside, weights[0][values.clip(0, 6)], 0)
    np.testing.assert_array_equal(run(mod, [values], weights), expected)


def test_ids_of_a_narrow_type_stay_one_hot_rows():
    before = graph(one_hot, {"ids": (2, 5)}, {"table": (7, 3)}, dtype="uint8")
    assert "take" not in operators(one_hot_to_take(before.mod))


def test_what_follows_a_lookup_row_by_row_is_computed_on_the_table():
    def before(emit, ids, table, bias):
        return op.tanh(emit(op.add(emit(op.take(table, ids, axis=0)), bias)))

    def after(emit, ids, table, bias):
        rows = emit(op.tanh(emit(op.add(table, emit(op.squeeze(bias, [0, 1]))))))
        return op.take(rows, ids, axis=0)

    shapes = {"ids": ("batch", 5)}, {"table": (7, 3), "bias": (1, 1, 3)}
    mod = elementwise_before_take(graph(before, *shapes, dtype="int32").mod)
    expected = graph(after, *shapes, dtype="int32")
    assert_same(remove_dead_code(remove_noops(remove_dead_code(mod))), expected.mod)


def test_a_lookup_that_meets_another_activation_stays():
    def mixed(emit, ids, table):
        rows = emit(op.take(table, ids, axis=0))
        return op.multiply(rows, emit(op.astype(emit(op.expand_dims(ids, [1])), "float32")))

    before = graph(mixed, {"ids": (5,)}, {"table": (7, 3)}, dtype="int32")
    assert operators(elementwise_before_take(before.mod))[-1] == "multiply"


def normalised(emit, x, w, b, gamma, beta, mean, variance):
    y = emit(op.add(emit(op.nn.conv2d(x, w, padding=1)), b))
    return rx.TupleGetItem(
        emit(op.nn.batch_norm(y, gamma, beta, mean, variance, axis=1, training=False)), 0
    )


def test_batch_norm_alone_is_a_product_and_a_sum_of_what_weights_give():
    def before(emit, x, gamma, beta, mean, variance):
        made = op.nn.batch_norm(x, gamma, beta, mean, variance, axis=1, training=False)
        return op.abs(emit(rx.TupleGetItem(emit(made), 0)))

    def after(emit, x, gamma, beta, mean, variance):
        deviation = emit(op.sqrt(emit(op.add(variance, rx.const(1e-5)))))
        scale = emit(op.divide(gamma, deviation))
        shift = emit(op.negative(emit(op.multiply(mean, scale))))
        shift = emit(op.add(beta, shift))
        y = emit(op.multiply(x, emit(op.reshape(scale, (1, 6, 1, 1)))))
        return op.abs(emit(op.add(y, emit(op.reshape(shift, (1, 6, 1, 1))))))

    vectors = dict.fromkeys(("gamma", "beta", "mean", "variance"), (6,))
    shapes = {"x": ("batch", 6, 5, 5)}, vectors
    mod = remove_dead_code(fold_batch_norm(graph(before, *shapes).mod))
    assert_same(mod, graph(after, *shapes).mod)


@pytest.mark.slow
def test_batch_norm_is_folded_into_the_convolution_and_the_numbers_stay():
    vectors = dict.fromkeys(("gamma", "beta", "mean", "variance"), (6,))
    before = graph(
        normalised, {"x": (1, 3, 5, 5)}, {"w": (6, 3, 3, 3), "b": (1, 6, 1, 1), **vectors}
    )
    mod = remove_dead_code(fold_batch_norm(before.mod))
    assert "nn.batch_norm" not in operators(mod)
    assert operators(mod).count("nn.conv2d") == 1
    weights = random_weights(before)
    weights[-1] = np.abs(weights[-1]) + 0.5
    x = np.random.default_rng(1).standard_normal((1, 3, 5, 5), "float32")
    np.testing.assert_allclose(
        run(mod, [x], weights), run(before.mod, [x], weights), rtol=1e-5, atol=1e-5
    )


def padded_conv(emit, x, w, widths=(0, 0, 0, 0, 0, 1, 2, 3), value=0.0, mode="constant"):
    return emit(op.nn.conv2d(emit(op.nn.pad(x, widths, mode, value)), w, strides=2, padding=1))


def test_zeros_around_the_pixels_are_the_convolutions_own_padding():
    program = graph(padded_conv, {"x": (2, 3, 9, 8)}, {"w": (4, 3, 3, 3)})
    mod = remove_dead_code(fold_padding(program.mod))
    assert operators(mod) == ["nn.conv2d"]
    ((_, call),) = bindings(mod["main"])
    assert [int(width) for width in call.attrs.padding] == [1, 3, 2, 4]
    (weight,) = random_weights(program)
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 8)).astype("float32")
    np.testing.assert_array_equal(run(mod, [x], [weight]), run(program.mod, [x], [weight]))


@pytest.mark.parametrize(
    "kept",
    [{"value": 1.0}, {"mode": "reflect"}, {"widths": (0, 0, 0, 1, 0, 1, 2, 3)}],
    ids=["ones", "reflected", "channels"],
)
def test_other_padding_stays(kept):
    channels = 4 if "widths" in kept else 3
    program = graph(
        lambda emit, x, w: padded_conv(emit, x, w, **kept),
        {"x": (2, 3, 9, 8)},
        {"w": (4, channels, 3, 3)},
    )
    assert operators(remove_dead_code(fold_padding(program.mod))) == ["nn.pad", "nn.conv2d"]


def test_six_operators_of_an_rms_norm_are_one():
    def written_out(emit, x, w):
        square = emit(op.power(x, rx.const(2.0)))
        total = emit(op.add(emit(op.mean(square, [-1], keepdims=True)), rx.const(1e-6)))
        return op.multiply(w, emit(op.multiply(x, emit(op.rsqrt(total)))))

    shapes = {"x": ("batch", 5, 8)}, {"w": (8,)}
    mod = remove_dead_code(fuse_rms_norm(graph(written_out, *shapes).mod))
    epsilon = float(np.float32(1e-6))  # as the constant holds it
    expected = graph(lambda emit, x, w: op.nn.rms_norm(x, w, [-1], epsilon), *shapes)
    assert_same(mod, expected.mod)


def test_a_norm_over_another_axis_is_none():
    def of_columns(emit, x, w):
        square = emit(op.multiply(x, x))
        total = emit(op.add(emit(op.mean(square, [0], keepdims=True)), rx.const(1e-6)))
        return op.multiply(w, emit(op.multiply(x, emit(op.rsqrt(total)))))

    before = graph(of_columns, {"x": (8, 8)}, {"w": (8,)})
    assert_same(fuse_rms_norm(before.mod), before.mod)


def test_what_was_imported_is_remembered_and_nothing_else_changes():
    before = graph(gelu_layer, {"x": ("batch", 8)}, {"w": (6, 8), "b": (6,)})
    mod = remember_imported(before.mod)
    assert json.loads(mod.attrs[IMPORTED]) == {
        "lv": ["w"],
        "lv1": ["x", "lv"],
        "lv2": ["lv1", "b"],
        "lv3": ["lv2"],
        "gv": ["lv2", "lv3"],
    }
    assert_same(mod, before.mod)


def gelu_layer(emit, x, w, b):
    y = emit(op.add(emit(op.matmul(x, emit(op.permute_dims(w)))), b))
    return op.multiply(y, emit(op.sigmoid(y)))


def test_a_region_holds_the_product_and_its_epilogue_on_raw_weights():
    program = graph(gelu_layer, {"x": ("batch", 8)}, {"w": (6, 8), "b": (6,)})
    mod = mark_regions(program.mod)
    assert operators(mod) == ["region_0"]
    assert_same(mod, tvm.IRModule({"region_0": program.mod["main"]}), "region_0")
    assert [param.name for param in mod["region_0"].params] == ["x", "w", "b"]
    assert mod["region_0"].attrs["Composite"] == "tapml.region"
    assert mod["region_0"].attrs["tapml.weight"] == "w"


def test_a_region_takes_rows_whatever_the_leading_axes():
    program = graph(gelu_layer, {"x": ("batch", 5, 8)}, {"w": (6, 8), "b": (1, 1, 6)})
    mod = mark_regions(program.mod)
    assert operators(mod) == ["reshape", "region_0", "reshape"]
    assert [param.ty.ndim for param in mod["region_0"].params] == [2, 2, 3]
    weights = random_weights(program)
    x = np.random.default_rng(0).standard_normal((2, 5, 8), "float32")
    np.testing.assert_allclose(
        run(mod, [x], weights), run(program.mod, [x], weights), rtol=1e-5, atol=1e-6
    )


def test_a_region_ends_where_a_second_result_would_begin():
    def softmax(emit, x, w):
        y = emit(op.matmul(x, w))
        return op.subtract(y, emit(op.max(y, axis=[1], keepdims=True)))

    program = graph(softmax, {"x": ("batch", 8)}, {"w": (8, 6)})
    assert operators(mark_regions(program.mod)) == ["region_0", "max", "subtract"]


def test_a_product_of_two_activations_is_no_region():
    program = graph(lambda emit, x, y: op.matmul(x, y), {"x": (4, 8), "y": (8, 4)})
    assert operators(mark_regions(program.mod)) == ["matmul"]


def test_values_keep_their_names_through_all_passes():
    program = graph(gelu_layer, {"x": ("batch", 8)}, {"w": (6, 8), "b": (6,)})
    names = {origin.value for origin in program.provenance}
    mod = relax_all(program)
    inner = {var.name for var, _ in bindings(mod["region_0"])}
    assert {var.name for var, _ in bindings(mod["main"])} | inner <= names


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("dense", graph(gelu_layer, {"x": ("batch", 5, 8)}, {"w": (6, 8), "b": (6,)})),
        ("one_hot", graph(one_hot, {"ids": (2, 5)}, {"table": (7, 3)}, dtype="int32")),
    ],
)
def test_programs_print_as_the_golden_files_say(name, program):
    mod = relax_all(program).with_attr("tapml.imported", "")
    assert_golden("relax", RelaxPasses.version, name, mod)


def test_the_stage_writes_its_program_reports_regions_and_views(tmp_path: Path):
    program = graph(gelu_layer, {"x": ("batch", 8)}, {"w": (6, 8), "b": (6,)})
    source = program.save(tmp_path / "in")
    (tmp_path / "out").mkdir()
    context = Context(
        tmp_path / "out", logging.getLogger("test"), tmp_path, views=tmp_path / "views"
    )
    outputs = RelaxPasses().run(Inputs({"program": source}), context)
    written = load(outputs.artifacts["program"])
    assert written.io == program.io
    assert operator_counts(written.mod)["relax.matmul"] == 1
    assert outputs.report.tables[1].rows == (("region_0", "w", "batch × 8", "batch × 6", 5),)
    assert len(list((tmp_path / "views").glob("*.after.py"))) == len(passes())


def test_a_batch_norm_that_trains_is_refused():
    def trained(emit, x, *statistics):
        return emit(rx.TupleGetItem(emit(op.nn.batch_norm(x, *statistics, axis=1)), 0))

    four = dict.fromkeys("abcd", (3,))
    with pytest.raises(StageError, match="BatchNorm in training mode"):
        fold_batch_norm(graph(trained, {"x": (2, 3, 4, 4)}, four).mod)


def test_tables_of_other_heights_are_looked_up_apart():
    def looked_up(emit, ids, left, right):
        return op.add(emit(op.take(left, ids, axis=0)), emit(op.take(right, ids, axis=0)))

    tables = {"left": (10, 4), "right": (20, 4)}
    mod = elementwise_before_take(graph(looked_up, {"ids": (3,)}, tables, dtype="int32").mod)
    assert operators(mod) == ["take", "take", "add"]


@pytest.mark.parametrize("batch", ["batch", 2])
def test_rows_that_are_added_to_rows_of_every_token_are_not_flattened_with_them(batch):
    """A time embedding: x[b, 3, K] @ W + y[b, 1, K] @ V."""

    def conditioned(emit, x, y, w, v):
        return op.add(emit(op.matmul(x, w)), emit(op.matmul(y, v)))

    shapes = {"x": (batch, 3, 8), "y": (batch, 1, 8)}
    before = graph(conditioned, shapes, {"w": (8, 4), "v": (8, 4)})
    rng, weights = np.random.default_rng(0), random_weights(before)
    inputs = [rng.uniform(-1, 1, (2, n, 8)).astype("float32") for n in (3, 1)]
    after = run(relax_all(before), inputs, weights)
    np.testing.assert_allclose(after, run(before.mod, inputs, weights), rtol=1e-5, atol=1e-6)


def test_a_result_that_is_another_value_leaves_that_value_to_its_readers():
    builder = rx.BlockBuilder()
    x = rx.Var("x", rx.TensorType((2, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            a = builder.emit(op.abs(x))
            same_again = builder.emit_output(op.reshape(a, (2, 3)))
            twice = builder.emit_output(op.multiply(a, rx.const(2.0)))
        builder.emit_func_output(rx.Tuple([same_again, twice]))
    rx.analysis.well_formed(remove_noops(builder.get()))  # or it raises
