"""Declaration of the validation stage: the bundle is run, compared, carved and timed beside its
peer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, PositiveFloat

from tapml.stage import (
    Context,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    PythonFunction,
    PythonRef,
    Recipe,
    Resources,
    Stage,
    Target,
)
from tapml.target import demand_here


class Compare(Frozen):
    """What a build is judged by."""

    metric: PythonRef | None = Field(
        None,
        description="`metric(outputs, reference, inputs) -> float | dict`; reference: outputs of "
        "the original weights",
        examples=[{"python": "inputs.py:same_label"}],
    )
    repeats: int = Field(
        30,
        ge=3,
        le=10_000,
        description="Timed calls of each runtime at each size",
        examples=[100],
        json_schema_extra={"unit": "calls"},
    )
    max_seconds: PositiveFloat = Field(
        20.0,
        description="Time limit of one size's timing",
        examples=[60.0],
        json_schema_extra={"unit": "s"},
    )


class Validation(Stage):
    """Facts about a bundle: errors, the recipe's metric, carved kernels, latency beside the peer.

    In:     bundle; program, records, choices, weights (and alternatives, structure) that it was
            made
            of; reference outputs on fresh and on the recipe's inputs.
    Out:    facts.json; carved/ with the inputs of call sites.
    Raises: StageError when an output is not finite where the reference is.
    Source: TapML (arXiv 2404.09151): tests carved from a run of the trusted program.
    """

    name: ClassVar[str] = "validation"
    version: ClassVar[int] = 2
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"validation": Compare}
    inputs: ClassVar[Mapping[str, Kind]] = {
        "bundle": "bundle",
        "program": "program",
        "records": "records",
        "choices": "choices",
        "weights": "weights",
        "reference": "reference",
        "alternatives": "alternatives",
        "structure": "structure",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives", "structure"})
    outputs: ClassVar[Mapping[str, Kind]] = {"facts": "facts", "carved": "carved"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi", "numpy", "onnxruntime")
    resources: ClassVar[Resources] = Resources(exclusive=True)
    measures: ClassVar[bool] = True

    target: Target
    metric: PythonFunction | None
    repeats: int
    max_seconds: float

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        section = recipe.section("validation", Compare)
        metric = section.metric
        return cls(
            target=recipe.target,
            metric=recipe.python(metric, field="validation.metric") if metric else None,
            repeats=section.repeats,
            max_seconds=section.max_seconds,
        )

    def check(self) -> None:
        demand_here(self.target)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .validate import validate

        return validate(self, inputs, ctx)
