"""Lowering keeps the numbers, names what it covers, and leaves only kernels."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import V3, assert_golden, graph, lowered_runner, random_weights, run, rx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapml.errors import StageError
from tapml.stage import Context, Inputs
from tapml_stages.compat import tvm
from tapml_stages.dataflow import bindings, op_name
from tapml_stages.program import REGION, Bounds, Io, Program, TensorSpec, load
from tapml_stages.records import Record
from tapml_stages.records import load as load_records
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir import groups
from tapml_stages.tensorir.clones import clone_names
from tapml_stages.tensorir.layout import block_lanes
from tapml_stages.tensorir.lower import UnloweredOpError, lower
from tapml_stages.tensorir.schedule import default_records
from tapml_stages.tensorir.stage import TensorIR, report

op = rx.op


def lowered(program: Program) -> Program:
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    return lower(program.with_mod(mod), V3)


def assert_same_numbers(
    program: Program, *shapes: tuple[int, ...], scheduled: bool = False
) -> Program:
    """The lowered program gives what the imported one gives, for an input of each shape."""
    result = lowered(program)
    weights = random_weights(program)
    records = default_records(result.mod, V3) if scheduled else ()
    after = lowered_runner(result, weights, records)
    for shape in shapes:
        x = np.random.default_rng(len(shape)).uniform(-1, 1, shape).astype("float32")
        expected = run(program.mod, [x], weights)
        np.testing.assert_allclose(after(x), expected, rtol=1e-4, atol=1e-5)
    return result


def kernels(program: Program, clone: str = "main") -> list[str]:
    return [row["kernel"] for row in program.groups[clone]]


def squeeze_and_excite(emit, x, w1, w2, w3):
    """Channels that are no multiple of 8, depthwise, global pooling, a scale that is broadcast."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, w1, strides=2, padding=1))))
    y = emit(op.nn.conv2d(y, w2, padding=1, groups=12))
    pooled = emit(op.mean(y, [2, 3], keepdims=True))
    scale = emit(op.sigmoid(emit(op.nn.conv2d(pooled, w3))))
    return op.multiply(y, scale)


SE_WEIGHTS = {"w1": (12, 3, 3, 3), "w2": (12, 1, 3, 3), "w3": (12, 12, 1, 1)}


def test_a_small_network_gives_the_same_numbers_in_every_clone():
    program = graph(
        squeeze_and_excite, {"x": ("batch", 3, 9, 8)}, SE_WEIGHTS, buckets=[{"batch": 2}]
    )
    result = assert_same_numbers(program, (2, 3, 9, 8), (3, 3, 9, 8), scheduled=True)
    assert set(result.groups) == {"main_b2", "main_dyn", "folded", "transform"}


def expanded(emit, x, w, d):
    """As MobileNets do it: channels made by a 1x1 convolution, then each convolved by itself."""
    y = emit(op.nn.relu(emit(op.nn.conv2d(x, w))))
    return op.nn.relu(emit(op.nn.conv2d(y, d, strides=2, padding=1, groups=24)))


EXPANDED = {"w": (24, 5, 1, 1), "d": (24, 1, 3, 3)}


@pytest.mark.parametrize(
    ("size", "rules"), [(260, {"pointwise_depthwise"}), (200, {"conv", "depthwise"})]
)
def test_a_depthwise_convolution_joins_what_writes_more_than_caches_hold(
    size: int, rules: set[str]
):
    result = lowered(graph(expanded, {"x": (1, 5, size, size)}, EXPANDED))
    found = {record.kernel: record.rule for record in default_records(result.mod, V3)}
    assert rules <= set(found.values())
    most = max(len(row["values"]) for row in result.groups["main"])
    assert most >= 4 / len(rules)  # both convolutions and what follows them, or one of each
    assert len(rules & {found[name] for name in kernels(result)}) == len(rules)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_joined_pair_gives_the_same_numbers(batch: int):
    program = graph(expanded, {"x": ("batch", 5, 260, 260)}, EXPANDED, buckets=[{"batch": 1}])
    assert_same_numbers(program, (batch, 5, 260, 260), scheduled=True)


def test_a_value_that_is_read_twice_is_in_memory_once():
    def read_twice(emit, x, w, d):
        y = emit(op.nn.conv2d(x, w))
        z = emit(op.nn.conv2d(y, d, padding=1, groups=24))
        return op.add(y, z)

    result = lowered(graph(read_twice, {"x": (1, 5, 260, 260)}, EXPANDED))
    rules = {record.rule for record in default_records(result.mod, V3)}
    assert {"conv", "depthwise"} <= rules
    assert "pointwise_depthwise" not in rules


def test_padded_lanes_never_reach_the_result_through_a_division():
    def divided(emit, x, w1, w2):
        y = emit(op.nn.conv2d(x, w1))
        y = emit(op.divide(y, emit(op.add(emit(op.abs(y)), rx.const(0.0)))))
        return op.nn.conv2d(y, w2)

    weights = {"w1": (6, 3, 1, 1), "w2": (4, 6, 1, 1)}
    assert_same_numbers(graph(divided, {"x": (1, 3, 5, 5)}, weights), (1, 3, 5, 5))


@pytest.mark.slow
def test_one_channel_of_symbolic_height_is_broadcast_over_all():
    def masked(emit, x, mask, w):
        return op.multiply(emit(op.nn.conv2d(x, w, padding=1)), mask)

    program = graph(
        masked, {"x": (2, 8, "batch", 5), "m": (2, 1, "batch", 5)}, {"w": (16, 8, 3, 3)}
    )
    result, weights = lowered(program), random_weights(program)
    after = lowered_runner(result, weights)
    rng = np.random.default_rng(0)
    for height in (1, 6):
        x, mask = (rng.uniform(-1, 1, (2, c, height, 5)).astype("float32") for c in (8, 1))
        expected = run(program.mod, [x, mask], weights)
        np.testing.assert_allclose(after(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["matmul", "convolution"])
def test_products_of_bytes_are_summed_as_wide_as_they_say(operator):
    shapes = {"matmul": ((4, 64), (64, 16)), "convolution": ((1, 8, 6, 6), (16, 8, 3, 3))}
    product = {"matmul": op.matmul, "convolution": op.nn.conv2d}[operator]
    program = graph(
        lambda emit, x, w: op.astype(emit(product(x, w, out_dtype="int32")), "float32"),
        {"x": shapes[operator][0]},
        {"w": shapes[operator][1]},
        dtype="int8",
        weight_dtype="int8",
    )
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 127, shape).astype("int8") for shape in shapes[operator])
    result = lowered(program)
    after = lowered_runner(result, [w], default_records(result.mod, V3))
    np.testing.assert_array_equal(after(x), run(program.mod, [x], [w]))
    assert np.abs(after(x)).max() > 1000  # more than a byte holds


def test_a_transposed_convolution_with_one_output_keeps_pixels_in_lanes():
    def upscaled(emit, x, w1, w2, b):
        y = emit(op.nn.conv2d(x, w1, padding=1))
        y = emit(op.nn.conv2d_transpose(y, w2, strides=2))
        return op.sigmoid(emit(op.add(y, b)))

    weights = {"w1": (6, 3, 3, 3), "w2": (6, 1, 2, 2), "b": (1,)}
    result = assert_same_numbers(graph(upscaled, {"x": (1, 3, 4, 5)}, weights), (1, 3, 4, 5))
    assert len(kernels(result)) == 3


def test_a_convolution_over_time_reads_channels_last_without_a_transpose():
    def over_time(emit, x, w, b):
        y = emit(op.permute_dims(emit(op.expand_dims(x, [3])), [0, 2, 1, 3]))
        y = emit(op.squeeze(emit(op.nn.conv2d(y, w)), [3]))
        return op.negative(emit(op.max(emit(op.tanh(emit(op.add(y, b)))), [2])))

    weights = {"w": (16, 24, 5, 1), "b": (1, 16, 1)}
    program = graph(over_time, {"x": ("batch", 20, 24)}, weights)
    result = assert_same_numbers(program, (3, 20, 24))
    assert len(kernels(result)) == 3


def test_a_region_is_one_kernel_with_a_packed_weight_and_its_parameters_in_order():
    def layer(emit, x, w, b):
        y = emit(op.add(emit(op.matmul(x, emit(op.permute_dims(w)))), b))
        return op.max(emit(op.nn.relu(y)), [2])

    program = graph(
        layer, {"x": ("batch", 5, 8)}, {"w": (21, 8), "b": (21,)}, buckets=[{"batch": 4}]
    )
    result = assert_same_numbers(program, (4, 5, 8), (2, 5, 8), scheduled=True)
    for clone in ("main_b4", "main_dyn"):
        func = result.mod[f"region_0__{clone}"]
        assert (func.attrs["tapml.region"], func.attrs["tapml.clone"]) == ("region_0", clone)
        assert len(kernels(result, clone)) == 2
        call = next(
            value for _, value in bindings(result.mod[clone]) if op_name(value) == "relax.call_tir"
        )
        assert [arg.ty.ndim for arg in call.args[1].fields] == [2, 3, 1]


channels = st.integers(1, 20)


@st.composite
def networks(draw):
    """Convolutions of all kinds in a row, with pools, joins and elementwise operators between."""
    steps, width, weights = [], 3, {}
    for k in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "depthwise", "groups", "pool", "join", "upscale"]))
        if kind == "conv":
            size, out = draw(st.sampled_from([1, 3])), draw(channels)
            weights[f"w{k}"] = (out, width, size, size)
            steps.append((kind, k, draw(st.integers(1, 2)), size // 2, draw(st.integers(1, 2))))
            width = out
        elif kind == "depthwise":
            weights[f"w{k}"] = (width, 1, 3, 3)
            steps.append((kind, k, width))
        elif kind == "groups":
            weights[f"w{k}"] = (16, width, 1, 1)
            weights[f"v{k}"] = (32, 8, 1, 1)
            steps.append((kind, k))
            width = 32
        elif kind == "upscale":
            out = draw(st.integers(1, 10))
            weights[f"w{k}"] = (width, out, 2, 2)
            steps.append((kind, k))
            width = out
        else:
            steps.append((kind, draw(st.sampled_from(["max", "avg"]))))
            width = 2 * width if kind == "join" else width

    def body(emit, x, *values):
        named, y = dict(zip(weights, values, strict=True)), x
        for step in steps:
            match step:
                case "conv", k, stride, padding, dilation:
                    y = emit(op.nn.conv2d(y, named[f"w{k}"], stride, padding * dilation, dilation))
                    y = emit(op.nn.relu(y))
                case "depthwise", k, groups:
                    y = emit(op.nn.conv2d(y, named[f"w{k}"], padding=1, groups=groups))
                    y = emit(op.clip(emit(op.multiply(y, rx.const(2.0))), -1, 1))
                case "groups", k:
                    y = emit(op.nn.conv2d(y, named[f"w{k}"]))
                    y = emit(op.nn.conv2d(y, named[f"v{k}"], groups=2))
                case "upscale", k:
                    y = emit(op.tanh(emit(op.nn.conv2d_transpose(y, named[f"w{k}"], strides=2))))
                case "pool", mode:
                    pool = op.nn.max_pool2d if mode == "max" else op.nn.avg_pool2d
                    y = emit(pool(y, (3, 3), (2, 2), (1, 1)))
                case "join", _:
                    y = emit(op.concat([y, emit(op.negative(y))], axis=1))
        return op.add(y, rx.const(1.0))

    return graph(body, {"x": (2, 3, 12, 10)}, weights)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=networks())
def test_lowering_and_default_schedules_keep_the_numbers_of_any_network(program):
    assert_same_numbers(program, (2, 3, 12, 10), scheduled=True)


def test_operators_without_a_lowering_are_named():
    program = graph(lambda emit, x: op.nonzero(emit(op.abs(x))), {"x": (3,)})
    with pytest.raises(UnloweredOpError, match=r"no lowering to TensorIR for: relax\.nonzero$"):
        lowered(program)


def test_a_kernel_of_the_user_may_be_named_like_a_region():
    name = "region_sum"

    def call(emit, x, w):
        te = tvm.te
        y = emit(op.matmul(x, w))
        twice = te.create_prim_func(
            [a := te.placeholder((4, 8), name="a"), te.compute((4, 8), lambda *at: a[at] * 2.0)]
        )
        gvar = rx.BlockBuilder.current().add_func(twice, name)
        return rx.call_tir(gvar, [y], y.ty)

    result = lowered(graph(call, {"x": (4, 8)}, {"w": (8, 8)}))
    marks = {var.name_hint: func.attrs or {} for var, func in result.mod.functions.items()}
    assert REGION not in marks[name]
    assert str(marks["region_0__main"][REGION]) == "region_0"


def test_every_imported_value_is_covered_in_every_clone():
    program = graph(
        squeeze_and_excite, {"x": ("batch", 3, 9, 8)}, SE_WEIGHTS, buckets=[{"batch": 2}]
    )
    result = lowered(program)
    values = {origin.value for origin in program.provenance}
    for clone in ("main_b2", "main_dyn"):
        rows = result.groups[clone]
        assert {value for row in rows for value in row["values"]} == values
        assert {node for row in rows for node in row["nodes"]} == {f"node/{v}" for v in values}
        assert [row["call"] for row in rows] == list(range(len(rows)))


def test_an_element_of_a_tuple_may_be_a_result():
    def ranked(emit, x):
        both = emit(op.topk(x, 2, ret_type="both"))
        return rx.Tuple([emit(rx.TupleGetItem(both, k)) for k in range(2)])

    result = lowered(graph(ranked, {"x": ("batch", 9)}))
    assert kernels(result) == ["topk"]


def test_a_lost_operator_is_an_error(monkeypatch: pytest.MonkeyPatch):
    traced = groups.fused_values

    def forget_the_first(*args) -> list[list[str]]:
        return [[], *traced(*args)[1:]]

    monkeypatch.setattr(groups, "fused_values", forget_the_first)
    program = graph(squeeze_and_excite, {"x": (1, 3, 9, 8)}, SE_WEIGHTS)
    with pytest.raises(StageError, match="main: no kernel covers lv"):
        lowered(program)


def test_clones_are_named_by_their_sizes():
    io = Io((), (), (), dims={"batch": Bounds(1, 64)}, buckets=({"batch": 1}, {"batch": 16}))
    assert clone_names(io) == {
        "main_b1": {"batch": 1},
        "main_b16": {"batch": 16},
        "main_dyn": {},
    }
    assert clone_names(Io((), (), ())) == {"main": {}}


def test_a_program_with_states_has_a_clone_for_one_token_a_call():
    cache = TensorSpec("cache", ("batch", 2, 64), "float32")
    io = Io((), (), (), (cache,), {"n": Bounds(1, 64), "batch": Bounds(1, 4)})
    assert clone_names(io) == {"decode": {"n": 1}, "prefill": {}}
    buckets = ({"n": 64}, {"n": 1, "batch": 2}, {"n": 1})
    assert list(clone_names(replace(io, buckets=buckets)).items()) == [
        ("prefill_n64", {"n": 64}),
        ("decode_b2", {"n": 1, "batch": 2}),
        ("decode", {"n": 1}),
        ("prefill", {}),
    ]
    with_source = replace(io, dims={**io.dims, "m": Bounds(0, 64)})
    assert clone_names(with_source) == {"decode": {"n": 1, "m": 0}, "prefill": {}}


@pytest.mark.parametrize(
    ("bits", "mcpu", "channels", "expected"),
    [
        (128, "x86-64", 64, 4),
        (256, "x86-64-v3", 64, 8),
        (512, "sapphirerapids", 64, 16),
        (512, "sapphirerapids", 24, 16),  # a third more channels, half as many vectors
        (512, "sapphirerapids", 8, 8),
        (512, "znver4", 24, 8),  # it multiplies halves of such vectors: zeros would cost time
    ],
)
def test_blocks_are_as_wide_as_pays(bits, mcpu, channels, expected):
    program = graph(
        lambda emit, x, w: emit(op.nn.conv2d(x, w, padding=1)),
        {"x": (1, channels, 9, 8)},
        {"w": (channels, channels, 3, 3)},
    )
    target = V3.model_copy(update={"vector_bits": bits, "mcpu": mcpu})
    assert block_lanes(program.mod["main"], target) == expected


def test_a_small_network_prints_as_the_golden_file_says():
    program = graph(squeeze_and_excite, {"x": (1, 3, 9, 8)}, SE_WEIGHTS)
    mod = lowered(program).mod.with_attr("tapml.imported", "")
    assert_golden("tensorir", TensorIR.version, "squeeze_and_excite", mod)


def test_kernels_that_no_rule_but_the_last_takes_are_named():
    records = [
        Record(id=name, kernel=name, workload="", kind="default", rule=rule, func="")
        for name, rule in (("odd", "fallback"), ("even", "rows"))
    ]
    notes = report(Program(None, Io((), (), ())), records).notes
    assert notes == ("no rule but `fallback` fits odd",)


def test_the_stage_writes_a_record_for_every_kernel_that_runs(tmp_path: Path):
    program = graph(
        squeeze_and_excite, {"x": ("batch", 3, 9, 8)}, SE_WEIGHTS, buckets=[{"batch": 2}]
    )
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    source = program.with_mod(mod).save(tmp_path / "in")
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", logging.getLogger("test"), tmp_path)
    outputs = TensorIR(target=V3).run(Inputs({"program": source}), context)
    written = load(outputs.artifacts["program"])
    records = load_records(outputs.artifacts["records"])
    running = {row["kernel"] for clone in ("main_b2", "main_dyn") for row in written.groups[clone]}
    assert sorted(record.kernel for record in records) == sorted(running)
    transforms = {
        gvar.name_hint
        for gvar, func in written.mod.functions.items()
        if isinstance(func, tvm.tirx.PrimFunc) and "tapml.transform" in func.attrs
    }
    assert transforms
    assert not transforms & running


def test_clones_may_pack_their_weights_unlike_each_other() -> None:
    """At a fixed size, the rows of a table that it takes are weights; otherwise they are not."""

    def positions(emit, x, table, w):
        rows = x.ty.shape.values[0]
        first = emit(op.strided_slice(table, [0], [0], [rows], assume_inbound=True))
        return emit(op.matmul(emit(op.add(x, first)), w))

    program = graph(
        positions,
        {"x": ("batch", 16)},
        {"table": (8, 16), "w": (16, 24)},
        buckets=[{"batch": 3}, {"batch": 5}],
    )
    result = assert_same_numbers(program, (3, 16), (5, 16), (7, 16), scheduled=True)
    packed = result.mod["main_transform_params"].ret_ty.fields
    shapes = sorted(tuple(int(n) for n in one.shape.values) for one in packed)
    assert shapes.count((3, 16)) == shapes.count((5, 16)) == shapes.count((8, 16)) == 1
    assert len(shapes) == 4  # the matrix is packed once for all


def test_a_weight_that_two_products_read_is_packed_once() -> None:
    def twice(emit, x, w):
        return emit(op.matmul(emit(op.nn.relu(emit(op.matmul(x, w)))), w))

    program = graph(twice, {"x": ("batch", 8)}, {"w": (8, 8)}, buckets=[{"batch": 1}])
    result = assert_same_numbers(program, (1, 8), (5, 8), scheduled=True)
    assert len(result.mod["main_transform_params"].ret_ty.fields) == 1
