"""What memory planning saves: bytes that the virtual machine's allocator holds, and peak memory.

    python benchmarks/memory_planning.py [--out FILE] [PROGRAM ...]

Language models with random weights, prefill at the largest number of tokens and decode, three ways:
nothing planned, TVM's StaticPlanBlockMemory, ours. Then a program whose activations take some
hundred megabytes is run in a process of its own each way, and its peak memory compared with what
the allocator was computed to hold. Prints a table, and writes the JSON.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np

from tapml import host
from tapml.target import TargetSection, resolve

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "memory_planning.json"
sys.path.insert(0, str(ROOT / "tests"))

SMOLLM2 = {  # config.json of SmolLM2-135M
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Model:
    """A language model: its family, what its configuration changes, the tokens its cache holds."""

    family: str
    changes: Mapping[str, Any]
    context: int
    batch: int = 1  # rows, at most


MODELS = {
    "SmolLM2-135M": Model("llama", {**SMOLLM2, "max_position_embeddings": 1024}, 1024),
    "tiny llama": Model("llama", {}, 64),
    "tiny gemma2": Model("gemma2", {}, 64),
}
LARGE = Model("llama", {}, 64, batch=4096)  # tiny weights, hundreds of megabytes of activations


def applied(model: Model) -> tuple[Any, Any, list[np.ndarray]]:
    """The program with default schedules as codegen lowers it, its signature, packed weights."""
    import families

    from tapml_stages import params, records
    from tapml_stages.codegen.apply import apply, with_schedules
    from tapml_stages.codegen.share import share_kernels
    from tapml_stages.importer.huggingface.generate import decoder
    from tapml_stages.program import Bounds
    from tapml_stages.relax.passes import passes
    from tapml_stages.target import tvm_target
    from tapml_stages.tensorir.lower import lower
    from tapml_stages.tensorir.schedule import default_records

    network = families.make(model.family, **model.changes)
    rows = Bounds(1, model.batch) if model.batch > 1 else 1
    program, weights = decoder(network, model.context, rows, where=model.family)
    mod = program.mod
    for _, transform in passes():
        mod = transform(mod)
    target = resolve(TargetSection())
    lowered = lower(program.with_mod(mod), target)
    defaults = default_records(lowered.mod, target)
    choices = records.Choices(tuple(records.KernelChoice(r.kernel, r.id, ()) for r in defaults))
    scheduled = with_schedules(lowered.mod, choices, defaults)
    done = apply(scheduled, len(lowered.io.arguments), [], {})
    packed = params.pack(lowered, weights, tvm_target(target, 0))
    return share_kernels(done.mod)[0], lowered.io, [packed[i] for i in done.packed]


def plans() -> dict[str, Callable[[Any], Any] | None]:
    """The ways to plan memory, by name."""
    from tapml_stages.codegen.memory import plan_memory
    from tapml_stages.compat import tvm

    stock = tvm.relax.transform.StaticPlanBlockMemory()
    return {"unplanned": None, "StaticPlanBlockMemory": stock, "planned": plan_memory}


def held(mod: Any, io: Any) -> dict[str, dict[str, dict[str, int]]]:
    """Clone → plan → bytes held, with and without what is returned, at the largest sizes."""
    from tapml_stages.codegen.build import lower
    from tapml_stages.codegen.footprint import held_bytes
    from tapml_stages.program import concrete_shape
    from tapml_stages.target import tvm_target

    target = tvm_target(resolve(TargetSection()))
    sizes = {name: bounds.max for name, bounds in io.dims.items()}
    returned = sum(4 * int(np.prod(concrete_shape(spec, sizes))) for spec in io.outputs)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for plan, how in plans().items():
        for clone, size in held_bytes(lower(mod, target, plan=how), sizes).items():
            if clone != "main":
                both = {"held": size, "activations": size - -(-returned // 4096) * 4096}
                found.setdefault(clone, {})[plan] = both
    return found


def peaks() -> dict[str, Any]:
    """Peak memory of a run of `LARGE`, each way, in processes of their own."""
    from tapml_stages.codegen.build import Linking, build_library, lower
    from tapml_stages.codegen.footprint import held_bytes
    from tapml_stages.target import tvm_target
    from tapml_stages.toolchain import compiler

    mod, io, packed = applied(LARGE)
    target = tvm_target(resolve(TargetSection()))
    sizes = {name: bounds.max for name, bounds in io.dims.items()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "packed.npz", *packed, allow_pickle=False)
        specs = [(one.shape, one.dtype) for one in io.arguments]
        (folder / "io.json").write_text(json.dumps({"arguments": specs, "sizes": sizes}))
        for plan, how in plans().items():
            lowered = lower(mod, target, plan=how)
            build_library(lowered, target, folder / "lib.so", Linking(compiler()))
            command = [sys.executable, __file__, "--run", name]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
            size = held_bytes(lowered, sizes)["prefill"]
            found[plan] = {"held": size, "peak_rss": json.loads(answer.stdout)["bytes"]}
    return found


def run_once(folder: Path) -> int:
    """Bytes by which a prefill of the library in `folder` raises the peak of this process."""
    from tapml_stages.compat import tvm

    io = json.loads((folder / "io.json").read_text())
    with np.load(folder / "packed.npz", allow_pickle=False) as data:
        packed = [tvm.runtime.tensor(data[f"arr_{i}"]) for i in range(len(data.files))]
    tensors = []
    for shape, dtype in io["arguments"]:
        size = [io["sizes"].get(n, n) for n in shape]
        tensors.append(tvm.runtime.tensor(np.ones(size, dtype)))  # touched, token 1 everywhere
    tensors[1] = tvm.runtime.tensor(np.zeros_like(tensors[1].numpy()))  # position
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(folder / "lib.so")), tvm.cpu())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    machine["prefill"](*tensors, *packed)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def table(result: Mapping[str, Any]) -> str:
    lines = ["program        clone     plan                    held MiB  activations MiB  saved"]
    for name, clones in result["programs"].items():
        for clone, ways in clones.items():
            base = ways["unplanned"]["activations"]
            for plan, size in ways.items():
                saved = 1 - size["activations"] / base
                lines.append(
                    f"{name:14} {clone:9} {plan:22} {size['held'] / 2**20:9.3f}"
                    f" {size['activations'] / 2**20:16.3f} {saved:6.1%}"
                )
    if peak := result.get("peak"):
        for plan, size in peak.items():
            lines.append(
                f"{plan:22} held {size['held'] / 2**20:7.1f} MiB, "
                f"peak RSS over the call {size['peak_rss'] / 2**20:7.1f} MiB"
            )
    return "\n".join(lines)


@click.command()
@click.argument("programs", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--run", type=click.Path(path_type=Path), hidden=True)
def main(programs: tuple[str, ...], out: Path, run: Path | None) -> None:
    if run is not None:
        click.echo(json.dumps({"bytes": run_once(run)}))
        return
    result: dict[str, Any] = {
        "host": host.fingerprint(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "programs": {},
    }
    for name in programs or (*MODELS, "peak"):
        if name == "peak":
            result["peak"] = peaks()
        else:
            mod, io, _ = applied(MODELS[name])
            result["programs"][name] = held(mod, io)
    out.write_text(json.dumps(result, indent=1) + "\n")
    click.echo(table(result))


if __name__ == "__main__":
    main()
