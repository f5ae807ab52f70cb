"""The recipe's model, composed from the sections of the registered stages and the engine's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, Discriminator, Field, Tag, create_model

from ..errors import EnvironmentalError
from ..registry import Registry
from ..requirements import Requires
from ..stage import Frozen
from ..target import TargetSection

VERSION = 1
NOTE = "x-"  # top-level keys that begin so are notes for people


class Limits(Frozen):
    """Smallest and largest value that a gate lets pass."""

    min: float | None = Field(
        default=None,
        description="Smallest value that passes",
        examples=[0.99],
        json_schema_extra={"unit": "the metric's"},
    )
    max: float | None = Field(
        default=None,
        description="Largest value that passes",
        examples=[0.05],
        json_schema_extra={"unit": "the metric's"},
    )


class LatencyLimit(Frozen):
    """How slow the library may be beside another way to run the model."""

    run: str = Field(
        default="peer",
        description="What it is compared with: `peer`, the reference runtime; `baseline`, the run "
        "that `tapml runs --baseline RUN` marked; or a run, by its id or its recipe's name",
        examples=["baseline"],
    )
    max_ratio: float = Field(
        gt=0,
        description="Largest ratio of our latency to the other's",
        examples=[1.05],
        json_schema_extra={"unit": "ratio"},
    )


def _limits_kind(value: object) -> str:
    if isinstance(value, Limits):
        return "one"
    named = isinstance(value, dict) and any(
        isinstance(v, (dict, Limits)) for v in cast("dict[str, object]", value).values()
    )
    return "named" if named else "one"


class Gates(Frozen):
    """Limits that a run must keep, judged on the stored facts at every run; they re-run nothing."""

    metric: (
        Annotated[
            Annotated[Limits, Tag("one")] | Annotated[dict[str, Limits], Tag("named")],
            Discriminator(_limits_kind),
        ]
        | None
    ) = Field(
        default=None,
        description="Limits of the metric; of each by name when it returns several",
        examples=[{"min": 0.99}, {"top1": {"min": 0.7}}],
    )
    max_error: float | None = Field(
        default=None,
        gt=0,
        description="Largest error relative to the range of the output",
        examples=[1e-3],
        json_schema_extra={"unit": "share"},
    )
    latency_vs: LatencyLimit | None = Field(
        default=None,
        description="Limit of our latency beside another's",
        examples=[{"run": "peer", "max_ratio": 1.0}],
    )
    failed_kernels: int | None = Field(
        default=None,
        ge=0,
        description="Most kernels that may differ from their unscheduled form on the inputs that "
        "they get in the model",
        examples=[0],
        json_schema_extra={"unit": "kernels"},
    )
    bundle_mib: float | None = Field(
        default=None,
        gt=0,
        description="Largest size of the bundle",
        examples=[10.0],
        json_schema_extra={"unit": "MiB"},
    )


class GateFields(Frozen):
    """What a run must keep."""

    gates: Gates = Field(
        default_factory=Gates,
        description="Limits that a run must keep",
        examples=[{"max_error": 1e-3, "bundle_mib": 10.0}],
    )


class Head(Frozen):
    """Fields of a recipe that belong to no stage."""

    version: Literal[1] = Field(description="Version of the recipe language")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="Name of the recipe; runs are compared under it",
        examples=["magika-sparse"],
    )
    description: str = Field(
        default="", description="What the recipe is for", examples=["magika, half its weights"]
    )
    workflow: str = Field(
        default="deploy", description="Name of a workflow of workflows.yaml", examples=["deploy"]
    )
    tags: dict[str, str] = Field(
        default_factory=dict,
        description="Tags of the run in MLflow; `tapml runs --tag` filters by them",
        examples=[{"team": "vision"}],
    )
    requires: Requires = Field(
        default_factory=Requires,
        description="What the machine that runs it must have",
        examples=[{"packages": ["magika>=1.0"]}],
    )


class Written(Head):
    """What an author may write beside the sections; gone once the recipe is composed."""

    extends: str | tuple[str, ...] | None = Field(
        default=None,
        description="Recipes that this one is laid over, the later ones over the earlier; "
        "paths are relative to this file",
        examples=["base.yaml"],
    )
    vars: dict[str, Any] | None = Field(
        default=None,
        description="Values by name; `${vars.NAME}` stands for them",
        examples=[{"model": "v3"}],
    )
    matrix: dict[str, Any] | None = Field(
        default=None,
        description="Dotted field → values; the recipe is run for each combination. `exclude` and "
        "`include` are lists of combinations, `limit` the most that there may be",
        examples=[{"sparsity.prune.density": [0.3, 0.5]}],
    )


HEAD_KEYS = tuple(Head.model_fields)
_OWN: dict[str, type[Frozen]] = {"target": TargetSection, "validation": GateFields}


@dataclass(frozen=True)
class Schema:
    """The composed model of a recipe: `root` for validation, the sections by name."""

    root: type[Frozen]
    sections: Mapping[str, type[Frozen]]


@cache
def compose(registry: Registry) -> Schema:
    """The recipe's model from the sections of a registry's stages.

    Raises: EnvironmentalError when two stages declare one field of a section differently.
    """
    bases: dict[str, list[type[Frozen]]] = {name: [model] for name, model in _OWN.items()}
    for name, models in registry.sections().items():
        if name in Written.model_fields:
            message = f"a stage declares a section {name!r}, which is the engine's own field"
            raise EnvironmentalError(message=message, hint="uninstall the package that brings it")
        own = bases.setdefault(name, [])
        own.extend(model for model in models if model not in own)
    sections = {name: _merge(name, models) for name, models in sorted(bases.items())}
    fields: dict[str, Any] = {
        name: (model | None, Field(default=None, description=_summary(model)))
        for name, model in sections.items()
    }
    root = create_model("Recipe", __base__=Written, __doc__="A recipe of tapml.", **fields)
    return Schema(root, sections)


def _merge(section: str, models: list[type[Frozen]]) -> type[Frozen]:
    if len(models) == 1:
        return models[0]
    for i, model in enumerate(models):
        for other in models[:i]:
            for name in model.model_fields.keys() & other.model_fields.keys():
                if repr(model.model_fields[name]) != repr(other.model_fields[name]):
                    raise EnvironmentalError(
                        message=f"field {section}.{name} is declared differently by "
                        f"{_origin(other)} and {_origin(model)}",
                        hint="uninstall the package that brings one of them",
                    )
    name = "".join(word.capitalize() for word in section.replace("-", "_").split("_"))
    summary = " ".join(filter(None, (_summary(model) for model in models)))
    return cast(
        "type[Frozen]",
        create_model(f"{name}Section", __base__=cast(Any, tuple(models)), __doc__=summary),
    )


def _origin(model: type[BaseModel]) -> str:
    return f"{model.__module__}.{model.__qualname__}"


def _summary(model: type[BaseModel]) -> str:
    """The first paragraph of a model's docstring, on one line."""
    return " ".join((model.__doc__ or "").strip().partition("\n\n")[0].split())
