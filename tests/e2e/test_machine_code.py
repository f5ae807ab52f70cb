"""What LLVM makes of the shipped recipes' default schedules, on a fixed CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rules import asm

from tapml.stage import Device, Target
from tapml.store import Store
from tapml_stages import program, records

pytestmark = pytest.mark.e2e
FIXED = Target(
    kind="llvm",
    mcpu="x86-64-v3",
    mtriple="x86_64-linux-gnu",
    features=("avx", "avx2", "fma"),
    cores=2,
    vector_bits=256,
    vector_registers=16,
    device=Device(threads=2),
)
PRODUCTS = {"Conv", "ConvTranspose", "MatMul", "Gemm", "relax.matmul"}


def output_channels(op: str, shape: tuple[int, ...]) -> int:
    """Of a weight in source layout; a matrix product's are its longer side's partner."""
    return shape[0] if op == "Conv" else shape[1] if op == "ConvTranspose" else shape[-1]


def product_kernels(source: program.Program) -> Iterator[str]:
    """Kernels that hold a matrix product or convolution with at least 8 output channels."""
    shapes = {spec.name: spec.shape for spec in source.io.params}
    origins = {origin.value: origin for origin in source.provenance}
    for sites in source.call_sites().values():
        for site in sites:
            for origin in (origins[value] for value in site["values"]):
                weights = [w for w in origin.weights if w in shapes and len(shapes[w]) >= 2]
                if origin.op in PRODUCTS and weights:
                    shape = tuple(int(size) for size in shapes[weights[0]])
                    kernel = site["kernel"]
                    is_sum = (
                        "T.init()" in source.mod[kernel].script()
                    )  # else: a table was looked up
                    if output_channels(origin.op, shape) >= 8 and is_sum:
                        yield kernel


@pytest.mark.parametrize(
    "recipe", ["magika", "operator_sparse", pytest.param("ocr_detect", marks=pytest.mark.slow)]
)
def test_products_use_fma_on_ymm_registers_and_tasks_without_allocations(
    tapml: Callable, store: Path, tmp_path: Path, recipe: str
) -> None:
    target = "target={kind: llvm, mcpu: x86-64-v3}"
    answer = tapml("run", f"recipes/{recipe}.yaml", "--set", target, "--to", "tensorir")
    assert answer.code == 0, answer.stderr
    outputs = answer.run["stages"]["tensorir"]["outputs"]
    Store(store).materialise(outputs["program"], tmp_path / "program")
    Store(store).materialise(outputs["records"], tmp_path / "records.jsonl")
    source = program.load(tmp_path / "program")
    products = set(product_kernels(source))
    assert products
    seen: set[str] = set()
    for record in records.load(tmp_path / "records.jsonl"):
        if record.kernel not in products or record.workload in seen:
            continue
        seen.add(record.workload)
        facts = asm.facts(record.module()[record.kernel], FIXED)
        unrolled = record.flops < 1e4  # so small that no loop is left
        found = facts.fma if unrolled else facts.innermost_fma
        assert found > 0, f"{record.kernel} ({record.rule}): no FMA on ymm"
        assert facts.repeated == 0, f"{record.kernel} ({record.rule}): allocates in a loop"
        if record.flops >= 4e6:
            assert facts.parallel, f"{record.kernel} ({record.rule}): one task"
