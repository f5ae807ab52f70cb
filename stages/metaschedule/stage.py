"""Declaration of the room that measures: its recipe fields, parameters, inputs and outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from tapml.registry import extensions
from tapml.stage import (
    Amount,
    Context,
    File,
    Folder,
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

from .. import search_modules

TRIALS_PER_S = 0.6  # on two cores, kernels of vision models; only where none were measured
Chooser = Literal["measured", "sparse", "dense"]
SPACE = (
    "tiles",
    "rules",
    "auto-inline",
    "add-rfactor",
    "multi-level-tiling",
    "parallel-vectorize-unroll",
    "random-compute-location",
)


class Reuse(Frozen):
    """What was tuned before, in another run or by somebody else."""

    db: str = Field(
        min_length=1,
        description="A folder of searches, or a `.jsonl` file that `tapml db export` wrote; its "
        "digest is in the key",
        examples=["tuned.jsonl"],
    )
    pretrain: bool = Field(
        default=True,
        description="The cost models learn from trials of other kernels before the first round",
    )


class Reused(Frozen):
    """A resolved `Reuse`: keyed by the digests of its files."""

    source: File | Folder
    pretrain: bool = True

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


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
        description="No kernel gets more trials than this, its default schedule included",
        examples=[32],
        json_schema_extra={"unit": "measurements"},
    )
    max_trial_seconds: PositiveFloat = Field(
        default=30.0,
        description="A build or a run that takes longer fails",
        examples=[10.0],
        json_schema_extra={"unit": "s"},
    )
    space: tuple[str, ...] = Field(
        default=SPACE,
        min_length=1,
        description="Search modules; schedule rules of MetaSchedule apply in this order",
        examples=[["tiles", "rules"]],
    )
    strategy: Literal["learned", "random"] = Field(
        default="learned",
        description="What was measured decides what is tried next, or the seed alone: then the "
        "same schedules are tried in the same order, whatever their times",
    )
    reuse: Literal["none"] | Reuse = Field(
        default="none",
        description="Schedules that were found before, for an equal target, ship after a contest "
        "with the default; a search starts from them. Those of similar kernels are tried",
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
    Raises: RecipeError for a search module that is not installed; StageError, when a default
            schedule does not build or run.
    Source: MetaSchedule (2022), driven round by round so that a killed search resumes, over
            spaces of our own beside its rules.
    """

    name: ClassVar[str] = "metaschedule"
    version: ClassVar[int] = 3
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
    reused: Reused | None = None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        tuning = recipe.section("tuning", Tuning)
        search_modules.demand(tuning.space)
        own = {name: getattr(tuning, name) for name in Tuning.model_fields}
        return cls(
            target=recipe.target,
            tuning=Tuning(**{**own, "reuse": "none"}),
            reused=_reused(tuning.reuse, recipe),
            choose=recipe.section("sparsity", Choose).choose,
        )

    @classmethod
    def tool_versions(cls) -> Mapping[str, str]:
        return extensions(search_modules.GROUP)

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
            if self.tuning.trials or self.reused is not None:
                tuned = tune(bench, kernels, defaults, self.tuning, self.target, ctx, self.reused)
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


def _reused(reuse: Reuse | Literal["none"], recipe: Recipe) -> Reused | None:
    if reuse == "none":
        return None
    field = "tuning.reuse.db"
    source: File | Folder
    if reuse.db.endswith(".jsonl"):
        source = recipe.file(reuse.db, field=field)
    else:
        source = recipe.folder(reuse.db, names=["*.jsonl"], field=field)
    return Reused(source=source, pretrain=reuse.pretrain)
