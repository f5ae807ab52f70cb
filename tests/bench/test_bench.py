"""`tapml bench`: sizes and inputs, what it counts, and the command on a bundle."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from small_programs import HOST, linear_program, linear_weights, write_inputs

from tapml import locks
from tapml.cli.app import app
from tapml.errors import EnvironmentalError, RecipeError, TapmlError
from tapml.stage import Context, Inputs
from tapml_stages import codec
from tapml_stages.bench import cases, timing
from tapml_stages.bench.idle import Meter
from tapml_stages.bench.timing import Figures, Row
from tapml_stages.codegen import run as runner

MANIFEST: dict[str, Any] = {
    "inputs": [{"name": "x", "shape": ["batch", 6], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": ["batch", 5], "dtype": "float32"}],
    "states": [],
    "dims": {"batch": {"min": 1, "max": 64}},
    "buckets": [{"batch": 1}, {"batch": 16}],
    "context": None,
}
LANGUAGE: dict[str, Any] = {
    "inputs": [
        {"name": "input_ids", "shape": ["batch", "n"], "dtype": "int64"},
        {"name": "position", "shape": ["batch"], "dtype": "int64"},
        {"name": "last", "shape": ["batch"], "dtype": "int64"},
    ],
    "outputs": [{"name": "logits", "shape": ["batch", 1000], "dtype": "float32"}],
    "states": [{"name": "keys", "shape": ["batch", 2, 128, 4], "dtype": "float32"}],
    "dims": {"batch": {"min": 1, "max": 4}, "n": {"min": 1, "max": 32}},
    "buckets": [{"n": 1}],
    "context": 128,
}


def test_buckets_and_the_middle_of_the_dims_are_timed_unless_sizes_are_asked_for() -> None:
    assert cases.sizes_of(MANIFEST, []) == [{"batch": 1}, {"batch": 16}, {"batch": 8}]
    assert cases.sizes_of(MANIFEST, ["batch=2,64"]) == [{"batch": 2}, {"batch": 64}]
    assert cases.sizes_of(MANIFEST | {"dims": {}, "buckets": []}, []) == [{}]


def test_sizes_of_several_dims_are_combined_and_others_are_in_their_middle() -> None:
    dims = {name: {"min": 1, "max": 16} for name in ("batch", "height", "width")}
    manifest = MANIFEST | {"dims": dims, "buckets": []}
    found = cases.sizes_of(manifest, ["batch=1,2", "width=3,5"])
    assert [(one["batch"], one["width"]) for one in found] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert {one["height"] for one in found} == {4}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("bach=1", "no dim 'bach'"),
        ("batch=0", "batch is 1..64, not 0"),
        ("batch=1,65", "batch is 1..64, not 65"),
        ("batch", "is no DIM=N,N"),
        ("batch=one", "is no DIM=N,N"),
    ],
)
def test_a_size_that_the_bundle_does_not_take_is_told(asked: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        cases.sizes_of(MANIFEST, [asked])


@given(st.integers(1, 64))
def test_random_inputs_are_what_the_bundle_takes(batch: int) -> None:
    case = cases.make(MANIFEST, runner, {"batch": batch}, None)
    assert runner.check_inputs(MANIFEST, dict(case.arrays)) == {"batch": batch}
    assert (case.items, case.unit) == (batch, "items")


def test_inputs_of_the_reference_go_first_real_ones_before_random_ones(tmp_path: Path) -> None:
    arrays = {f"{kind}/x": np.full((2, 6), value, "float32") for kind, value in KINDS.items()}
    codec.write_npz(tmp_path / "inputs.npz", arrays)
    rows = [
        {
            "id": kind,
            "kind": kind,
            "sizes": {"batch": 2},
            "after": "",
            "inputs": {"x": f"{kind}/x"},
        }
        for kind in KINDS
    ]
    codec.write_json(tmp_path / "cases.json", rows)
    case = cases.make(MANIFEST, runner, {"batch": 2}, tmp_path)
    assert (case.arrays["x"] == KINDS["real"]).all()
    other = cases.make(MANIFEST, runner, {"batch": 3}, tmp_path)
    assert other.arrays["x"].shape == (3, 6)


KINDS = {"random": 1.0, "real": 2.0}


def test_a_language_model_is_timed_on_a_prompt_and_on_one_token_behind_it() -> None:
    sizes = cases.sizes_of(LANGUAGE, [])
    assert sizes == [{"batch": 1, "n": 32}, {"batch": 1, "n": 1}]
    prompt, token = (cases.make(LANGUAGE, runner, one, None) for one in sizes)
    assert (prompt.label, prompt.items) == ("prompt of 32 tokens, batch 1", 32)
    assert prompt.arrays["input_ids"].max() < 1000
    assert (prompt.arrays["position"].item(), prompt.arrays["last"].item()) == (0, 31)
    assert (token.label, token.items) == ("one token at 32, batch 1", 1)
    assert token.arrays["position"].item() == 32
    assert token.before is not None
    assert token.before["input_ids"].shape == (1, 32)


def test_what_an_encoder_reads_comes_with_the_prompt_alone() -> None:
    inputs = [
        *LANGUAGE["inputs"],
        {"name": "source", "shape": ["batch", "m"], "dtype": "int64"},
        {"name": "source_length", "shape": ["batch"], "dtype": "int64"},
    ]
    dims = LANGUAGE["dims"] | {"m": {"min": 0, "max": 81}}
    tokens = LANGUAGE | {"inputs": inputs, "dims": dims}
    prompt, token = (
        cases.make(tokens, runner, one, None) for one in cases.sizes_of(tokens, ["batch=2"])
    )
    assert (prompt.arrays["source"].shape, token.arrays["source"].shape) == ((2, 9), (2, 0))
    assert list(token.arrays["source_length"]) == [9, 9]
    features = {"name": "source", "shape": ["s", 20, 60], "dtype": "float32"}
    dims = LANGUAGE["dims"] | {"s": {"min": 0, "max": 4}}
    reads = LANGUAGE | {"inputs": [*LANGUAGE["inputs"], features], "dims": dims}
    prompt, token = (cases.make(reads, runner, one, None) for one in cases.sizes_of(reads, []))
    assert (prompt.arrays["source"].shape[0], token.arrays["source"].shape[0]) == (1, 0)


def test_inputs_of_a_file_have_their_own_sizes(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.zeros((7, 6), "float32"))
    assert cases.of_file(MANIFEST, runner, tmp_path / "in.npz").sizes == {"batch": 7}
    np.savez(tmp_path / "wrong.npz", x=np.zeros((7, 6)))
    with pytest.raises(RecipeError, match=r"wrong\.npz: x: dtype is float32, got float64"):
        cases.of_file(MANIFEST, runner, tmp_path / "wrong.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(RecipeError, match=r"--inputs: .*text\.npz"):
        cases.of_file(MANIFEST, runner, tmp_path / "text.npz")


@given(st.lists(st.floats(1e-3, 1e4), min_size=3, max_size=50))
def test_figures_are_in_order_and_throughput_is_by_the_median(times: list[float]) -> None:
    figures = Figures.of(times)
    slack = 1 + 1e-9
    order = (figures.best, figures.low, figures.p50, figures.high, figures.p95, max(times))
    assert all(a <= b * slack for a, b in pairwise(order))
    case = cases.Case("batch 4", {"batch": 4}, {}, 4, "items")
    row = Row(case, 1, figures, "", None, 0.0)
    assert row.per_second == pytest.approx(4000 / figures.p50)
    assert row.latency.words == ""


def test_a_peer_whose_times_overlap_is_within_the_noise() -> None:
    case = cases.Case("static", {}, {}, 1, "items")
    ours, theirs = Figures.of([1.0, 2.0, 3.0]), Figures.of([2.0, 3.0, 4.0])
    row = Row(case, 1, ours, "onnxruntime 1", theirs, 0.0)
    assert row.latency.words == "within noise of onnxruntime"
    faster = Row(case, 1, Figures.of([1.0] * 3), "onnxruntime 1", theirs, 0.0)
    assert faster.latency.words == "3.00x faster than onnxruntime"


def test_what_other_processes_use_counts_and_what_ours_use_does_not() -> None:
    burn = "import time\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", burn]) as child:
        try:
            counted, own = Meter([]), Meter([child.pid])
            time.sleep(0.6)
            difference = counted.elsewhere() - own.elsewhere()
        finally:
            child.kill()
    assert difference > 0.05  # of a core, however busy it is


def test_who_has_the_machine_is_told_while_bench_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAPML_LOCKS", str(tmp_path))
    holder = locks.MachineLock(tmp_path, "stage tuner of another run")
    assert holder.acquire(alone=True)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        holder.release()

    assert list(timing.rows(Path(), [], [], None, timing.Effort(), tell)) == []
    assert told == ["waiting for the machine, which stage tuner of another run has"]


def test_the_command_is_found_by_its_entry_point_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = click.Context(app)
    assert "bench" in app.list_commands(context)
    assert app.get_command(context, "bench") is not None
    assert app.get_command(context, "benhc") is None

    class Broken:
        dist, module = None, "outside"

        def load(self) -> object:
            raise ImportError("no module named outside")

    class Points:
        def select(self, name: str) -> list[Broken]:
            return [Broken()] if name == "broken" else []

    monkeypatch.setattr(sys.modules["tapml.cli.app"], "_registered", Points)
    with pytest.raises(EnvironmentalError, match="command 'broken' of 'outside'"):
        app.get_command(context, "broken")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tapml_stages.codegen.stage import Codegen

    folder = tmp_path_factory.mktemp("bench")
    inputs = dict(write_inputs(folder, linear_program(), linear_weights()))
    stage = Codegen(target=HOST, opt_level=2, recipe_name="linear")
    (work := folder / "codegen").mkdir()
    context = Context(work, logging.getLogger("test"), folder / "db")
    return stage.run(Inputs(inputs), context).artifacts["bundle"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setenv("TAPML_LOCKS", str(tmp_path / "locks"))

    def bench(*arguments: str) -> Any:
        found = CliRunner().invoke(app, ["bench", *arguments, "--repeats", "10"])
        if isinstance(found.exception, TapmlError):
            raise found.exception
        return found

    return bench


def write_onnx(path: Path) -> Path:
    """`relu(x @ W.T + b)`, as the bundle computes it."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = linear_weights()
    shapes = {"x": ["batch", 6], "y": ["batch", 5]}
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    nodes = [
        helper.make_node("Gemm", ["x", "lin.w", "lin.b"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "linear", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, str(path))
    return path


@pytest.mark.slow
def test_a_bundle_is_timed_beside_onnxruntime_at_each_size_and_thread_count(
    bundle: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    model = write_onnx(tmp_path / "model.onnx")
    options = ("--sizes", "batch=1,4", "--threads", "1", "--onnx", str(model), "--json")
    data = json.loads(call(str(bundle), *options).stdout)
    assert [row["sizes"] for row in data["rows"]] == [{"batch": 1}, {"batch": 4}]
    for row in data["rows"]:
        assert 0 < row["ours_ms"]["best"] <= row["ours_ms"]["p50"] <= row["ours_ms"]["p95"]
        assert row["ours_ms"]["n"] == row["peer_ms"]["n"] == 10
        assert row["ratio"] == pytest.approx(row["ours_ms"]["p50"] / row["peer_ms"]["p50"])
        assert row["per_second"] == pytest.approx(
            row["sizes"]["batch"] / row["ours_ms"]["p50"] * 1e3
        )


@pytest.mark.slow
def test_the_table_has_a_line_a_size(bundle: Path, call: Callable[..., Any]) -> None:
    found = call(str(bundle))
    head, *lines = found.stdout.splitlines()
    assert head.split()[:4] == ["size", "threads", "p50", "ms"]
    assert [line[:7] for line in lines] == ["batch 4", "batch 3"]
    assert all("items/s" in line for line in lines)
    assert "timing batch 4, 1 threads" in found.stderr


@pytest.mark.slow
def test_a_bundle_that_cannot_be_run_here_is_refused_with_the_reason(
    bundle: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    import shutil

    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    with (damaged / "params.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EnvironmentalError, match=r"damaged: params\.npz"):
        call(str(damaged))
    foreign = shutil.copytree(bundle, tmp_path / "foreign")
    manifest = json.loads((foreign / "manifest.json").read_text())
    manifest["cpu_features"].append("avx4096")
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EnvironmentalError, match="this CPU has no avx4096"):
        call(str(foreign))
    with pytest.raises(RecipeError, match="is no bundle"):
        call(str(tmp_path))
    with pytest.raises(RecipeError, match="--threads: 4096"):
        call(str(bundle), "--threads", "1,4096")
    with pytest.raises(RecipeError, match="--onnx: no file"):
        call(str(bundle), "--onnx", str(tmp_path / "none.onnx"))
    assert (
        "give --sizes, or --inputs"
        in call(str(bundle), "--sizes", "batch=1", "--inputs", "x").stderr
    )
