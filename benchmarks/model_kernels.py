"""Kernels of models by their share of the time: `benchmarks/model_kernels.py [MODEL...]`.

Each model (of model_zoo.py, from torch with symbolic sizes; or a shipped recipe by its name) goes
through the rooms; every kernel's default schedule is timed at the sizes of the model, with its rule
and its ratio to what the machine allows: the larger of multiply-adds at the FMA peak and bytes at
the read bandwidth. A kernel with more than 1 % of the time of its clone that no rule but `fallback`
took, or whose machine code has no vectors, is flagged, and the script ends with 1. `--whole` times
the models of the zoo themselves too, beside torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import model_zoo

from tapml import host
from tapml.stage import Target
from tapml.target import TargetSection, resolve
from tapml_stages import roofline
from tapml_stages.measure import Bench, Job

RESULTS = Path(__file__).parent / "results"
RECIPES = {path.stem: path for path in Path(__file__).parents[1].glob("recipes/*.yaml")}
SHARE = 0.01  # of a model's time, from which a kernel counts
PACKED = re.compile(r"\b(?:v\w+p[sd]|vp\w+[bwdq]|vmovup[sd]|vmovdqu\w*)\b[^#]*%[xyz]mm")


@dataclass(frozen=True)
class Row:
    """One kernel at one size. `share`: of its clone's time; `vectors`: whether its machine code
    works on vectors, asked where the share counts.
    """

    clone: str
    kernel: str
    rule: str
    calls: int
    ms: float
    bound_ms: float
    share: float
    vectors: bool
    shapes: str

    @property
    def flagged(self) -> bool:
        return self.share > SHARE and (self.rule == "fallback" or not self.vectors)


def program(name: str) -> Any:
    """The model's program, imported."""
    import torch  # noqa: F401  # before TVM

    from tapml_stages.importer.torch import convert, export
    from tapml_stages.program import Bounds

    made = model_zoo.MODELS[name]()
    dims = {dim: Bounds(*bounds) for dim, bounds in made.dims.items()}
    wanted = {
        key: export.Wanted(shape, str(made.inputs[key].dtype).removeprefix("torch."))
        for key, shape in made.shapes.items()
    }
    exported = export.export(made.module, made.inputs, wanted, dims, name)
    imported, weights = convert.convert(
        exported,
        inputs=made.shapes,
        outputs=export.output_names(exported),
        dims=dims,
        where=name,
    )
    return imported, weights, made


def lowered(imported: Any, target: Target) -> tuple[Any, list[Any]]:
    """The program after tensorir, and its default records."""
    from tapml_stages.relax.passes import passes
    from tapml_stages.tensorir.lower import lower
    from tapml_stages.tensorir.schedule import default_records

    mod = imported.mod
    for _, transform in passes():
        mod = transform(mod)
    low = lower(imported.with_mod(mod), target)
    return low, default_records(low.mod, target)


def of_zoo(name: str, target: Target) -> tuple[Any, list[Any]]:
    """The lowered program of a model, with its sizes, and its default records."""
    from tapml_stages.program import Bounds

    imported, _, made = program(name)
    dims = {dim: Bounds(size, size) for dim, size in made.sizes.items()}
    low, records = lowered(imported, target)
    return replace(low, io=replace(low.io, dims=dims)), records


def of_recipe(name: str) -> tuple[Any, list[Any]]:
    """The lowered program of a shipped recipe, whose dims are timed in their middle, and its
    default records.
    """
    import tapml
    from tapml.store import Store
    from tapml_stages import program, records

    store = Path(os.environ.get("TAPML_STORE", RESULTS.parents[1] / "artifacts"))
    untuned = ["tuning.trials=0", "matrix="]
    done = tapml.run(RECIPES[name], set=untuned, to=["tensorir"], store=store, track="off")
    (outputs,) = [step.outputs for step in done.steps if step.name == "tensorir"]
    with tempfile.TemporaryDirectory() as folder:
        Store(store).materialise(outputs["program"], Path(folder, "program"))
        Store(store).materialise(outputs["records"], Path(folder, "records.jsonl"))
        found = program.load(Path(folder, "program"))
        return found, records.load(Path(folder, "records.jsonl"))


def rows(name: str, target: Target, limits: roofline.Limits, seconds: float) -> list[Row]:
    """Kernels of a model, the most expensive first."""
    from tapml_stages.metaschedule.kernels import find_kernels

    low, records = of_recipe(name) if name in RECIPES else of_zoo(name, target)
    jobs, sites = [], {}
    for kernel in find_kernels(low, records):
        for number, site in enumerate(kernel.sites):
            job = Job(
                id=f"{kernel.name}/{number}",
                module=kernel.default.func,
                kernel=kernel.name,
                args=site.args,
                outputs=site.outputs,
            )
            jobs.append(job)
            sites[job.id] = kernel, site
    with Bench(target) as bench:
        times = {timing.id: timing for timing in bench.run(jobs, seconds=seconds)}
    totals = Counter[str]()
    for job in jobs:
        if times[job.id].error:
            raise RuntimeError(f"{name}: {job.id}: {times[job.id].error}")
        _, site = sites[job.id]
        totals[site.clone] += min(times[job.id].bursts_ms) * site.count
    found: list[Row] = []
    for job in jobs:
        kernel, site = sites[job.id]
        ms = min(times[job.id].bursts_ms)
        share = ms * site.count / totals[site.clone]
        row = Row(
            site.clone,
            kernel.name,
            "its own" if "tirx.is_scheduled" in kernel.func.attrs else kernel.default.rule,
            site.count,
            ms,
            limits.least_ms(roofline.work(kernel.func, site.args)),
            share,
            share <= SHARE or has_vectors(kernel.default, target),
            " ".join("×".join(map(str, a.shape)) for a in site.args if not isinstance(a, int)),
        )
        found.append(row)
    return sorted(found, key=lambda row: (row.clone, -row.share))


def has_vectors(record: Any, target: Target) -> bool:
    """Whether the machine code has instructions on whole vectors."""
    from tapml_stages.compat import tvm
    from tapml_stages.target import tvm_target

    func = record.module()[record.kernel].with_attr("global_symbol", "kernel")
    text = tvm.compile(tvm.IRModule({"kernel": func}), tvm_target(target)).mod.inspect_source("asm")
    return bool(PACKED.search(text))


def whole(name: str, runtime: str, threads: int, seconds: float = 2.0) -> float:
    """Milliseconds of a call of the whole model, in a process of its own."""
    command = [sys.executable, __file__, "--time", runtime, "--threads", str(threads), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{name} on {runtime}: {done.stderr[-1000:]}")
    return float(done.stdout.split()[-1])


def time_whole(name: str, runtime: str, target: Target, seconds: float = 2.0) -> float:
    """The best of the calls that fit into `seconds`, in this process."""
    import torch

    torch.set_num_threads(target.device.threads)
    imported, weights, made = program(name)
    inputs = [resized(made, key) for key in made.inputs]
    if runtime == "torch":

        def call() -> Any:
            with torch.inference_mode():
                return made.module(*inputs)
    else:
        call = our_call(imported, weights, inputs, target)
    call()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def resized(made: Any, key: str) -> Any:
    """An example input at the sizes to be timed."""
    value = made.inputs[key]
    for axis, dim in enumerate(made.shapes[key]):
        if isinstance(dim, str):
            repeats = -(-made.sizes[dim] // value.shape[axis])
            value = value.repeat_interleave(repeats, axis).narrow(axis, 0, made.sizes[dim])
    return value.contiguous()


def our_call(imported: Any, weights: Any, inputs: Sequence[Any], target: Target) -> Any:
    """A call of the model with default schedules, weights packed before."""
    from tapml_stages.compat import tvm
    from tapml_stages.program import TRANSFORM
    from tapml_stages.target import tvm_target
    from tapml_stages.work_stealing import PIPELINE

    low, records = lowered(imported, target)
    mod = tvm.IRModule(low.mod.functions, attrs=low.mod.attrs)
    for record in records:
        (func,) = record.module().functions.values()
        mod.update_func(mod.get_global_var(record.kernel), func)
    device = tvm.cpu()
    built = tvm.compile(mod, tvm_target(target), tir_pipeline=PIPELINE)
    vm = tvm.relax.VirtualMachine(built, device)
    given = [tvm.runtime.tensor(weights[spec.name]) for spec in imported.io.params]
    packed = vm[TRANSFORM](given)
    tensors = [tvm.runtime.tensor(value.numpy()) for value in inputs]
    return lambda: vm["main"](*tensors, *packed)


def table(found: Sequence[Row], least: float = 0.004) -> Iterator[str]:
    yield f"  {'share':>6} {'kernel':44} {'rule':16} {'calls':>5} {'ms':>8} {'× bound':>8}"
    for row in found:
        if row.share >= least or row.flagged:
            ratio = row.ms / row.bound_ms if row.bound_ms else 0.0
            mark = "  << scalar" if row.flagged else ""
            yield (
                f"  {row.share:6.1%} {row.kernel[:44]:44} {row.rule:16} {row.calls:5} "
                f"{row.ms:8.4f} {ratio:8.1f} {row.clone}{mark}"
            )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known_names = [*model_zoo.MODELS, *sorted(RECIPES)]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(known_names))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each kernel")
    parser.add_argument("--whole", action="store_true", help="whole models too, beside torch")
    parser.add_argument("--time", choices=("tapml", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "model_kernels.json")
    options = parser.parse_args(arguments)
    if unknown := set(options.models) - set(known_names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(known_names)}")
    resolved = resolve(TargetSection())
    device = resolved.device.model_copy(update={"threads": options.threads})
    target = resolved.model_copy(update={"device": device})
    if options.time:
        print(time_whole(options.models[0], options.time, target))
        return 0

    with Bench(target) as bench:
        limits = roofline.measure(bench, target)
    print(f"{target.mcpu}, {options.threads} threads: {limits}")
    known = json.loads(options.out.read_text()) if options.out.exists() else {}
    result: dict[str, Any] = {"models": known.get("models", {})}
    flagged = 0
    for name in options.models or model_zoo.MODELS:
        found = rows(name, target, limits, options.seconds)
        total = sum(row.ms * row.calls for row in found)
        print(f"{name}: {len(found)} kernels, {total:.2f} ms")
        print("\n".join(table(found)), flush=True)
        times = {}
        if options.whole and name in model_zoo.MODELS:
            times = {kind: whole(name, kind, options.threads) for kind in ("tapml", "torch")}
            print(f"  whole model: {times['tapml']:.2f} ms, torch eager {times['torch']:.2f} ms")
        flagged += sum(row.flagged for row in found)
        result["models"][name] = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "sizes": model_zoo.MODELS[name]().sizes if name in model_zoo.MODELS else {},
            "kernels_ms": total,
            "whole_ms": times,
            "kernels": [asdict(row) for row in found if row.share >= 0.001],
        }
        result |= {
            "host": host.fingerprint(),
            "target": target.mcpu,
            "threads": options.threads,
            "limits": asdict(limits),
        }
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(f"{flagged} kernels above {SHARE:.0%} without a rule or without vectors")
    return 1 if flagged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
