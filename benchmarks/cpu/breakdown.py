"""Where the time of a whole model goes, ours and onnxruntime's, beside what the machine allows.

    python benchmarks/cpu/breakdown.py [MODEL ...] [--column untuned] [--threads 2]

Each model's first size. Ours: each kernel as the virtual machine runs it in the model, the shortest
of its calls, and the least time that its multiply-adds at the FMA peak or its bytes at the read
bandwidth take, both measured just before. onnxruntime's: its own profiler, the
shortest of each node's calls. Sums of both are by kind of operator; times of single kernels stand
beside those of the nodes that they were imported from, where onnxruntime kept their names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import run

import tapml
from tapml import bundle as bundles
from tapml import host
from tapml.target import DeviceSection, TargetSection, resolve
from tapml_stages import codec, roofline
from tapml_stages.measure import Bench

sys.path.insert(0, str(run.ROOT / "benchmarks"))
import page

RESULTS = run.ROOT / "benchmarks" / "results" / "cpu_breakdown.json"
REPEATS = 15
TOP = 6  # kernels of a model that are named
KINDS = {  # our rule → kind
    "conv": "convolutions",
    "pointwise_depthwise": "convolutions",
    "depthwise": "convolutions",
    "dense": "products",
    "matmul": "products",
    "tensorize": "products",
    "attention": "attention",
    "cached_attention": "attention",
}
THEIRS = {  # onnxruntime's operator → kind; all others are elementwise and movement
    "Conv": "convolutions",
    "FusedConv": "convolutions",
    "ConvTranspose": "convolutions",
    "MatMul": "products",
    "Gemm": "products",
    "FusedGemm": "products",
    "FusedMatMul": "attention",  # scaled by what the softmax wants
    "Softmax": "attention",
}
OTHER = "the rest"


def ours(folder: Path, threads: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Milliseconds of every kernel of one call, in a process of its own."""
    return _elsewhere("ours", str(folder), threads, arrays)


def theirs(model: Path, threads: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Milliseconds and operator of every node of one call."""
    return _elsewhere("theirs", str(model), threads, arrays)


def _elsewhere(
    which: str, path: str, threads: int, arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "inputs.npz"
        codec.write_npz(given, arrays)
        command = [sys.executable, __file__, "--one", which, path, str(threads), str(given)]
        env = {**os.environ, "TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _ours(path: str, threads: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    folder = Path(path)
    library = bundles.module(folder, "run.py").load(folder, verify=False, threads=threads)
    call = (library.session() if library.manifest["states"] else library).prepare(**arrays)
    calls: dict[str, list[float]] = defaultdict(list)
    began = 0.0

    def note(_func: Any, name: str, before: bool, _result: Any, *_args: Any) -> None:
        nonlocal began
        if before:
            began = time.perf_counter()
        else:
            calls[name].append(1e3 * (time.perf_counter() - began))

    for _ in range(3):
        call()
    library._machine.set_instrument(note)
    for _ in range(REPEATS):
        call()
    found = {}
    for name, taken in calls.items():
        if len(taken) % REPEATS == 0:
            each = np.array(taken).reshape(REPEATS, -1)
            found[name] = {"ms": float(each.min(axis=0).sum()), "calls": each.shape[1]}
    return found


def _theirs(path: str, threads: int, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(REPEATS + 3):
            session.run(None, dict(arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
    taken: dict[str, list[float]] = defaultdict(list)
    ops = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name].append(event["dur"] / 1e3)
            ops[name] = event["args"]["op_name"]
    return {name: {"ms": min(values), "op": ops[name]} for name, values in taken.items()}


def profile(name: str, column: str, threads: int, store: Path) -> dict[str, Any]:
    """Kernels, kinds and sums of the first size of a model."""
    model = run.MODELS[name]
    size = model.sizes()[0]
    bundle, result = run.build(model, threads, run.COLUMNS[column], store)
    original = store / "peers" / f"{name.partition(',')[0]}.onnx"
    original.parent.mkdir(parents=True, exist_ok=True)
    if not original.exists():
        model.peer(original)
    mine = ours(bundle, threads, size.ours)
    other = theirs(run._fixed(original, size.theirs), threads, size.theirs)
    calls = _calls(bundle, set(mine))
    standing = _standing(result, calls, _limits(threads))
    # onnxruntime names what it computes in blocks after the value or node that it was
    plain = {node.removesuffix("_nchwc"): row for node, row in other.items()}
    kernels = []
    for kernel, row in sorted(mine.items(), key=lambda item: -item[1]["ms"]):
        if kernel in standing:
            found = [plain[n] for one in calls[kernel] for n in one["nodes"] if n in plain]
            named = sum(one["op"] in THEIRS for one in found)  # convolutions and products
            beside = sum(one["ms"] for one in found) if named >= row["calls"] else None
            kernels.append({"kernel": kernel, **row, **standing[kernel], "onnxruntime_ms": beside})
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for row in kernels:
        own = kinds[KINDS.get(row["rule"], OTHER)]
        own[0] += row["ms"]
        own[1] += row["least_ms"] or 0.0
    for row in other.values():
        kinds[THEIRS.get(row["op"], OTHER)][2] += row["ms"]
    return {
        "model": name,
        "size": size.label,
        "column": column,
        "threads": threads,
        "commit": run.commit(),
        "kinds": {
            kind: dict(zip(("ms", "least_ms", "onnxruntime_ms"), v, strict=True))
            for kind, v in kinds.items()
        },
        "kernels": kernels[:TOP],
    }


def _limits(threads: int) -> roofline.Limits:
    target = resolve(TargetSection(device=DeviceSection(threads=threads)))
    with Bench(target) as bench:
        return roofline.measure(bench, target)


def _standing(
    result: tapml.RunResult, calls: Mapping[str, Sequence[Any]], now: roofline.Limits
) -> dict[str, dict[str, Any]]:
    """What `metaschedule` reports of every kernel: rule, least time of all calls, and which limit
    that is; in terms of the limits as they are `now`.
    """
    (step,) = [step for step in result.steps if step.name == "metaschedule"]
    then = step.report.metrics
    reads = [rate for name, rate in then.items() if name.startswith("limits/read_")]
    faster = {
        "FMA": 1e9 * then["limits/fma_gflops"] / now.operations,
        "read": 1e9 * min(reads) / min(rate for _, rate in now.reads),
    }
    found: dict[str, dict[str, Any]] = {}
    for bars in step.report.bars:
        exact = " at " not in bars.title  # else the limits are of the size that it was timed at
        for bar in bars.bars:
            _, _, said = bar.note.partition(" ")
            rule, _, rest = said.partition(",")
            binds = rest.rpartition(" of ")[2].partition(",")[0]
            least = bar.least * faster[binds] if exact and bar.least is not None else None
            found[bar.name] = {"rule": rule, "least_ms": least, "binds": binds}
    every = {}
    for kernel, rows in calls.items():
        names = {row["kernel"] for row in rows}  # of equal kernels, before one was shared
        alike = [found[name] for name in names if name in found]
        if alike:  # a bar is of all calls of one name; a report need not have one for each
            least = sum(one["least_ms"] or 0.0 for one in alike) / len(alike) * len(names)
            every[kernel] = {**alike[0], "least_ms": least or None}
    return every


def _calls(bundle: Path, kernels: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Kernel → its calls in the clone that ran, each with its name before equal kernels were
    shared, and the source nodes of it.
    """
    shared = json.loads((bundle / "manifest.json").read_text())["shared_kernels"]
    table = json.loads((bundle / "call_map.json").read_text())
    for rows in table.values():
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if isinstance(row, dict):
                found[shared.get(row["kernel"], row["kernel"])].append(row)
        if found and found.keys() <= kernels:
            return found
    return {}


def show(found: Sequence[dict[str, Any]]) -> list[str]:
    """Two tables in Markdown: kinds of operators, and the kernels that take most time."""
    lines = [
        "| model | kind | ours ms | limits ms | onnxruntime ms |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        for kind, own in sorted(row["kinds"].items(), key=lambda item: -item[1]["ms"]):
            limit = f"{own['least_ms']:.3f}" if own["least_ms"] else "–"
            lines.append(
                f"| {row['model']}, {row['size']} | {kind} | {own['ms']:.3f} "
                f"| {limit} | {own['onnxruntime_ms']:.3f} |"
            )
    lines += [
        "",
        "| model | kernel | calls | ours ms | of limit | same nodes in onnxruntime, ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        for one in row["kernels"]:
            least, beside = one["least_ms"], one["onnxruntime_ms"]
            share = f"{least / one['ms']:.0%} of {one['binds']}" if least else "–"
            lines.append(
                f"| {row['model']} | {one['kernel']} ({one['rule']}) | {one['calls']} "
                f"| {one['ms']:.3f} | {share} | {'–' if beside is None else f'{beside:.3f}'} |"
            )
    return lines


@click.command()
@click.argument("models", nargs=-1)
@click.option("--column", default="untuned")
@click.option("--threads", default=2)
def main(models: tuple[str, ...], column: str, threads: int) -> None:
    """Profiles MODELS (default: all but those whose weights the peer has not)."""
    store = run.own_store(run.rooms_digest())
    names = models or tuple(name for name in run.MODELS if "," not in name)
    found = [profile(name, column, threads, store) for name in names]
    text = show(found)
    print("\n".join(text))
    kept = {"host": host.fingerprint(), "rows": found}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    page.place("benchmarks.md", "where the time goes", "\n".join(["", *text, ""]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        which, path, threads, given = sys.argv[2:]
        with np.load(given, allow_pickle=False) as arrays:
            found = {"ours": _ours, "theirs": _theirs}[which](path, int(threads), dict(arrays))
        print(json.dumps(found))
    else:
        main()
