"""Products of int8 by instructions, beside the same rules without them, float32 and onnxruntime.

    python benchmarks/tensorir/int8.py [--threads 1] [--seconds 0.3] [--check] [--no-docs]

Every row is one node (MatMulInteger or QLinearConv with a constant weight), built by the same rules
for this machine: with its best instructions, with those of AVX2, and with no intrinsic at all (the
registry empty); the same product in float32; and onnxruntime on the int8 node. Blocks of calls take
turns, so what else the machine does hits all; a figure is the fastest block's mean. `--check`
demands that instructions beat the same rules without them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).parents[2] / "tests")]

import page  # noqa: E402  # benchmarks/ is no package

RESULTS = Path(__file__).resolve().parents[1] / "results" / "int8.json"
PRODUCTS = ((1, 384, 1536), (32, 384, 1536), (128, 384, 1536), (128, 1536, 384), (512, 512, 512))
CONVOLUTIONS = (
    (64, 64, 56, 3),
    (128, 128, 28, 3),
    (96, 96, 28, 1),
)  # channels, filters, size, taps
BLOCK_S = 0.004
HEAD = "| node | instructions | AVX2's | none | float32 | onnxruntime int8 | to none | to float32 |"


@dataclass(frozen=True)
class Row:
    """A node and the milliseconds of a call, by who runs it."""

    node: str
    instructions: str
    ms: dict[str, float]
    gops: float

    def text(self) -> str:
        cells = [f"{self.ms[k]:.3f}" for k in ("best", "avx2", "none", "float32", "onnxruntime")]
        ratios = [f"{self.ms[k] / self.ms['best']:.1f}x" for k in ("none", "float32")]
        cells[0] += f" ({self.gops:.0f} Gop/s, {self.instructions})"
        return "| " + " | ".join([self.node, *cells, *ratios]) + " |"


def product(m: int, k: int, n: int) -> tuple[str, Any, Any, dict[str, np.ndarray], float]:
    """Name, int8 model, float32 model, inputs of both, operations."""
    from onnx import TensorProto, helper
    from quantised import model

    rng = np.random.default_rng(0)
    weights = {
        "xz": np.array(120, "uint8"),
        "w": rng.integers(-127, 127, (k, n)).astype("int8"),
        "wz": np.array(0, "int8"),
    }
    node = helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])
    int8 = model([node], {"x": ((m, k), "uint8")}, weights, TensorProto.INT32)
    other = {"w": rng.standard_normal((k, n)).astype("float32")}
    plain = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ((m, k), "float32")}, other
    )
    inputs = {
        "int8": rng.integers(0, 255, (m, k)).astype("uint8"),
        "float32": rng.standard_normal((m, k)).astype("float32"),
    }
    return f"MatMulInteger {m}x{k}x{n}", int8, plain, inputs, 2.0 * m * k * n


def convolution(
    c: int, o: int, size: int, taps: int
) -> tuple[str, Any, Any, dict[str, np.ndarray], float]:
    """As `product`, of a QLinearConv."""
    from onnx import TensorProto, helper
    from quantised import model

    rng = np.random.default_rng(0)
    weights = {
        "xs": np.array(0.02, "float32"),
        "xz": np.array(120, "uint8"),
        "w": rng.integers(-127, 127, (o, c, taps, taps)).astype("int8"),
        "ws": rng.uniform(0.001, 0.01, o).astype("float32"),
        "wz": np.zeros(o, "int8"),
        "ys": np.array(1.0, "float32"),
        "yz": np.array(120, "uint8"),
    }
    pads, shape = [taps // 2] * 4, (1, c, size, size)
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=pads)
    int8 = model([node], {"x": (shape, "uint8")}, weights, TensorProto.UINT8)
    other = {"w": rng.standard_normal((o, c, taps, taps)).astype("float32")}
    conv = helper.make_node("Conv", ["x", "w"], ["y"], pads=pads)
    plain = model([conv], {"x": (shape, "float32")}, other)
    inputs = {
        "int8": rng.integers(0, 255, shape).astype("uint8"),
        "float32": rng.standard_normal(shape).astype("float32"),
    }
    name = f"QLinearConv {taps}x{taps} {c}->{o} @{size}"
    return name, int8, plain, inputs, 2.0 * o * c * taps**2 * size**2


def measure(case: tuple[Any, ...], threads: int, seconds: float) -> Row:
    import onnxruntime
    import quantised

    from tapml.target import TargetSection, resolve
    from tapml_stages.compat import tvm
    from tapml_stages.tensorir.tensorize.packing import Instructions

    name, int8, plain, inputs, operations = case
    own = resolve(TargetSection())
    few = tuple(one for one in own.features if "avx512" not in one and "vnni" not in one)
    targets = {
        "best": own,
        "avx2": own.model_copy(update={"features": few}),
        "none": own.model_copy(update={"features": ()}),
    }
    calls: dict[str, Callable[[], Any]] = {}
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            kind: quantised.save(made, Path(folder, f"{kind}.onnx"))
            for kind, made in (("int8", int8), ("float32", plain))
        }
        results = {}
        for key, target in targets.items():
            built = quantised.build(paths["int8"], target, {})
            results[key] = built.call({"x": inputs["int8"]})[0]
            calls[key] = built.timed({"x": inputs["int8"]})
        built = quantised.build(paths["float32"], own, {})
        calls["float32"] = built.timed({"x": inputs["float32"]})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(paths["int8"], options)
        calls["onnxruntime"] = lambda: session.run(None, {"x": inputs["int8"]})
        expected = np.asarray(session.run(None, {"x": inputs["int8"]})[0])
        for key, found in results.items():
            if np.abs(found.astype(int) - expected).max() > (expected.dtype == np.uint8):
                raise SystemExit(f"{name}: {key} differs from onnxruntime")
        ms = alternating(calls, seconds)
    known = Instructions.of(own).known
    return Row(name, known[0].name if known else "none", ms, operations / ms["best"] / 1e6)


def alternating(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Milliseconds of a call, the fastest of short blocks that take turns."""
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()
            start, count, passed = time.perf_counter(), 0, 0.0
            while passed < BLOCK_S:
                call()
                count += 1
                passed = time.perf_counter() - start
            best[name] = min(best[name], passed / count * 1e3)
    return best


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--no-docs", action="store_true")
    options = parser.parse_args(argv)
    cases = [product(*one) for one in PRODUCTS] + [convolution(*one) for one in CONVOLUTIONS]
    rows = []
    print(HEAD, "|" + " --- |" * 8, sep="\n")
    for case in cases:
        rows.append(measure(case, options.threads, options.seconds))
        print(rows[-1].text(), flush=True)
    if not options.no_docs:
        page.keep(RESULTS, [asdict(row) for row in rows])
        table = "\n".join([HEAD, "|" + " --- |" * 8, *(row.text() for row in rows)])
        page.place("tensorir.md", "int8", f"\nms of a call, {options.threads} thread.\n\n{table}\n")
    if options.check and any(row.ms["best"] >= row.ms["none"] for row in rows):
        raise SystemExit("an instruction is slower than none")


if __name__ == "__main__":
    main()
