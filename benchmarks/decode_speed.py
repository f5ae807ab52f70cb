"""How fast and in how much memory a bundle writes text: `benchmarks/decode_speed.py BUNDLE`.

A step reads all weights once, so the machine's own limit is the time that reading as many bytes
takes: measured here by a kernel that adds up an array of that size, on the same threads, in turns
with the steps. Tables that are looked up ([vocabulary, …]) are not counted: a step reads a row of
them. Memory is that of a fresh process with the runtime alone that reads a prompt as long as its
context, beside what the manifest states.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tapml import bundle as bundles
from tapml import host

RESULTS = Path(__file__).parent / "results"
LANES, PARTS, CHUNKS = 16, 8, 64  # of the reading kernel
PREFILLS = (16, 128)

MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from run import import_runtime, load
from generate import Generator

def rss():
    line = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")]
    return int(line[0].split()[1]) * 1024

import_runtime()
before = rss()
generator = Generator(load(sys.argv[1], threads=int(sys.argv[2])))
list(generator.generate([[1] * (generator.context - 8)], max_tokens=8))
print(rss() - before)
"""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--position", type=int, default=100, help="tokens in the cache")
    options = parser.parse_args(arguments)
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    result = measure(options.bundle, options.threads, options.rounds, options.position)
    path = RESULTS / f"decode_speed_{options.threads}t.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)


def measure(folder: Path, threads: int, rounds: int, position: int) -> dict[str, Any]:
    from tapml_stages.compat import tvm  # noqa: F401  # the compiler, before a bundle loads less

    manifest = bundles.manifest(folder)
    vocabulary = manifest["outputs"][0]["shape"][-1]
    bundle = bundles.module(folder, "run.py").load(folder, verify=False, threads=threads)
    weights = [one for one in bundle._params if one.shape[0] != vocabulary]
    size = sum(_bytes(one) for one in weights)
    read = reader(size)
    session = bundle.session()
    step = prepared(session, 1, position)
    step()
    times: dict[str, list[float]] = {"read": [], "step": []}
    for _ in range(rounds):
        times["read"].append(_seconds(read))
        times["step"].append(_seconds(step))
    ratios = np.array(times["step"]) / np.array(times["read"])
    prefill = {}
    for tokens in PREFILLS:
        run = prepared(session, tokens, 0)
        prefill[tokens] = tokens / min(_seconds(run) for _ in range(5))
    bandwidth = size / min(times["read"])
    command = [sys.executable, "-c", MEMORY, str(folder), str(threads)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    stated = manifest["params"]["bytes"] + manifest["state_bytes"] + manifest["memory_bytes"]
    return {
        "bundle": manifest["name"],
        "threads": threads,
        "weights_bytes": size,
        "position": position,
        "read_ms": _spread(times["read"]),
        "step_ms": _spread(times["step"]),
        "ratio": {"best": min(times["step"]) / min(times["read"]), "p50": float(np.median(ratios))},
        "read_gb_s": bandwidth / 1e9,
        "prefill_tokens_s": prefill,
        "kernels": kernels(bundle, step, vocabulary, bandwidth),
        "memory": {"stated": stated, "measured": int(answer.stdout)},
        "load": os.getloadavg()[0],
        "host": host.fingerprint(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def prepared(session: Any, tokens: int, position: int) -> Callable[[], Any]:
    ids = np.ones((1, tokens), np.int64)
    return session.prepare(
        input_ids=ids, position=np.array([position]), last=np.array([tokens - 1])
    )


def reader(size: int) -> Callable[[], Any]:
    """A call that reads about `size` bytes on all threads."""
    from tapml.target import TargetSection, resolve
    from tapml_stages.compat import tvm
    from tapml_stages.target import tvm_target
    from tapml_stages.tensorir.loops import lanes, local, loop, parallel, scheduled, seq, store

    tirx = tvm.tirx
    per_task = size // (4 * CHUNKS * PARTS * LANES)
    source = tirx.decl_buffer([CHUNKS * per_task * PARTS * LANES], "float32", "source")
    out = tirx.decl_buffer([CHUNKS, LANES], "float32", "out")

    def task(indices: list[Any]) -> Any:
        sums = [local("sum", (LANES,), "float32") for _ in range(PARTS)]

        def add(k: Any, part: int, x: Any) -> Any:
            at = ((indices[0] * per_task + k) * PARTS + part) * LANES + x
            value = tirx.BufferLoad(sums[part], [x]) + tirx.BufferLoad(source, [at])
            return store(sums[part], [x], value)

        def all_parts(k: Any) -> Any:
            return seq(lanes(LANES, lambda x, p=p: add(k, p, x)) for p in range(PARTS))

        def total(x: Any) -> Any:
            return sum((tirx.BufferLoad(one, [x]) for one in sums), tirx.const(0.0, "float32"))

        zero = tirx.const(0.0, "float32")
        return seq(
            [
                *(tirx.AllocBuffer(one) for one in sums),
                *(lanes(LANES, lambda x, one=one: store(one, [x], zero)) for one in sums),
                loop("step", per_task, all_parts),
                lanes(LANES, lambda x: store(out, [indices[0], x], total(x))),
            ]
        )

    empty = tvm.s_tir.SBlockRealize(
        [], True, tvm.s_tir.SBlock([], [], [], "root", tirx.Evaluate(0))
    )
    func = scheduled(tirx.PrimFunc([source, out], empty), parallel([CHUNKS], task, "int64"))
    func = func.with_attrs({"global_symbol": "read", "tirx.noalias": True})
    read = tvm.compile(tvm.IRModule({"read": func}), tvm_target(resolve(TargetSection())))["read"]
    arrays = [np.ones([int(n) for n in one.ty.shape], np.float32) for one in (source, out)]
    tensors = [tvm.runtime.tensor(one) for one in arrays]
    read(*tensors)
    assert float(tensors[1].numpy().sum()) == arrays[0].size  # all of it, once
    return lambda: read(*tensors)


def kernels(
    bundle: Any, step: Callable[[], Any], vocabulary: int, bandwidth: float
) -> list[dict[str, Any]]:
    """Kernels of one step by time; of those that read weights the share of the bandwidth."""
    seconds: dict[str, list[float]] = defaultdict(list)
    read: dict[str, int] = {}
    began = 0.0

    def note(_func: Any, name: str, before: bool, _result: Any, *args: Any) -> None:
        nonlocal began
        if before:
            began = time.perf_counter()
            return
        seconds[name].append(time.perf_counter() - began)
        whole = [one for one in args if hasattr(one, "shape") and one.shape[0] != vocabulary]
        read[name] = max((_bytes(one) for one in whole if one.shape[0] != 1), default=0)

    repeats = 5
    bundle._machine.set_instrument(note)
    for _ in range(repeats):
        step()
    bundle._machine.set_instrument(lambda *_: None)
    rows = []
    for name, taken in sorted(seconds.items(), key=lambda item: -sum(item[1])):
        if name.startswith("vm.") or name in ("main", "decode"):
            continue
        calls = len(taken) // repeats
        fast = float(np.median(taken))
        row = {"kernel": name, "calls": calls, "ms": 1e3 * sum(taken) / repeats}
        if read[name] >= 1 << 20:
            row["share_of_bandwidth"] = read[name] / fast / bandwidth
        rows.append(row)
    return rows[:16]


def show(result: dict[str, Any]) -> None:
    print(f"{result['bundle']}, {result['threads']} threads, load {result['load']:.1f}")
    read, step, ratio = result["read_ms"], result["step_ms"], result["ratio"]
    print(f"reading {result['weights_bytes'] / 1e6:.0f} MB  {read['p50']:8.2f} ms", end="")
    print(f"  (best {read['best']:.2f}, {result['read_gb_s']:.1f} GB/s)")
    print(f"one token        {step['p50']:8.2f} ms  (best {step['best']:.2f})")
    print(f"ratio            {ratio['p50']:8.2f}     (best of each: {ratio['best']:.2f})")
    for tokens, rate in result["prefill_tokens_s"].items():
        print(f"prefill {tokens:4}     {rate:8.1f} tokens/s")
    memory = result["memory"]
    print(f"memory stated {memory['stated'] / 1e6:.0f} MB, measured {memory['measured'] / 1e6:.0f}")
    for row in result["kernels"]:
        share = f"{row['share_of_bandwidth']:6.0%}" if "share_of_bandwidth" in row else ""
        print(f"{row['ms']:8.3f} ms {row['calls']:4} x {row['kernel'][:50]:50} {share}")


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    best, middle, high = np.percentile(seconds, [0, 50, 90])
    return {"best": best * 1e3, "p50": middle * 1e3, "p90": high * 1e3}


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _bytes(tensor: Any) -> int:
    return prod(int(n) for n in tensor.shape) * np.dtype(str(tensor.dtype)).itemsize


if __name__ == "__main__":
    main(sys.argv[1:])
