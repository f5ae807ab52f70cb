"""TVM's Target from the resolved target of the recipe."""

from __future__ import annotations

from typing import Any

from tapml.stage import Target

from .compat import tvm

SPLIT = frozenset({"znver4"})  # CPUs that run an instruction of 512 bits as two halves


def multiplied_bits(target: Target) -> int:
    """Width of the vectors that the CPU multiplies and adds at its full rate."""
    return target.vector_bits // 2 if target.mcpu in SPLIT else target.vector_bits


def tvm_target(target: Target, opt_level: int = 3) -> Any:
    """The Target that kernels are built for, `num-cores` included (MetaSchedule demands it)."""
    config: dict[str, object] = {"kind": target.kind, "num-cores": target.cores}
    if target.kind == "llvm":
        config["mcpu"] = target.mcpu
        if target.mtriple:
            config["mtriple"] = target.mtriple
        if opt_level != 3:  # LLVM's own default
            config["opt-level"] = opt_level
    return tvm.target.Target(config)
