"""Declaration of the room that measures: its recipe fields, parameters, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from tapml.stage import (
    Amount,
    Context,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    Recipe,
    Resources,
    Stage,
    Target,
)
from tapml.target import demand_here

TRIALS_PER_S = 0.6  # on two cores, kernels of vision models; only where none were measured
Chooser = Literal["measured", "sparse", "dense"]


class Tuning(Frozen):
    """The budget of a search. `trials: 0` ships the default schedules."""

    trials: int = Field(
        default=0,
        ge=0,
        description="Finished measurements over all kernels",
        examples=[64],
        json_schema_extra={"unit": "measurements"},
    )
    seed: int = Field(
        default=0,
        ge=0,
        description="An equal seed resumes a search",
        examples=[7],
        json_schema_extra={"unit": "none"},
    )
    max_seconds: PositiveFloat | None = Field(
        default=None,
        description="Stops the search after this time, budget spent or not",
        examples=[600.0],
        json_schema_extra={"unit": "s"},
    )
    max_trials_per_kernel: PositiveInt | None = Field(
        default=None,
        description="No kernel gets more trials than this",
        examples=[32],
        json_schema_extra={"unit": "measurements"},
    )


class Choose(Frozen):
    """Who wins where a sparse implementation is at hand."""

    choose: Chooser = Field(
        default="measured",
        description="The fastest by measurement; or force sparse or dense",
    )


class MetaSchedule(Stage):
    """The schedule of each kernel and the implementation of each region, chosen by measuring.

    In:     unscheduled program, a default record for each kernel; sparse alternatives and their
            structure, where there are any. Weights are not read: new values re-tune nothing.
    Out:    choices.json with every candidate's time; the records that it names.
    Raises: StageError, when a default schedule does not build or run.
    Source: MetaSchedule (2022), driven round by round so that a killed search resumes.
    """

    name: ClassVar[str] = "metaschedule"
    version: ClassVar[int] = 2
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"tuning": Tuning, "sparsity": Choose}
    inputs: ClassVar[Mapping[str, Kind]] = {
        "program": "program",
        "records": "records",
        "alternatives": "alternatives",
        "structure": "structure",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives", "structure"})
    outputs: ClassVar[Mapping[str, Kind]] = {"choices": "choices", "records": "records"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi", "xgboost-cpu")
    resources: ClassVar[Resources] = Resources(cpu=2, exclusive=True)
    measures: ClassVar[bool] = True

    target: Target
    tuning: Tuning = Tuning()
    choose: Chooser = "measured"

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        tuning = recipe.section("tuning", Tuning)
        return cls(
            target=recipe.target,
            tuning=Tuning(**{name: getattr(tuning, name) for name in Tuning.model_fields}),
            choose=recipe.section("sparsity", Choose).choose,
        )

    def amount(self) -> Amount | None:
        tuning = self.tuning
        if not tuning.trials:
            return None
        return Amount("tuning", "trials", tuning.trials, tuning.max_seconds, TRIALS_PER_S)

    def check(self) -> None:
        demand_here(self.target)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .. import alternatives, program, records, roofline
        from ..measure import Bench
        from .choose import decide
        from .contest import Rivals, baseline, contest
        from .kernels import find_kernels, middle
        from .report import draw
        from .tune import Tuned, tune

        source = program.load(inputs["program"])
        kernels = find_kernels(source, records.load(inputs["records"]))
        with Bench(self.target) as bench:
            defaults = baseline(bench, kernels, ctx)
            tuned = Tuned()
            if self.tuning.trials:
                tuned = tune(bench, kernels, defaults, self.tuning, self.target, ctx)
            rivals = Rivals(tuned.records)
            if "alternatives" in inputs:
                found = alternatives.load(inputs["alternatives"], inputs["structure"])
                rivals = Rivals(tuned.records, found, inputs["structure"] / "structure.npz")
            contests = {**defaults, **contest(bench, kernels, rivals, ctx)}
            limits = roofline.measure(bench, self.target)
        outcome = decide(kernels, contests, rivals, self.choose)
        return Outputs(
            artifacts={
                "choices": outcome.choices.save(ctx.workdir / "choices.json"),
                "records": records.save(ctx.workdir / "records.jsonl", outcome.records),
            },
            report=draw(outcome, tuned, self.tuning, limits, middle(source)),
        )
