"""Default schedules against onnxruntime and the machine's own limits, kernel by kernel:
`benchmarks/kernels.py [NAME...]`.

Ours and onnxruntime run in processes of their own that take turns, one burst each, so that both
meet the same neighbours; the shortest burst of each counts. Ours is the default schedule of
tapml_stages.tensorir for this host, its weights packed; onnxruntime runs a model of that one node,
whose input is bound, all optimisations on. Correctness is in tests/rules.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tapml import host
from tapml.stage import Target
from tapml.target import TargetSection, resolve
from tapml_stages import roofline
from tapml_stages.measure import Bench

RESULTS = Path(__file__).parent / "results"
BURST_S = 0.01
ROUNDS = 40


@dataclass(frozen=True)
class Case:
    """One operator. `shape` is what its kind needs, see the builders."""

    name: str
    kind: Literal[
        "dense", "conv", "depthwise", "softmax", "layernorm", "gelu", "mean", "relu", "matmul"
    ]
    shape: tuple[int, ...]

    @property
    def flops(self) -> float:
        match self.kind, self.shape:
            case "dense", (m, k, n):
                return 2.0 * m * k * n
            case "matmul", (b, m, k, n):
                return 2.0 * b * m * k * n
            case "conv", (c, o, size, taps, stride, pad, rank):
                return 2.0 * c * o * taps**rank * _out(size, taps, stride, pad) ** rank
            case "depthwise", (c, size, taps, stride, pad):
                return 2.0 * c * taps**2 * _out(size, taps, stride, pad) ** 2
        return 0.0

    @property
    def bytes(self) -> float:
        """Bytes of the weight, where reading it is the work."""
        return (
            4.0 * self.shape[1] * self.shape[2]
            if self.kind == "dense" and self.shape[0] == 1
            else 0.0
        )


CASES = (
    Case("dense 128x768x3072", "dense", (128, 768, 3072)),
    Case("dense 1x768x3072", "dense", (1, 768, 3072)),
    Case("dense 8x384x1536", "dense", (8, 384, 1536)),
    Case("magika conv 256->512, 5 taps @512", "conv", (256, 512, 512, 5, 1, 0, 1)),
    Case("conv 3x3 64->64 @56", "conv", (64, 64, 56, 3, 1, 1, 2)),
    Case("conv 3x3 128->128 @28", "conv", (128, 128, 28, 3, 1, 1, 2)),
    Case("conv 3x3 64->128 @56 s2", "conv", (64, 128, 56, 3, 2, 1, 2)),
    Case("conv 1x1 96->32 @56", "conv", (96, 32, 56, 1, 1, 0, 2)),
    Case("conv 1x1 32->144 @56", "conv", (32, 144, 56, 1, 1, 0, 2)),
    Case("conv 1x1 672->112 @14", "conv", (672, 112, 14, 1, 1, 0, 2)),
    Case("conv 1x1 320->1280 @7", "conv", (320, 1280, 7, 1, 1, 0, 2)),
    Case("depthwise 96 k3 @56", "depthwise", (96, 56, 3, 1, 1)),
    Case("depthwise 96 k3 @112 s2", "depthwise", (96, 112, 3, 2, 1)),
    Case("depthwise 240 k5 @28", "depthwise", (240, 28, 5, 1, 2)),
    Case("depthwise 672 k3 @14", "depthwise", (672, 14, 3, 1, 1)),
    Case("matmul 12x128x32x128", "matmul", (12, 128, 32, 128)),
    Case("matmul 12x128x128x32", "matmul", (12, 128, 128, 32)),
    Case("softmax 96x384", "softmax", (96, 384)),
    Case("softmax 1536x128", "softmax", (1536, 128)),
    Case("layernorm 96x384", "layernorm", (96, 384)),
    Case("gelu 96x1536", "gelu", (96, 1536)),
    Case("relu 96x1536", "relu", (96, 1536)),
    Case("global mean 96 @56", "mean", (96, 56)),
    Case("global mean 1280 @7", "mean", (1280, 7)),
)


def _out(size: int, taps: int, stride: int, pad: int) -> int:
    return (size + 2 * pad - taps) // stride + 1


def ours(case: Case, target: Target, way: str = "stealing") -> tuple[Callable[[], None], str]:
    """A call of our kernel, and the rule that scheduled it.

    way: "stealing", as it is shipped, or "equal parts", as TVM shares parallel loops out
    """
    from tapml_stages.compat import tvm
    from tapml_stages.tensorir.schedule import schedule

    func = _function(case, max(8, min(16, target.vector_bits // 32)))
    scheduled, rule = schedule(func, target)
    return _callable(tvm, scheduled, target, way), rule


def _callable(tvm: Any, func: Any, target: Target, way: str) -> Callable[[], None]:
    from tapml_stages.target import tvm_target
    from tapml_stages.work_stealing import PIPELINE

    mod = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    pipeline = PIPELINE if way == "stealing" else "default"
    kernel = tvm.compile(mod, tvm_target(target), tir_pipeline=pipeline)["kernel"]
    rng = np.random.default_rng(0)
    shapes = [[int(size) for size in param.ty.shape] for param in func.params]
    args = [tvm.runtime.tensor(rng.standard_normal(shape).astype("float32")) for shape in shapes]
    return lambda: kernel(*args)


def _function(case: Case, lanes: int) -> Any:
    from tapml_stages.compat import tvm
    from tapml_stages.tensorir import te_ops

    te, op = tvm.te, tvm.relax.op
    match case.kind, case.shape:
        case "dense", (m, k, n):
            x = te.placeholder((m, k))
            w = te.placeholder((-(-n // te_ops.PANEL), k, te_ops.PANEL))
            return te.create_prim_func([x, w, te_ops.dense(x, w, n)])
        case "conv", (c, o, size, taps, stride, pad, rank):
            x = te.placeholder((1, c // lanes, *[size] * rank, lanes))
            w = te.placeholder((o // lanes, c // lanes, *[taps] * rank, lanes, lanes))
            slide = te_ops.Window((stride,) * rank, (pad,) * rank, (pad,) * rank, (1,) * rank)
            return te.create_prim_func([x, w, te_ops.conv(x, w, slide)])
        case "depthwise", (c, size, taps, stride, pad):
            x = te.placeholder((1, c // lanes, size, size, lanes))
            w = te.placeholder((c // lanes, taps, taps, lanes))
            slide = te_ops.Window((stride,) * 2, (pad,) * 2, (pad,) * 2, (1, 1))
            return te.create_prim_func([x, w, te_ops.depthwise(x, w, slide)])
        case "mean", (c, size):
            return _legalized(
                tvm,
                (1, c // lanes, size, size, lanes),
                lambda x: op.mean(x, axis=[2, 3], keepdims=True),
            )
        case "matmul", (b, m, k, n):
            x, y = te.placeholder((b, m, k)), te.placeholder((b, k, n))
            d = te.reduce_axis((0, k))
            out = te.compute((b, m, n), lambda i, r, c: te.sum(x[i, r, d] * y[i, d, c], axis=d))
            return te.create_prim_func([x, y, out])
        case "layernorm", (_, k):
            ones = [tvm.relax.const(np.ones(k, "float32"))] * 2
            return _legalized(
                tvm, case.shape, lambda x: op.nn.layer_norm(x, *ones, axes=[-1], epsilon=1e-5)
            )
    made = {"softmax": op.nn.softmax, "gelu": op.nn.gelu, "relu": op.nn.relu}[case.kind]
    return _legalized(tvm, case.shape, made)


def _legalized(tvm: Any, shape: Sequence[int], build: Callable[[Any], Any]) -> Any:
    relax = tvm.relax
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(build(x)))
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    mod = tvm.ir.transform.Sequential(passes)(builder.get())
    (func,) = [f for f in mod.functions.values() if isinstance(f, tvm.tirx.PrimFunc)]
    return func


def theirs(case: Case, threads: int) -> Callable[[], None]:
    """A call of onnxruntime's kernel."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    attributes: dict[str, Any] = {}
    match case.kind, case.shape:
        case "dense", (m, k, n):
            kind, x, weights = "MatMul", [(m, k)], {"w": rng.standard_normal((k, n))}
        case "matmul", (b, m, k, n):
            kind, x = "MatMul", [(b, m, k), (b, k, n)]
        case "conv", (c, o, size, taps, stride, pad, rank):
            kind, x = "Conv", [(1, c, *[size] * rank)]
            weights = {"w": rng.standard_normal((o, c, *[taps] * rank))}
            attributes = {"strides": [stride] * rank, "pads": [pad] * 2 * rank}
        case "depthwise", (c, size, taps, stride, pad):
            kind, x = "Conv", [(1, c, size, size)]
            weights = {"w": rng.standard_normal((c, 1, taps, taps))}
            attributes = {"strides": [stride] * 2, "pads": [pad] * 4, "group": c}
        case "layernorm", (_, k):
            kind, x = "LayerNormalization", [case.shape]
            weights = {"g": np.ones(k), "b": np.ones(k)}
        case "mean", (c, size):
            kind, x = "GlobalAveragePool", [(1, c, size, size)]
        case other, shape:
            kind, x = {"softmax": "Softmax", "gelu": "Gelu", "relu": "Relu"}[other], [shape]
    names = [f"x{i}" for i in range(len(x))]
    graph = helper.make_graph(
        [helper.make_node(kind, [*names, *weights], ["y"], **attributes)],
        "one",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(names, x, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype("float32"), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 9
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, shape in zip(names, x, strict=True):
        binding.bind_cpu_input(name, rng.standard_normal(shape).astype("float32"))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def _serve(
    make: Callable[..., Any], args: tuple[Any, ...], threads: int, turns: Connection
) -> None:
    """A process that makes its kernel, then times one burst whenever it is told to."""
    if make is not theirs:
        os.environ["TVM_NUM_THREADS"] = str(threads)  # `config_threadpool` costs 7 us a launch
    made = make(*args)
    call, note = made if isinstance(made, tuple) else (made, "")
    clock = (
        time.process_time if threads == 1 else time.perf_counter
    )  # one thread: time while it had the core
    call()
    started = time.perf_counter()
    call()
    count = max(1, int(BURST_S / max(time.perf_counter() - started, 1e-7)))
    turns.send(note)
    while turns.recv():
        call()  # wakes the threads
        started = clock()
        for _ in range(count):
            call()
        turns.send((clock() - started) / count)


class Turn:
    """One runtime in its own process, stopped while others have their turn: idle pools spin."""

    def __init__(self, make: Callable[..., Any], args: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.turns, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, args, threads, other))
        self.process.start()
        other.close()
        self.note: str = self.turns.recv()
        self.best = math.inf
        self._signal(signal.SIGSTOP)

    def burst(self) -> None:
        self._signal(signal.SIGCONT)
        self.turns.send(True)
        self.best = min(self.best, self.turns.recv())
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.turns.send(False)
        self.process.join()


def shortest(turns: Sequence[Turn], rounds: int) -> list[float]:
    """Seconds of the shortest burst of each, bursts alternating."""
    for _ in range(rounds):
        for turn in turns:
            turn.burst()
            time.sleep(0.002)
    for turn in turns:
        turn.close()
    return [turn.best for turn in turns]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="cases whose name holds one of these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--out", type=Path, help="JSON file (default: results/kernels_<threads>t.json)"
    )
    options = parser.parse_args(arguments)
    found = resolve(TargetSection())
    device = found.device.model_copy(update={"threads": options.threads})
    target = found.model_copy(update={"device": device})
    threads = options.threads

    with Bench(target) as bench:
        limits = roofline.measure(bench, target)
    print(f"{target.mcpu}, {threads} thread(s): {limits}")
    print(
        f"{'kernel':36}{'rule':12}{'ours ms':>9}{'GFLOP/s':>9}{'limit':>11}"
        f"{'ort ms':>9}{'ours/ort':>10}"
    )
    rows = []
    for case in CASES:
        if options.names and not any(name in case.name for name in options.names):
            continue
        mine, peer = Turn(ours, (case, target), threads), Turn(theirs, (case, threads), threads)
        seconds, ort = shortest([mine, peer], options.rounds)
        gflops = case.flops / seconds / 1e9
        work = roofline.Work(case.flops, case.bytes)
        part = limits.least_ms(work) / (seconds * 1e3) if case.flops else None
        limit = f"{100 * part:.0f}% {limits.binds(work)}" if part else ""
        print(
            f"{case.name:36}{mine.note:12}{seconds * 1e3:9.4f}{gflops:9.1f}{limit:>11}"
            f"{ort * 1e3:9.4f}{seconds / ort:10.2f}",
            flush=True,
        )
        rows.append(
            {
                **asdict(case),
                "rule": mine.note,
                "ours_ms": seconds * 1e3,
                "onnxruntime_ms": ort * 1e3,
                "gflops": gflops,
                "part_of_limit": part,
            }
        )
    result = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": host.fingerprint(),
        "target": target.mcpu,
        "threads": threads,
        "limits": asdict(limits),
        "kernels": rows,
    }
    out = options.out or RESULTS / f"kernels_{threads}t.json"
    if not options.names or options.out:
        out.parent.mkdir(exist_ok=True)
        out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
