"""The recipe's target, resolved to full text from a table of LLVM's CPUs: no TVM, no LLVM.

The table, `llvm_cpus.json`, comes from the LLVM in the wheel: `python -m
tapml_stages.platforms.llvm_table` writes it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from .errors import EnvironmentalError, RecipeError, nearest
from .stage import Device, Frozen, Target

_CPUINFO = Path("/proc/cpuinfo")

# LLVM feature → Linux's name of it in /proc/cpuinfo. Only what numeric code may use: where a
# hypervisor hides others (pku, mwaitx, rdpru), the CPU is no older one for it.
_X86_FLAGS: Mapping[str, str] = {
    "adx": "adx",
    "aes": "aes",
    "amx-bf16": "amx_bf16",
    "amx-complex": "amx_complex",
    "amx-fp16": "amx_fp16",
    "amx-int8": "amx_int8",
    "amx-tile": "amx_tile",
    "avx": "avx",
    "avx10.1": "avx10",
    "avx2": "avx2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512fp16": "avx512_fp16",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512vp2intersect": "avx512_vp2intersect",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnni": "avx_vnni",
    "avxvnniint16": "avx_vnni_int16",
    "avxvnniint8": "avx_vnni_int8",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "cmov": "cmov",
    "crc32": "sse4_2",
    "cx16": "cx16",
    "cx8": "cx8",
    "f16c": "f16c",
    "fma": "fma",
    "fma4": "fma4",
    "fxsr": "fxsr",
    "gfni": "gfni",
    "lzcnt": "abm",
    "mmx": "mmx",
    "movbe": "movbe",
    "pclmul": "pclmulqdq",
    "popcnt": "popcnt",
    "prfchw": "3dnowprefetch",
    "sahf": "lahf_lm",
    "sha": "sha_ni",
    "sha512": "sha512",
    "sm3": "sm3",
    "sm4": "sm4",
    "sse": "sse",
    "sse2": "sse2",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "ssse3": "ssse3",
    "tbm": "tbm",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "xop": "xop",
}
_AARCH64_FLAGS: Mapping[str, str] = {
    "aes": "aes",
    "bf16": "bf16",
    "complxnum": "fcma",
    "crc": "crc32",
    "dotprod": "asimddp",
    "fp-armv8": "fp",
    "fp16fml": "asimdfhm",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "jsconv": "jscvt",
    "lse": "atomics",
    "neon": "asimd",
    "rcpc": "lrcpc",
    "rdm": "asimdrdm",
    "sha2": "sha2",
    "sha3": "sha3",
    "sm4": "sm4",
    "sve": "sve",
    "sve2": "sve2",
}
_RISCV_FLAGS: Mapping[str, str] = {name: name for name in ("m", "a", "f", "d", "c", "v")} | {
    name: name for name in ("zba", "zbb", "zbc", "zbs", "zfh", "zvfh", "zicond")
}
FLAGS: Mapping[str, Mapping[str, str]] = {
    "x86_64": _X86_FLAGS,
    "aarch64": _AARCH64_FLAGS,
    "riscv64": _RISCV_FLAGS,
}
TRIPLES: Mapping[str, str] = {arch: f"{arch}-linux-gnu" for arch in FLAGS}

# preset → (architecture, LLVM CPU name)
PRESETS: Mapping[str, tuple[str, str]] = {
    "x86-64": ("x86_64", "x86-64"),
    "x86-64-v2": ("x86_64", "x86-64-v2"),
    "x86-64-v3": ("x86_64", "x86-64-v3"),
    "x86-64-v4": ("x86_64", "x86-64-v4"),
    "aarch64": ("aarch64", "generic"),
    "riscv64": ("riscv64", "generic-rv64"),
}
HOST = "cpu"

# vendor of /proc/cpuinfo → LLVM's names of its CPUs; of equally capable ones the last is taken
_VENDORS: Mapping[str, tuple[str, ...]] = {
    "AuthenticAMD": (
        *("opteron", "k8", "amdfam10", "btver1", "btver2"),
        *("bdver1", "bdver2", "bdver3", "bdver4"),
        *("znver1", "znver2", "znver3", "znver4", "znver5"),
    ),
    "GenuineIntel": (
        *("core2", "penryn", "nehalem", "westmere", "silvermont", "sandybridge", "ivybridge"),
        *("haswell", "broadwell", "goldmont", "goldmont-plus", "tremont", "skylake"),
        *("skylake-avx512", "cascadelake", "cooperlake", "cannonlake", "icelake-client"),
        *("rocketlake", "tigerlake", "icelake-server", "sapphirerapids", "graniterapids"),
        *("graniterapids-d", "diamondrapids", "alderlake", "sierraforest", "arrowlake"),
        *("arrowlake-s", "clearwaterforest", "pantherlake", "novalake"),
    ),
}
_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")

# (implementer, part) of an aarch64 core → LLVM's name
_ARM_PARTS: Mapping[tuple[int, int], str] = {
    (0x41, 0xD03): "cortex-a53",
    (0x41, 0xD05): "cortex-a55",
    (0x41, 0xD07): "cortex-a57",
    (0x41, 0xD08): "cortex-a72",
    (0x41, 0xD09): "cortex-a73",
    (0x41, 0xD0A): "cortex-a75",
    (0x41, 0xD0B): "cortex-a76",
    (0x41, 0xD0C): "neoverse-n1",
    (0x41, 0xD40): "neoverse-v1",
    (0x41, 0xD41): "cortex-a78",
    (0x41, 0xD44): "cortex-x1",
    (0x41, 0xD47): "cortex-a710",
    (0x41, 0xD49): "neoverse-n2",
    (0x41, 0xD4F): "neoverse-v2",
    (0x41, 0xD84): "neoverse-v3",
    (0x41, 0xD8E): "neoverse-n3",
    (0x46, 0x001): "a64fx",
    (0xC0, 0xAC3): "ampere1",
    (0xC0, 0xAC4): "ampere1a",
}


class DeviceSection(Frozen):
    """Where the library is run and measured."""

    kind: Literal["local"] = Field(default="local", description="`local`: this machine")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Threads of the library and its peer; all cores if left out",
        examples=[1],
        json_schema_extra={"unit": "threads"},
    )


class TargetSection(Frozen):
    """What to compile for, and where to run it."""

    preset: str | None = Field(
        default=None,
        description="`cpu`: this machine (the default); or a level such as x86-64-v3",
        examples=["x86-64-v3"],
    )
    kind: Literal["llvm"] = Field(default="llvm", description="Code generator")
    mcpu: str | None = Field(
        default=None,
        description="LLVM's name of the CPU, over the preset's",
        examples=["znver3"],
    )
    mtriple: str | None = Field(
        default=None,
        description="LLVM's target triple, over the preset's",
        examples=["aarch64-linux-gnu"],
    )
    cores: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Cores to compile for; this machine's if left out",
        examples=[8],
        json_schema_extra={"unit": "cores"},
    )
    device: DeviceSection = Field(
        default_factory=DeviceSection, description="Where it is run", examples=[{"threads": 1}]
    )


def resolve(section: TargetSection) -> Target:
    """The full target of a recipe.

    Raises: RecipeError for an unknown preset, CPU or triple, with the nearest name.
    """
    arch, mcpu = _preset(section.preset)
    if section.mtriple is not None:
        arch = _arch_of(section.mtriple)
    elif section.mcpu is not None and section.mcpu not in cpus(arch):
        owners = [other for other in FLAGS if section.mcpu in cpus(other)]
        arch = owners[0] if owners and section.preset is None else arch
    if section.mcpu is not None:
        mcpu = section.mcpu
    known = cpus(arch)
    if mcpu not in known:
        field = "target.mcpu" if section.mcpu is not None else "target"
        hint = nearest(mcpu, list(known), noun=f"CPUs of {arch}")
        raise RecipeError(field=field, message=f"unknown CPU {mcpu!r:.60} of {arch}", hint=hint)
    features = known[mcpu]
    bits, registers = _vectors(arch, features)
    cores = section.cores or len(os.sched_getaffinity(0))
    return Target(
        kind=section.kind,
        mcpu=mcpu,
        mtriple=section.mtriple or TRIPLES[arch],
        features=features,
        cores=cores,
        vector_bits=bits,
        vector_registers=registers,
        device=Device(kind=section.device.kind, threads=section.device.threads or cores),
    )


def cpus(arch: str) -> Mapping[str, tuple[str, ...]]:
    """LLVM's CPU names of an architecture → their features (LLVM's names, sorted)."""
    return _table()[arch]


def cpuinfo_flags(target: Target) -> tuple[str, ...]:
    """What /proc/cpuinfo of a machine must list, so that code for `target` runs on it."""
    flags = FLAGS[_architecture(target)]
    return tuple(sorted({flags[feature] for feature in target.features}))


def _architecture(target: Target) -> str:
    return _arch_of(target.mtriple) if target.mtriple else platform.machine()


def missing_here(target: Target) -> tuple[str, ...]:
    """What this machine lacks to run code for `target`: its architecture, or flags of its CPU."""
    arch = _architecture(target)
    if arch != platform.machine():
        return (arch,)
    fields = _first_cpu(_CPUINFO.read_text(encoding="utf-8"))
    flags = (fields.get("flags") or fields.get("Features") or fields.get("isa") or "").split()
    return tuple(flag for flag in cpuinfo_flags(target) if flag not in flags)


def demand_here(target: Target) -> None:
    """Raises EnvironmentalError where code for `target` cannot be run, and so not be timed."""
    if missing := missing_here(target):
        raise EnvironmentalError(
            message=f"code for {target.mcpu} cannot be run and timed here: no {', '.join(missing)}",
            hint="run on such a machine, set target={preset: cpu}, or stop earlier: --to tensorir",
        )


def host_cpu(cpuinfo: str, arch: str) -> str:
    """LLVM's name of the CPU that a /proc/cpuinfo describes.

    x86-64: the most capable one of the vendor's whose features are all there, else the highest
    level of the architecture. aarch64: by implementer and part. Both fall back to generic.
    """
    fields = _first_cpu(cpuinfo)
    if arch == "aarch64":
        part = int(fields.get("CPU implementer", "0"), 16), int(fields.get("CPU part", "0"), 16)
        return _ARM_PARTS.get(part, "generic")
    if arch != "x86_64":
        return "generic-rv64"
    flags = set(fields.get("flags", "").split())
    known = cpus(arch)

    def best(names: tuple[str, ...]) -> str | None:
        able = [n for n in names if n in known and flags.issuperset(map(_X86_FLAGS.get, known[n]))]
        return max(able, key=lambda name: (len(known[name]), names.index(name)), default=None)

    return best(_VENDORS.get(fields.get("vendor_id", ""), ())) or best(_LEVELS) or "x86-64"


def _preset(name: str | None) -> tuple[str, str]:
    """Architecture and CPU of a preset."""
    if name in (None, HOST):
        arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
        if arch not in FLAGS:
            message = f"this machine is {arch}, for which there is no preset"
            raise RecipeError(
                field="target", message=message, hint=f"give one of {', '.join(PRESETS)}"
            )
        return arch, host_cpu(_CPUINFO.read_text(encoding="utf-8"), arch)
    if name not in PRESETS:
        hint = nearest(name, [HOST, *PRESETS], noun="presets")
        message = f"unknown preset {name!r:.60}"
        raise RecipeError(field="target.preset", message=message, hint=hint)
    return PRESETS[name]


def _arch_of(triple: str) -> str:
    arch = triple.partition("-")[0]
    if arch not in FLAGS:
        message = f"unknown architecture {arch!r:.60} of triple {triple!r:.60}"
        hint = nearest(arch, list(FLAGS), noun="architectures")
        raise RecipeError(field="target.mtriple", message=message, hint=hint)
    return arch


def _vectors(arch: str, features: tuple[str, ...]) -> tuple[int, int]:
    """Bits of a vector register, and how many of them code may use."""
    if arch == "x86_64":
        bits = 512 if "avx512f" in features else 256 if "avx2" in features else 128
        return bits, 32 if "avx512vl" in features else 16
    return 128, 32


def _first_cpu(cpuinfo: str) -> dict[str, str]:
    lines = cpuinfo.partition("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


@cache
def _table() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    data = json.loads(Path(__file__).with_name("llvm_cpus.json").read_text(encoding="utf-8"))
    return {
        arch: {name: tuple(features.split()) for name, features in names.items()}
        for arch, names in data["cpus"].items()
    }
