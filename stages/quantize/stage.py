"""Declaration of `quantize`: weights rounded to what the library's integers can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from tapml.stage import Context, Inputs, Kind, Outputs, Recipe, Report, Stage, Table


class RoundWeights(Stage):
    """Weights in which those that the program stores as integers have the values that these stand
    for.

    So the source framework runs the model that is built, and rounding is never taken for an error
    of the library: validation compares numbers with these weights, and judges the recipe's metric
    by the original ones.

    In:     program after relax, whose regions say what is quantized; weights in source names
    Out:    weights.safetensors, names, shapes and dtypes as they were
    Source: rounding to nearest, symmetric, one scale per group: LLM.int8() and GPTQ's baseline.
    """

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 1
    inputs: ClassVar[Mapping[str, Kind]] = {"program": "program", "weights": "weights"}
    outputs: ClassVar[Mapping[str, Kind]] = {"weights": "weights"}
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi", "numpy")

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls()

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .. import codec, program
        from .rounding import round_weights

        weights = codec.read_weights(inputs["weights"])
        rows = round_weights(program.load(inputs["program"]), weights)
        path = ctx.workdir / "weights.safetensors"
        codec.write_weights(path, weights)
        total = sum(row.bytes for row in rows)
        stored = sum(row.stored_bytes for row in rows)
        worst = max((row.error for row in rows), default=0.0)
        return Outputs(
            {"weights": path},
            Report(
                summary=f"{len(rows)} weights, {total / 2**20:.1f} → {stored / 2**20:.1f} MiB, "
                f"relative error at most {worst:.2%}",
                metrics={
                    "quantize/weights": float(len(rows)),
                    "quantize/mib": stored / 2**20,
                    "quantize/error": worst,
                },
                tables=(
                    Table(
                        "Quantized weights",
                        ("weight", "shape", "bits", "group", "MiB", "was MiB", "error", "largest"),
                        tuple(row.cells() for row in rows),
                    ),
                ),
            ),
        )
