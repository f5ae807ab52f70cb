"""MetaSchedule's schedule rules as search modules, with the options that it takes for a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.s_tir import meta_schedule as ms

from tapml.stage import Target

from ..search_modules import ScheduleRules

rule = ms.schedule_rule
CPU_TILES = "SSRSRS"  # loops of spatial axes and reductions, outermost first
LARGEST_TILE = 64
JOBS_PER_CORE = 16
GPU_THREADS = (4, 8, 16, 32, 64, 128, 256, 512)
VNNI = "avx512_vnni", "avxvnni"


def _auto_inline(target: Target) -> Sequence[Any]:
    return (
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        ),
    )


def _add_rfactor(target: Target) -> Sequence[Any]:
    return (rule.AddRFactor(JOBS_PER_CORE, LARGEST_TILE),)


def _reuse() -> Any:
    return rule.ReuseType(req="may", levels=[1, 2], scope="global")


def _multi_level_tiling(target: Target) -> Sequence[Any]:
    return (
        rule.MultiLevelTiling(CPU_TILES, max_innermost_factor=LARGEST_TILE, reuse_write=_reuse()),
    )


def _use_intrinsic(target: Target) -> Sequence[Any]:
    """Tiling around the wheel's dot product of bytes, where the CPU has one."""
    if target.kind != "llvm" or not any(name in target.features for name in VNNI):
        return ()
    from tvm.s_tir.tensor_intrin.x86 import VNNI_DOT_16x4_INTRIN

    return (
        rule.MultiLevelTilingWithIntrin(
            VNNI_DOT_16x4_INTRIN,
            CPU_TILES,
            max_innermost_factor=LARGEST_TILE,
            reuse_write=_reuse(),
        ),
    )


def _cross_thread_reduction(target: Target) -> Sequence[Any]:
    """Nothing on a CPU, whose threads share no sums."""
    return () if target.kind == "llvm" else (rule.CrossThreadReduction(list(GPU_THREADS)),)


def _parallel_vectorize_unroll(target: Target) -> Sequence[Any]:
    return (
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=JOBS_PER_CORE,
            max_vectorize_extent=LARGEST_TILE,
            unroll_max_steps=[0, 16, 64, 512],
            unroll_explicit=True,
        ),
    )


def _random_compute_location(target: Target) -> Sequence[Any]:
    return (rule.RandomComputeLocation(),)


AUTO_INLINE = ScheduleRules(_auto_inline)
ADD_RFACTOR = ScheduleRules(_add_rfactor)
MULTI_LEVEL_TILING = ScheduleRules(_multi_level_tiling)
USE_INTRINSIC = ScheduleRules(_use_intrinsic)
CROSS_THREAD_REDUCTION = ScheduleRules(_cross_thread_reduction)
PARALLEL_VECTORIZE_UNROLL = ScheduleRules(_parallel_vectorize_unroll)
RANDOM_COMPUTE_LOCATION = ScheduleRules(_random_compute_location)
