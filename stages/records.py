"""Schedule records and choices: what tensorir proposes, metaschedule measures and chooses, and
codegen applies.

A record is one scheduled form of one PrimFunc of the tensorir program. It holds the scheduled
PrimFunc itself (TVM JSON of a
one-function IRModule), so that nobody has to replay a trace to use it; a tuned record has its
trace beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import codec
from .program import CLONE, REGION


@dataclass(frozen=True)
class Record:
    """One schedule of one PrimFunc.

    id:        digest of kernel name, kind and scheduled function
    kernel:    name of the PrimFunc (GlobalVar) in the tensorir program
    workload:  structural hash of the unscheduled PrimFunc, hex (global_symbol left out)
    kind:      default (a rule of ours) | tuned (MetaSchedule)
    rule:      the rule that made it, or the task's search space
    func:      TVM JSON of an IRModule {kernel: scheduled PrimFunc}
    trace:     JSON of the trace, for tuned records
    ms:        median time when it was measured, else None
    flops:     operations of its reductions, a multiply-add being two and a symbolic size one; 0
               when the kernel is opaque
    """

    id: str
    kernel: str
    workload: str
    kind: Literal["default", "tuned"]
    rule: str
    func: str
    trace: str = ""
    ms: float | None = None
    flops: float = 0.0
    toolchain: dict[str, str] = field(default_factory=dict)

    def module(self) -> Any:
        """IRModule with the scheduled PrimFunc under the kernel's name."""
        from .compat import load_json

        return load_json(self.func)


def make(
    kernel: str,
    original: Any,
    scheduled: Any,
    *,
    kind: Literal["default", "tuned"],
    rule: str,
    **facts: Any,
) -> Record:
    """A record from the unscheduled and the scheduled PrimFunc of one kernel."""
    from .compat import tvm

    func = tvm.ir.save_json(tvm.IRModule({kernel: scheduled}))
    digest = hashlib.sha256(f"{kernel}\0{kind}\0{func}".encode()).hexdigest()[:16]
    return Record(
        id=digest,
        kernel=kernel,
        workload=workload_hash(original),
        kind=kind,
        rule=rule,
        func=func,
        **facts,
    )


def workload_hash(func: Any) -> str:
    """Structural hash of a PrimFunc, hex, whatever it is called and wherever it is called from;
    equal over processes.
    """
    import tvm_ffi

    return f"{tvm_ffi.structural_hash(bare(func), map_free_vars=True) & 0xFFFFFFFFFFFFFFFF:016x}"


def bare(func: Any) -> Any:
    """A PrimFunc without its name and the call that it is for."""
    for name in ("global_symbol", REGION, CLONE):
        func = func.without_attr(name)
    return func


def save(path: Path, records: Iterable[Record]) -> Path:
    codec.write_jsonl(path, (asdict(record) for record in records))
    return path


def load(path: Path) -> list[Record]:
    return [Record(**row) for row in codec.read_jsonl(path)]


@dataclass(frozen=True)
class Candidate:
    """One way to run a kernel or a region, and how it fared. `ms` is None when it failed;
    `error` says why.
    """

    kind: Literal["default", "tuned", "sparse", "library"]
    id: str  # record id, or alternative id
    ms: float | None
    spread_ms: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class KernelChoice:
    """The record that ships for a kernel (a PrimFunc of the tensorir program), and all that were
    measured.
    """

    kernel: str
    record: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class RegionChoice:
    """What runs at a region in one clone of `main`: `dense` (the kernel's chosen record) or an
    alternative's id.
    """

    region: str
    clone: str
    kernel: str
    chosen: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choices:
    """choices.json: only metaschedule writes it."""

    kernels: tuple[KernelChoice, ...]
    regions: tuple[RegionChoice, ...] = ()

    def save(self, path: Path) -> Path:
        codec.write_json(path, asdict(self))
        return path


def load_choices(path: Path) -> Choices:
    data = codec.read_json(path)

    def candidates(row: dict[str, Any]) -> tuple[Candidate, ...]:
        return tuple(Candidate(**one) for one in row["candidates"])

    return Choices(
        kernels=tuple(
            KernelChoice(**{**row, "candidates": candidates(row)}) for row in data["kernels"]
        ),
        regions=tuple(
            RegionChoice(**{**row, "candidates": candidates(row)}) for row in data["regions"]
        ),
    )
