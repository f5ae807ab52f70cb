"""The tensorir room: layouts, packed weights, fused kernels and a default schedule for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from tapml.registry import extensions
from tapml.stage import Context, Inputs, Kind, Outputs, Recipe, Report, Stage, Table, Target

if TYPE_CHECKING:
    from ..program import Program
    from ..records import Record

RULES = "tapml.schedule_rules"  # entry points: the group that `schedule` asks
INTRINSICS = "tapml.tensor_intrinsics"  # entry points: functions that give tensorize.Intrinsics


class TensorIR(Stage):
    """Legalized and fused program of unscheduled PrimFuncs, with a default schedule for each.

    In:     Relax operators, regions marked; dims may be symbolic, dtypes are static.
    Out:    every remaining call is a call_tir; `main_transform_params` packs the weights once;
            exact-size clones for the buckets; one record per PrimFunc that runs; `groups.json`
            maps kernel calls to source operators.
    Raises: UnloweredOpError, naming each operator without a legalization.
    Source: TVM's `zero` pipeline without FoldConstant and its database step, after one layout pass
            of our own.
    """

    name: ClassVar[str] = "tensorir"
    version: ClassVar[int] = 3
    inputs: ClassVar[Mapping[str, Kind]] = {"program": "program", "alternatives": "alternatives"}
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives"})
    outputs: ClassVar[Mapping[str, Kind]] = {"program": "program", "records": "records"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")

    target: Target

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(target=recipe.target)

    @classmethod
    def tool_versions(cls) -> Mapping[str, str]:
        intrinsics = extensions(INTRINSICS)
        return extensions(RULES) | {f"intrinsics {name}": one for name, one in intrinsics.items()}

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from ..program import load
        from ..records import save
        from ..views import Views
        from .lower import lower
        from .schedule import default_records

        program = load(inputs["program"])
        ctx.progress(0, 2, "lowering")
        lowered = lower(program, self.target, Views(ctx.views, program.mod))
        ctx.progress(1, 2, "default schedules")
        records = default_records(lowered.mod, self.target)
        artifacts = {
            "program": lowered.save(ctx.workdir / "program"),
            "records": save(ctx.workdir / "records.jsonl", records),
        }
        return Outputs(artifacts, report(lowered, records))


def report(program: Program, records: Sequence[Record]) -> Report:
    """Kernels by rule, with the share of the multiply-adds that each rule schedules."""
    clones = {
        name: rows
        for name, rows in (program.groups or {}).items()
        if name not in ("folded", "transform")
    }
    total = sum(record.flops for record in records) or 1.0
    rules = sorted({record.rule for record in records})
    by_rule = [
        (
            rule,
            len(own := [record for record in records if record.rule == rule]),
            sum(one.flops for one in own) / total,
        )
        for rule in rules
    ]
    by_rule.sort(key=lambda row: -row[2])
    unfit = [record.kernel for record in records if record.rule == "fallback"]
    calls = tuple((name, len(rows)) for name, rows in clones.items())
    return Report(
        summary=f"{len(records)} kernels, {len(rules)} schedule rules, {len(clones)} programs",
        metrics={"program/kernels": float(len(records))},
        notes=(f"no rule but `fallback` fits {', '.join(unfit)}",) if unfit else (),
        tables=(
            Table("Kernels by rule", ("rule", "kernels", "share of multiply-adds"), tuple(by_rule)),
            Table("Kernel calls", ("program", "calls"), calls),
        ),
    )
