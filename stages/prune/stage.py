"""Declaration of `prune`: zeros in the weights of matched layers, under source names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from tapml.stage import (
    Context,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    Recipe,
    Report,
    Stage,
    Table,
)


class Magnitude(Frozen):
    """Keeps the largest weights of each layer, one by one or as blocks."""

    method: Literal["magnitude"]
    density: float = Field(
        gt=0,
        le=1,
        description="Share of each layer's weights that is kept",
        examples=[0.7],
        json_schema_extra={"unit": "share"},
    )
    block: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Rows and columns that live or die together; edges are padded",
        examples=[[16, 16]],
        json_schema_extra={"unit": "weights"},
    )


class Existing(Frozen):
    """Keeps every weight; the zeros that are there are the mask."""

    method: Literal["none"]


Method = Annotated[Magnitude | Existing, Field(discriminator="method")]


class Pruning(Frozen):
    """Which layers become sparse, and how. Patterns are shell wildcards, as in `*Dense_*`."""

    layers: tuple[str, ...] = Field(
        min_length=1,
        description="Names of source nodes or of weights",
        examples=[["*Dense_*"]],
    )
    prune: Method = Field(
        Existing(method="none"), examples=[{"method": "magnitude", "density": 0.7}]
    )


class Prune(Stage):
    """Weights with zeros in the matched layers, and a mask for each.

    In:     program (for provenance: which node reads which weight), weights in source names
    Out:    weights.safetensors, names and shapes as they were; masks.npz: per pruned weight, True
            where it is kept
    Raises: RecipeErrors for each pattern that matches no layer, with the nearest and all layers
    """

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"sparsity": Pruning}
    inputs: ClassVar[Mapping[str, Kind]] = {"program": "program", "weights": "weights"}
    outputs: ClassVar[Mapping[str, Kind]] = {"weights": "weights", "masks": "masks"}

    layers: tuple[str, ...]
    prune: Method

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        section = recipe.section("sparsity", Pruning)
        return cls(layers=section.layers, prune=section.prune)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        import numpy as np

        from .. import codec, program
        from ..layers import match, prunable
        from .magnitude import masks

        weights = codec.read_weights(inputs["weights"])
        layers = prunable(
            program.load_provenance(inputs["program"]),
            {name: weight.shape for name, weight in weights.items()},
        )
        chosen = match(self.layers, layers, field="sparsity.layers", can="be pruned")
        kept = {layer.weight: masks(weights[layer.weight], self.prune) for layer in chosen}
        for name, mask in kept.items():
            weights[name] = np.where(mask, weights[name], weights[name].dtype.type(0))
        files = {"weights": ctx.workdir / "weights.safetensors", "masks": ctx.workdir / "masks.npz"}
        codec.write_weights(files["weights"], weights)
        codec.write_npz(files["masks"], kept)
        rows = tuple(
            (one.node, one.weight, "×".join(map(str, one.shape)), float(kept[one.weight].mean()))
            for one in chosen
        )
        total = sum(mask.size for mask in kept.values())
        density = sum(int(mask.sum()) for mask in kept.values()) / total
        return Outputs(
            files,
            Report(
                summary=f"{len(chosen)} layers, density {density:.3f}",
                metrics={"sparsity/density": density, "sparsity/layers": len(chosen)},
                tables=(Table("Pruned layers", ("node", "weight", "shape", "density"), rows),),
            ),
        )
