"""A tiny house: stages that stand for the real ones, so that tests of recipes need no room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from tapml.registry import Registry
from tapml.stage import File, Frozen, PythonFunction, PythonRef, Stage
from tapml.stage import Recipe as RecipeView


class Dim(Frozen):
    min: int = Field(ge=1)
    max: int = Field(ge=1)


class Model(Frozen):
    """The model."""

    source: Literal["onnx", "operator"]
    path: str | None = None
    python: PythonRef | None = None
    dims: dict[Annotated[str, Field(pattern=r"^\w+$")], Dim] = Field(default_factory=dict)
    buckets: tuple[dict[str, int], ...] = ()


class Csr(Frozen):
    kind: Literal["csr"]


class Bsr(Frozen):
    kind: Literal["bsr"]
    block: tuple[int, int] = (16, 16)


class Pruning(Frozen):
    """Pruning."""

    layers: tuple[str, ...] = Field(min_length=1)
    density: float = Field(default=1.0, gt=0, le=1)


class SparseFormat(Frozen):
    """Formats."""

    format: Annotated[Csr | Bsr, Field(discriminator="kind")] = Csr(kind="csr")


class Tuning(Frozen):
    """The budget."""

    trials: int = Field(default=0, ge=0, description="Measurements.")
    seed: int = 0
    max_seconds: float | None = None


class ReferenceInputs(Frozen):
    """Inputs."""

    inputs: PythonRef | str | None = None


class Import(Stage):
    name: ClassVar[str] = "import"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"model": Model}
    outputs: ClassVar[Mapping[str, str]] = {"program": "program", "weights": "weights"}
    model: File | None = None
    function: PythonFunction | None = None

    @classmethod
    def from_recipe(cls, recipe: RecipeView) -> Self:
        model = recipe.section("model", Model)
        return cls(
            model=recipe.file(model.path, field="model.path") if model.path else None,
            function=recipe.python(model.python, field="model.python") if model.python else None,
        )


class Prune(Stage):
    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"sparsity": Pruning}
    inputs: ClassVar[Mapping[str, str]] = {"program": "program", "weights": "weights"}
    outputs: ClassVar[Mapping[str, str]] = {"weights": "weights", "masks": "masks"}
    layers: tuple[str, ...]

    @classmethod
    def from_recipe(cls, recipe: RecipeView) -> Self:
        return cls(layers=recipe.section("sparsity", Pruning).layers)


class Sparse(Stage):
    name: ClassVar[str] = "sparsetir"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"sparsity": SparseFormat}
    inputs: ClassVar[Mapping[str, str]] = {"program": "program", "weights": "weights"}
    outputs: ClassVar[Mapping[str, str]] = {"alternatives": "alternatives"}


class Tune(Stage):
    name: ClassVar[str] = "metaschedule"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {
        "tuning": Tuning,
        "validation": ReferenceInputs,
    }
    inputs: ClassVar[Mapping[str, str]] = {
        "program": "program",
        "weights": "weights",
        "alternatives": "alternatives",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives"})
    outputs: ClassVar[Mapping[str, str]] = {"choices": "choices"}
    trials: int = Field(default=0, ge=0)
    seed: int = 0

    @classmethod
    def from_recipe(cls, recipe: RecipeView) -> Self:
        tuning = recipe.section("tuning", Tuning)
        return cls(trials=tuning.trials, seed=tuning.seed)


REGISTRY = Registry.of(Import, Prune, Sparse, Tune)
HEAD = "version: 1\nname: tiny\n"
WHOLE = (
    HEAD
    + """\
description: "all sections"
tags: {team: compilers}
x-note: [anything, 1e3]
model:
  source: onnx
  path: model.onnx
  dims: {batch: {min: 1, max: 64}}
  buckets: [{batch: 1}, {batch: 16}]
target: {preset: x86-64-v3, cores: 2, device: {threads: 2}}
sparsity:
  layers: ["*Dense_*", "no", "1e3"]
  density: 0.7
  format: {kind: bsr, block: [8, 8]}
tuning: {trials: 64}
validation:
  inputs: {python: "inputs.py:files"}
  gates: {metric: {min: 0.9}, bundle_mib: 30}
"""
)
