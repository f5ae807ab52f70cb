"""The relax room: graph-level passes; nothing is legalized, layouts stay as imported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from tapml.stage import (
    Context,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    PythonFunction,
    PythonRef,
    Recipe,
    Report,
    Stage,
    Table,
)

if TYPE_CHECKING:
    from ..program import Program
    from ..quantization import Bits
    from .passes import Named


class Quantize(Frozen):
    """Weights of matrix products as small integers with a scale per group."""

    weights: Literal["int8", "int4"] = Field(
        description="Integers that the weights are rounded to; activations stay floats"
    )
    group: int = Field(
        32,
        ge=2,
        le=4096,
        multiple_of=2,
        description="Weights, neighbours along the axis summed over, that share a scale",
        examples=[64],
        json_schema_extra={"unit": "weights"},
    )
    layers: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="Names of source nodes or of weights",
        examples=[["*ffn*"]],
    )


class RelaxOptions(Frozen):
    """Options of the graph-level passes."""

    reciprocal: bool = Field(
        True,
        description="Multiply by 1/c where the model divides by a constant c (an ulp at most)",
    )
    quantize: Quantize | None = Field(
        None,
        description="Store the weights of matrix products as integers",
        examples=[{"weights": "int8"}],
    )
    passes: tuple[PythonRef, ...] = Field(
        (),
        description="Passes of your own, run in this order after tapml's, before regions are "
        "marked: `mod -> mod`, or a pass of TVM's",
        examples=[[{"python": "passes.py:MyPass"}]],
    )


class RelaxPasses(Stage):
    """The imported program in canonical form, each matrix product with a weight marked as a region.

    In:  Relax operators; weights are parameters; dims may be symbolic, with bounds as function
         attributes.
    Out: Relax operators, not legalized; BatchNorm, Clip and one-hot products rewritten; a
         composite function `region_<k>` for each product with a 2-D weight and its elementwise
         epilogue; where asked for, and where the source has them, it reads integers and scales, and
         decodes them; so do lookups of rows.
    Raises: what a pass of the recipe's author does wrong; RecipeError when `quantize.layers` names
         no layer.
    """

    name: ClassVar[str] = "relax"
    version: ClassVar[int] = 3
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"relax": RelaxOptions}
    inputs: ClassVar[Mapping[str, Kind]] = {"program": "program"}
    outputs: ClassVar[Mapping[str, Kind]] = {"program": "program"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")

    reciprocal: bool = True
    quantize: Quantize | None = None
    passes: tuple[PythonFunction, ...] = ()

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        section = recipe.section("relax", RelaxOptions)
        functions = tuple(
            recipe.python(ref, field=f"relax.passes.{index}.python")
            for index, ref in enumerate(section.passes)
        )
        return cls(reciprocal=section.reciprocal, quantize=section.quantize, passes=functions)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from ..program import load
        from ..views import Views
        from .passes import operator_counts

        program = load(inputs["program"])
        mod, steps = program.mod, self._steps(program)
        views = Views(ctx.views, mod)
        for k, (name, transform) in enumerate(steps):
            ctx.progress(k, len(steps), name)
            mod = transform(mod)
            views(name, mod)
        folder = program.with_mod(mod).save(ctx.workdir / "program")
        return Outputs(
            {"program": folder}, _report(operator_counts(program.mod), operator_counts(mod), mod)
        )

    def _steps(self, program: Program) -> list[Named]:
        from ..program import source_names
        from .passes import passes
        from .quantize import keep_blocks, quantize
        from .user import run_pass

        user: list[Named] = [
            (f"user_{one.function}", partial(run_pass, function=one, field=f"relax.passes.{index}"))
            for index, one in enumerate(self.passes)
        ]
        names, blocks = source_names(program.mod, program.io), program.io.blocks
        kept = {param for param, source in names.items() if source in blocks}
        steps = passes(reciprocal=self.reciprocal, user=user, kept=kept)
        if (how := self.quantize) is not None:
            bits: Bits = 8 if how.weights == "int8" else 4
            options = {"patterns": how.layers, "bits": bits, "group": how.group}
            origins = program.provenance
            step = partial(quantize, io=program.io, provenance=origins, **options)
            steps.append(("quantize", step))
        if blocks:
            steps.append(("keep_blocks", partial(keep_blocks, io=program.io)))
        return steps


def _report(before: Mapping[str, int], after: Mapping[str, int], mod: Any) -> Report:
    from ..dataflow import shape_of

    regions = [
        (gvar.name_hint, func)
        for gvar, func in mod.functions.items()
        if func.attrs and "tapml.weight" in func.attrs
    ]
    regions.sort(key=lambda one: int(one[0].removeprefix("region_")))
    rows = tuple(
        (
            name,
            str(func.attrs["tapml.weight"]),
            " × ".join(map(str, shape_of(func.params[0]))),
            " × ".join(map(str, shape_of(func.body.body))),
            sum(len(block.bindings) for block in func.body.blocks),
        )
        for name, func in regions
    )
    names = sorted(set(before) | set(after))
    counts = tuple(
        (name.removeprefix("relax."), before.get(name, 0), after.get(name, 0)) for name in names
    )
    total_before, total_after = sum(before.values()), sum(after.values())
    return Report(
        summary=f"{total_before} operators → {total_after}, {len(regions)} regions",
        metrics={"program/operators": float(total_after), "program/regions": float(len(regions))},
        tables=(
            Table("Operators", ("operator", "imported", "after relax"), counts),
            Table("Regions", ("region", "weight", "activation", "result", "operators"), rows),
        ),
    )
