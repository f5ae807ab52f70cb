"""A bundle folder: library, packed parameters, manifest, call map and its own `run.py`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tapml.errors import StageError
from tapml.stage import Context, Inputs, Outputs, Report, Table, Target
from tapml.target import cpuinfo_flags

from .. import alternatives, codec, params, program, records
from ..target import tvm_target
from ..toolchain import compiler
from ..views import Views
from .apply import Replacement, apply, with_schedules
from .build import Linking, build_library, lower
from .footprint import held_bytes
from .share import share_kernels
from .stage import Codegen


def write_bundle(stage: Codegen, inputs: Inputs, ctx: Context) -> Outputs:
    """Applies the choices, packs, builds and writes `bundle/`; see `Codegen`."""
    source = program.load(inputs["program"])
    choices = records.load_choices(inputs["choices"])
    shipped = records.load(inputs["records"])
    weights = codec.read_weights(inputs["weights"])
    target = tvm_target(stage.target, stage.opt_level)
    folder = ctx.workdir / "bundle"
    folder.mkdir()

    ctx.progress(0, 3, "packing weights")
    packed = params.pack(source, weights, tvm_target(stage.target, 0))
    replacements, arrays, libraries = _alternatives(inputs, choices, weights)
    scheduled = with_schedules(source.mod, choices, shipped)
    types = {name: _tensor_type(value) for name, value in arrays.items()}
    applied = apply(scheduled, len(source.io.arguments), replacements, types)
    mod, shared = share_kernels(applied.mod)
    shipped_params = [packed[i] for i in applied.packed] + [arrays[name] for name in applied.arrays]

    views = Views(ctx.views, source.mod)
    views("apply_schedules", scheduled)
    views("apply_choices", applied.mod)
    views("share_kernels", mod)
    lowered = lower(mod, target, watch=views)

    ctx.progress(1, 3, "compiling kernels")
    beside = tuple(shutil.copyfile(path, folder / path.name) for path in libraries)
    build_library(lowered, target, folder / "lib.so", Linking(compiler(), beside))
    ctx.progress(2, 3, "writing the bundle")
    names = _names(shipped_params)
    codec.write_npz(folder / "params.npz", dict(zip(names, shipped_params, strict=True)))
    for name in ("run.py", "generate.py") if source.io.states else ("run.py",):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    codec.write_json(folder / "call_map.json", source.groups or {})
    manifest = _manifest(stage, source.io, choices, names, shipped_params)
    largest = {name: bounds.max for name, bounds in source.io.dims.items()}
    manifest["memory_bytes"] = max(held_bytes(lowered, largest).values())
    manifest["state_bytes"] = _state_bytes(source.io)
    manifest["shared_kernels"] = shared
    if "files" in inputs:
        shutil.copytree(inputs["files"], folder, dirs_exist_ok=True)
    manifest["files"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }
    codec.write_json(folder / "manifest.json", manifest)
    ctx.progress(3, 3)
    return Outputs({"bundle": folder}, _report(folder, manifest))


def _tensor_type(value: np.ndarray) -> Any:
    from ..compat import tvm

    return tvm.relax.TensorType(value.shape, str(value.dtype))


def _alternatives(
    inputs: Inputs, choices: records.Choices, weights: dict[str, np.ndarray]
) -> tuple[list[Replacement], dict[str, np.ndarray], list[Path]]:
    """Replacements for the regions whose choice is an alternative, the arrays that their kernels
    read, and the shared libraries that these need.

    Raises: StageError when a choice names an alternative that is not there.
    """
    chosen = [region for region in choices.regions if region.chosen != "dense"]
    if not chosen:
        return [], {}, []
    known = alternatives.load(inputs["alternatives"], inputs["structure"])
    replacements: list[Replacement] = []
    arrays: dict[str, np.ndarray] = {}
    libraries: dict[str, Path] = {}
    for region in chosen:
        if (found := known.get(region.chosen)) is None:
            raise StageError(message=f"{region.region}: no alternative {region.chosen!r}")
        arguments = found.arguments(weights)
        libraries |= {path.name: path for path in found.libraries}
        arrays |= {a.name: a.value for a in arguments if not isinstance(a, int)}
        replacements.append(
            Replacement(
                clone=region.clone,
                kernel=region.kernel,
                func=found.module()[found.kernel],
                func_name=found.kernel,
                arguments=tuple(a if isinstance(a, int) else a.name for a in arguments),
            )
        )
    return replacements, arrays, list(libraries.values())


def _names(arrays: Sequence[np.ndarray]) -> list[str]:
    """A name for each parameter; equal ones are kept once (a table that is looked up and tied)."""
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    found = []
    for k, array in enumerate(arrays):
        digest = hashlib.sha256(np.ascontiguousarray(array).data).digest()
        key = (str(array.dtype), array.shape, digest)
        found.append(seen.setdefault(key, f"p{k:04d}"))
    return found


def _state_bytes(io: program.Io) -> int:
    """Bytes of the states, symbolic dims at their largest."""
    sizes = {name: bounds.max for name, bounds in io.dims.items()}
    shapes = [(program.concrete_shape(spec, sizes), spec.dtype) for spec in io.states]
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)


def _machine(target: Target) -> str:
    return target.mtriple.partition("-")[0] or platform.machine()


def _manifest(
    stage: Codegen,
    io: program.Io,
    choices: records.Choices,
    names: list[str],
    arrays: list[np.ndarray],
) -> dict[str, Any]:
    tools = ("apache-tvm", "apache-tvm-ffi", "numpy")
    toolchain = {tool: importlib.metadata.version(tool) for tool in tools}
    return {
        "format": 1,
        "kind": "vm-library",
        "name": stage.recipe_name,
        "entry": "main",
        "library": "lib.so",
        **{
            key: value
            for key, value in asdict(io).items()
            if key in ("inputs", "outputs", "states", "dims", "buckets", "context")
        },
        "target": stage.target.model_dump(),
        "machine": _machine(stage.target),
        "cpu_features": list(cpuinfo_flags(stage.target)),
        "threads": stage.target.device.threads,
        "toolchain": {**toolchain, **stage.tool_versions()},
        "params": {
            "file": "params.npz",
            "names": names,
            "bytes": sum({n: a.nbytes for n, a in zip(names, arrays, strict=True)}.values()),
        },
        "regions": [
            {"region": region.region, "clone": region.clone, "chosen": region.chosen}
            for region in choices.regions
        ],
    }


def _report(folder: Path, manifest: dict[str, Any]) -> Report:
    sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(folder.iterdir())}
    bundle_mib = sum(sizes.values())
    memory_mib = manifest["memory_bytes"] / 2**20
    return Report(
        summary=f"bundle {bundle_mib:.1f} MiB, {memory_mib:.1f} MiB of activations and outputs",
        metrics={"size/bundle_mib": bundle_mib, "size/activations_mib": memory_mib},
        tables=(
            Table(
                "Bundle",
                ("file", "MiB"),
                tuple((name, round(mib, 3)) for name, mib in sizes.items()),
            ),
        ),
    )
