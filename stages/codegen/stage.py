"""Declaration of the codegen stage: choices applied, weights packed, library built and exported
as a bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field

from tapml.stage import Context, Frozen, Inputs, Kind, Outputs, Recipe, Resources, Stage, Target

from ..toolchain import compiler_version, demand_compiler


class Build(Frozen):
    """How the library is built."""

    opt_level: Literal[0, 1, 2, 3] = Field(3, description="LLVM's optimisation level for kernels")


class Codegen(Stage):
    """A `vm-library` bundle: it runs with the TVM runtime and NumPy alone.

    In:     program with unscheduled PrimFuncs, records, choices, weights in source layout;
            alternatives, structure.
    Out:    bundle/ with manifest.json, lib.so, params.npz, call_map.json, run.py, and `files`.
    Raises: StageError when a choice names a record or an alternative that is not there.
    Source: TVM's default build pipeline; StaticPlanBlockMemory with the bounds of the symbolic
            dims.
    """

    name: ClassVar[str] = "codegen"
    version: ClassVar[int] = 2
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"build": Build}
    inputs: ClassVar[Mapping[str, Kind]] = {
        "program": "program",
        "records": "records",
        "choices": "choices",
        "weights": "weights",
        "alternatives": "alternatives",
        "structure": "structure",
        "files": "files",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives", "structure", "files"})
    outputs: ClassVar[Mapping[str, Kind]] = {"bundle": "bundle"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi", "numpy")
    resources: ClassVar[Resources] = Resources(fresh_process=True)

    target: Target
    opt_level: int
    recipe_name: str

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        build = recipe.section("build", Build)
        return cls(target=recipe.target, opt_level=build.opt_level, recipe_name=recipe.name)

    @classmethod
    def tool_versions(cls) -> Mapping[str, str]:
        return {"linker": compiler_version()}

    def check(self) -> None:
        demand_compiler("codegen links the library with it")

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .bundle import write_bundle

        return write_bundle(self, inputs, ctx)
