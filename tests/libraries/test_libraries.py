"""Libraries as alternatives: what a package registers, its shim, and a bundle that ships both."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import TVM_TARGET, V3, graph, random_weights, rx

from tapml.errors import EnvironmentalError, StageError
from tapml.stage import Context, Inputs
from tapml_stages import alternatives, codec, records
from tapml_stages.codegen.stage import Codegen
from tapml_stages.compat import tvm
from tapml_stages.libraries import library
from tapml_stages.libraries.blas import BLAS
from tapml_stages.libraries.kernels import make
from tapml_stages.libraries.library import Library, Parts
from tapml_stages.libraries.shim import build_shim
from tapml_stages.libraries.stage import Libraries
from tapml_stages.measure import Arg, Job, Timing, measure
from tapml_stages.metaschedule.choose import region_winner
from tapml_stages.metaschedule.contest import Entry
from tapml_stages.platforms.runner import Runner
from tapml_stages.program import Program
from tapml_stages.relax.passes import passes
from tapml_stages.tensorir.lower import lower
from tapml_stages.tensorir.schedule import default_records

op = rx.op
C = """
#include <stdint.h>
__attribute__((visibility("default")))
void naive_dense(const float* x, const float* w, float* y, int64_t m, int64_t k, int64_t n,
                int64_t transposed, int64_t share, int64_t shares) {
  for (int64_t i = share; i < m; i += shares)
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;
      for (int64_t p = 0; p < k; ++p)
        sum += x[i * k + p] * w[transposed ? j * k + p : p * n + j];
      y[i * n + j] = sum;
    }
}
"""


def linear(transposed: bool, columns: int = 12) -> Program:
    """`relu(x @ W + b)` in Relax, regions marked."""

    def body(emit: Any, x: Any, w: Any, b: Any) -> Any:
        matrix = emit(op.permute_dims(w)) if transposed else w
        return op.nn.relu(emit(op.add(emit(op.matmul(x, matrix)), b)))

    shape = (columns, 20) if transposed else (20, columns)
    program = graph(body, {"x": ("batch", 20)}, {"w": shape, "b": (columns,)})
    spec = replace(program.io.outputs[0], shape=("batch", columns))
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    return replace(program, mod=mod, io=replace(program.io, outputs=(spec,)))


def naive(folder: Path, source: str = C) -> Library:
    """A library of three loops, as another package would register it."""
    path = folder / "naive.c"
    path.write_text(source)
    nothing = Parts((), ())
    return Library(BLAS.pattern, "naive_dense", path, lambda: nothing, "numpy", "numpy")


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    made = naive(tmp_path)
    monkeypatch.setattr(library, "libraries", lambda: {"naive": made})
    return made


def shipped(folder: Path, program: Program) -> tuple[Path, list[np.ndarray]]:
    """The bundle of a program whose regions are computed by the library `naive`."""
    ctx = Context(folder / "work", logging.getLogger("test"), folder / "db")
    ctx.workdir.mkdir()
    made = Libraries(target=V3).run(Inputs({"program": program.save(folder / "relax")}), ctx)
    lowered = lower(program, V3)
    weights = random_weights(program)
    defaults = default_records(lowered.mod, V3)
    dense = [r.kernel for r in defaults if r.kernel.startswith("region_")]
    choices = records.Choices(
        tuple(records.KernelChoice(r.kernel, r.id, ()) for r in defaults),
        tuple(
            records.RegionChoice(region, "main", kernel, f"{region}.naive", ())
            for kernel in dense
            for region in ["_".join(kernel.split("_")[:2])]
        ),
    )
    names = [spec.name for spec in program.io.params]
    codec.write_weights(folder / "weights.safetensors", dict(zip(names, weights, strict=True)))
    inputs = {
        "program": lowered.save(folder / "lowered"),
        "records": records.save(folder / "records.jsonl", defaults),
        "choices": choices.save(folder / "choices.json"),
        "weights": folder / "weights.safetensors",
        **{name: Path(path) for name, path in made.artifacts.items()},
    }
    out = Codegen(target=V3, opt_level=2, recipe_name="linear").run(Inputs(inputs), ctx)
    return Path(out.artifacts["bundle"]), weights


ALONE = """
import sys
import numpy as np
sys.path.insert(0, {folder!r})
from run import load
bundle = load({folder!r})
x = np.load({x!r})
np.save({y!r}, bundle(x=x)["out"])
assert not any(name.split(".")[0] in ("tapml", "tapml_stages") for name in sys.modules)
"""


@pytest.mark.slow
def test_several_kernels_of_a_bundle_call_one_library(tmp_path: Path, registered: Library) -> None:
    def body(emit: Any, x: Any, w: Any, v: Any) -> Any:
        return op.matmul(emit(op.nn.relu(emit(op.matmul(x, w)))), v)

    program = graph(body, {"x": ("batch", 20)}, {"w": (20, 12), "v": (12, 7)})
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    spec = replace(program.io.outputs[0], shape=("batch", 7))
    program = replace(program, mod=mod, io=replace(program.io, outputs=(spec,)))
    bundle, (w, v) = shipped(tmp_path, program)
    x = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
    with Runner("bundle", bundle, 2) as runner:
        found = runner.outputs({"x": x})["out"]
    np.testing.assert_allclose(found, np.maximum(x.astype(float) @ w, 0) @ v, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_a_bundle_with_a_library_runs_elsewhere_with_the_runtime_alone(
    tmp_path: Path, registered: Library, transposed: bool
) -> None:
    bundle, weights = shipped(tmp_path, linear(transposed))
    files = codec.read_json(bundle / "manifest.json")["files"]
    assert "libnaive_shim.so" in files
    moved = tmp_path / "elsewhere"
    shutil.move(bundle, moved)
    shutil.rmtree(tmp_path / "work")
    x = np.random.default_rng(0).standard_normal((5, 20)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    script = ALONE.format(folder=str(moved), x=str(tmp_path / "x.npy"), y=str(tmp_path / "y.npy"))
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    w = weights[0].T if transposed else weights[0]
    expected = np.maximum(x.astype(float) @ w + weights[1], 0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_openblas_computes_a_region_as_it_is_measured(tmp_path: Path, transposed: bool) -> None:
    files = build_shim("blas", BLAS, tmp_path / "libraries")
    (made,) = make(linear(transposed), "blas", BLAS, V3)
    assert made.row is not None
    rng, rows = np.random.default_rng(0), 7
    x, b = (rng.standard_normal(s).astype(np.float32) for s in ((rows, 20), (12,)))
    w = rng.standard_normal((12, 20) if transposed else (20, 12)).astype(np.float32)
    product = x.astype(float) @ (w.T if transposed else w)
    arrays = {"x": x, "b": b, "w": w, "y": np.maximum(product + b, 0).astype(np.float32)}
    codec.write_npz(tmp_path / "arrays.npz", arrays)
    file = str(tmp_path / "arrays.npz")
    args = tuple(Arg(one.shape, "float32", file, name) for name, one in arrays.items())
    text = tvm.ir.save_json(tvm.IRModule({made.row["kernel"]: made.func}))
    shim = str(tmp_path / "libraries" / files[0])
    (timing,) = measure([Job("blas", text, made.row["kernel"], args, shim=shim)], V3)
    assert timing.error == ""
    assert timing.deviation is not None
    assert timing.deviation < 1e-5


def test_a_kernel_calls_the_library_and_computes_its_epilogue_in_place(tmp_path: Path) -> None:
    (made,) = make(linear(transposed=False), "naive", naive(tmp_path), V3)
    assert made.row is not None
    assert made.row["args"] == [*({"input": 0}, {"input": 2}, {"values": "w", "packer": "source"})]
    text = made.func.script()
    assert '"naive_dense"' in text
    assert "alloc" not in text  # the product lies in the output


@pytest.mark.slow
def test_an_epilogue_has_vectors_and_counts_elements_in_64_bits(tmp_path: Path) -> None:
    (made,) = make(linear(transposed=False, columns=32), "naive", naive(tmp_path), V3)
    assert made.row is not None
    assert "int32" not in made.func.script()  # of more than 2**31 elements
    mod = tvm.IRModule({"kernel": made.func.with_attr("global_symbol", "kernel")})
    text = tvm.compile(mod, TVM_TARGET).mod.inspect_source("asm")
    assert re.search(r"\bvmaxps\b.*%ymm", text)


def test_only_what_the_pattern_matches_is_replaced(tmp_path: Path) -> None:
    dpl = tvm.relax.dpl
    never = replace(
        naive(tmp_path), pattern=lambda: dpl.is_op("relax.add")(dpl.wildcard(), dpl.wildcard())
    )
    (made,) = make(linear(transposed=False), "naive", never, V3)
    assert made.row is None
    assert made.declined == "the library's pattern does not match"


def test_a_shim_that_does_not_compile_is_told_with_the_compilers_words(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"library naive: its shim .*naive.c does not compile"
    ) as e:
        build_shim("naive", naive(tmp_path, "int f(void) { return nothing; }"), tmp_path / "out")
    assert "nothing" in e.value.hint


def test_a_library_that_is_not_installed_is_told_with_the_command_that_mends_it() -> None:
    def missing() -> Parts:
        raise ModuleNotFoundError("scipy_openblas32")

    with pytest.raises(EnvironmentalError, match="scipy-openblas32 is not installed") as caught:
        replace(BLAS, parts=missing).found()
    assert caught.value.hint == "pip install 'tapml[blas]'"


def test_alternatives_that_were_there_are_kept(tmp_path: Path, registered: Library) -> None:
    given, structure = tmp_path / "given", tmp_path / "structure"
    for folder in (given, structure):
        folder.mkdir()
    row = {"id": "region_0.csr", "region": "region_0", "kernel": "k", "args": []}
    codec.write_json(given / "index.json", {"alternatives": [row], "declined": []})
    codec.write_npz(structure / "structure.npz", {"region_0.csr/indptr": np.zeros(2, np.int32)})
    inputs = {
        "program": linear(transposed=False).save(tmp_path / "relax"),
        "alternatives": given,
        "structure": structure,
    }
    views = tmp_path / "views"
    ctx = Context(tmp_path / "work", logging.getLogger("test"), tmp_path, views=views)
    ctx.workdir.mkdir()
    views.mkdir()
    out = Libraries(target=V3).run(Inputs(inputs), ctx).artifacts
    found = alternatives.load(Path(out["alternatives"]), Path(out["structure"]))
    assert {one.id: one.kind for one in found.values()} == {
        "region_0.csr": "sparse",
        "region_0.naive": "library",
    }
    assert [path.name for path in found["region_0.naive"].libraries] == ["libnaive_shim.so"]
    assert "indptr" in found["region_0.csr"].structure
    assert "@T.prim_func" in (views / "region_0.naive.py").read_text()


def entries(**ms: float) -> Sequence[Entry]:
    kinds: dict[str, Any] = {"dense": "default", "sparse": "sparse", "library": "library"}
    return [Entry(kinds[name], name, Timing(name, (one,) * 5)) for name, one in ms.items()]


@pytest.mark.parametrize(
    ("ms", "choose", "winner"),
    [
        ({"dense": 1.0, "library": 0.9}, "measured", "library"),
        ({"dense": 1.0, "library": 0.99}, "measured", "dense"),  # not clearly faster
        ({"dense": 1.0, "library": 1.5}, "measured", "dense"),
        ({"dense": 1.0, "sparse": 0.8, "library": 0.6}, "measured", "library"),
        ({"dense": 1.0, "sparse": 0.5, "library": 0.6}, "measured", "sparse"),
        ({"dense": 1.0, "sparse": 2.0, "library": 0.6}, "sparse", "sparse"),
        ({"dense": 1.0, "sparse": 0.5, "library": 0.6}, "dense", "library"),
    ],
)
def test_a_library_ships_only_where_it_is_measured_to_be_faster(
    ms: dict[str, float], choose: Any, winner: str
) -> None:
    found = entries(**ms)
    assert region_winner(found, found[0], choose).id == winner
