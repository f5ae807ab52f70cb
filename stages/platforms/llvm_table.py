"""Writes tapml/llvm_cpus.json: the CPUs that the wheel's LLVM knows, with features that code uses.

Run it after a new wheel: `python -m tapml_stages.platforms.llvm_table`.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import tapml.target
from tapml.target import FLAGS, TRIPLES

from ..compat import tvm


def table() -> dict[str, Any]:
    """LLVM's version and, by architecture, CPU name → features (sorted, in one string)."""
    return {
        "llvm": tvm.target.codegen.llvm_version_major(),
        "apache-tvm": metadata.version("apache-tvm"),
        "cpus": {arch: _cpus(arch) for arch in FLAGS},
    }


def _cpus(arch: str) -> dict[str, str]:
    triple = TRIPLES[arch]
    names = tvm.target.codegen.llvm_get_cpu_archlist(_target(triple))
    every = {str(name): _features(triple, str(name)) for name in names}
    # LLVM lists the CPUs of the 32-bit architecture too
    wide = {"x86_64": "64bit", "riscv64": "64bit"}.get(arch)
    return {
        name: " ".join(sorted(features & FLAGS[arch].keys()))
        for name, features in sorted(every.items())
        if "_" not in name and (wide is None or wide in features)
    }


def _features(triple: str, mcpu: str) -> set[str]:
    found = tvm.target.codegen.llvm_get_cpu_features(_target(triple, mcpu))
    return {str(feature) for feature in found}


def _target(triple: str, mcpu: str = "") -> Any:
    return tvm.target.Target(
        {"kind": "llvm", "mtriple": triple, **({"mcpu": mcpu} if mcpu else {})}
    )


def main() -> None:
    path = Path(tapml.target.__file__).with_name("llvm_cpus.json")
    path.write_text(json.dumps(table(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
