"""The relax room: graph-level passes; nothing is legalized, layouts stay as imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field

from tapml.stage import Context, Frozen, Inputs, Kind, Outputs, Recipe, Report, Stage, Table


class RelaxOptions(Frozen):
    """Options of the graph-level passes."""

    reciprocal: bool = Field(
        True,
        description="Multiply by 1/c where the model divides by a constant c (an ulp at most)",
    )


class RelaxPasses(Stage):
    """The imported program in canonical form, each matrix product with a weight marked as a region.

    In:  Relax operators; weights are parameters; dims may be symbolic, with bounds as function
         attributes.
    Out: Relax operators, not legalized; BatchNorm, Clip and one-hot products rewritten; a
         composite function `region_<k>` for each product with a 2-D weight and its elementwise
         epilogue.
    """

    name: ClassVar[str] = "relax"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"relax": RelaxOptions}
    inputs: ClassVar[Mapping[str, Kind]] = {"program": "program"}
    outputs: ClassVar[Mapping[str, Kind]] = {"program": "program"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")

    reciprocal: bool = True

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(reciprocal=recipe.section("relax", RelaxOptions).reciprocal)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from ..program import load
        from .passes import operator_counts, passes

        program = load(inputs["program"])
        mod, steps = program.mod, passes(reciprocal=self.reciprocal)
        for k, (name, transform) in enumerate(steps):
            ctx.progress(k, len(steps), name)
            before, mod = mod, transform(mod)
            if ctx.views is not None:
                ctx.views.mkdir(parents=True, exist_ok=True)
                (ctx.views / f"{k:02}-{name}.before.py").write_text(
                    before.script(), encoding="utf-8"
                )
                (ctx.views / f"{k:02}-{name}.after.py").write_text(mod.script(), encoding="utf-8")
        folder = program.with_mod(mod).save(ctx.workdir / "program")
        return Outputs(
            {"program": folder}, _report(operator_counts(program.mod), operator_counts(mod), mod)
        )


def _report(before: Mapping[str, int], after: Mapping[str, int], mod: Any) -> Report:
    from ..dataflow import shape_of

    regions = [
        (gvar.name_hint, func)
        for gvar, func in mod.functions.items()
        if gvar.name_hint.startswith("region_")
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
