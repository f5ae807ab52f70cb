"""The stage SparseTIR: declaration and parameters. Imports no TVM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt

from tapml.errors import StageError
from tapml.stage import Context, Frozen, Inputs, Outputs, Recipe, Report, Stage, Table, Target

if TYPE_CHECKING:
    from .generate import Generated


class Csr(Frozen):
    """Compressed sparse rows: every nonzero by itself."""

    kind: Literal["csr"]


class Bsr(Frozen):
    """Block compressed sparse rows; edges of the weight are padded to whole blocks."""

    kind: Literal["bsr"]
    block: tuple[PositiveInt, PositiveInt] = Field(
        (16, 16),
        strict=False,
        description="Rows and columns of a block, in the weight's source layout",
        examples=[[32, 1]],
        json_schema_extra={"unit": "weights"},
    )


class Auto(Frozen):
    """Every format that can pay: CSR, and BSR with blocks of 8, 16 and 32."""

    kind: Literal["auto"] = "auto"


Format = Annotated[Csr | Bsr | Auto, Field(discriminator="kind")]


class SparseFormat(Frozen):
    """How pruned weights are stored. The choice between these formats and dense is made by
    measuring."""

    format: Format = Field(Auto(), examples=[{"kind": "bsr", "block": [16, 16]}])


class SparseTIR(Stage):
    """Sparse kernels that can take a region's place, epilogue included, and the structure of their
    weights.

    In:     Relax program with regions; pruned weights (zeros say what is not stored).
    Out:    alternatives (index.json, one scheduled PrimFunc each); structure.npz (indptr, indices,
            splits; no values).
    Raises: StageError when a format that was asked for by name supports no region, or a kernel is
            wrong.
    Source: SparseTIR (Ye et al., 2023): axes, and lowering from coordinates to positions to loops.
    """

    name: ClassVar[str] = "sparsetir"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"sparsity": SparseFormat}
    inputs: ClassVar[Mapping[str, str]] = {"program": "program", "weights": "weights"}
    outputs: ClassVar[Mapping[str, str]] = {
        "alternatives": "alternatives",
        "structure": "structure",
    }
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi", "numpy")

    format: Format = Auto()
    target: Target

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(format=recipe.section("sparsity", SparseFormat).format, target=recipe.target)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .. import codec, program
        from ..compat import tvm
        from .formats import Format as Stored
        from .generate import Request, generate

        squares = tuple(Stored("bsr", (size, size)) for size in (8, 16, 32))
        match self.format:
            case Csr():
                request = Request((Stored("csr"),), auto=False)
            case Bsr(block=block):
                request = Request((Stored("bsr", block),), auto=False)
            case Auto():
                request = Request((Stored("csr"), *squares), auto=True)
        made = generate(
            program.load(inputs["program"]),
            codec.read_weights(inputs["weights"]),
            request,
            self.target,
            ctx.progress,
        )
        if not made.rows and not request.auto:
            reasons = "; ".join(f"{one['region']}: {one['reason']}" for one in made.declined)
            raise StageError(
                message=f"no region of the model can be stored as {self.format.kind}",
                hint=f"{reasons or 'no product reads a weight'}; try `format: {{kind: auto}}`",
            )
        folder, structure = ctx.workdir / "alternatives", ctx.workdir / "structure"
        folder.mkdir()
        structure.mkdir()
        codec.write_json(
            folder / "index.json", {"alternatives": made.rows, "declined": made.declined}
        )
        for row in made.rows:
            kernel = made.kernels[row["id"]]
            mod = tvm.IRModule({row["kernel"]: kernel.func})
            codec.save_module(folder / f"{row['id']}.json", mod)
            if ctx.views is not None:
                text = f"{kernel.program}\n{kernel.positions}\n{mod.script()}\n"
                (ctx.views / f"{row['id']}.txt").write_text(text, encoding="utf-8")
        codec.write_npz(structure / "structure.npz", made.structure)
        return Outputs({"alternatives": folder, "structure": structure}, _report(made))


def _report(made: Generated) -> Report:
    """Formats by region with what they store, and why others were left out."""
    rows = []
    for figure in made.figures:
        s = figure.structure
        rows.append(
            (
                figure.region,
                s.format.name,
                f"{s.shape[0]}×{s.shape[1]}",
                round(s.density, 4),
                round(s.padding, 3),
                round(s.stored_share, 4),
                figure.declined,
            )
        )
    columns = (
        "region",
        "format",
        "outputs × inputs",
        "density",
        "stored / nonzero",
        "share of dense work",
        "left out",
    )
    others = [(one["region"], one["reason"]) for one in made.declined if one["format"] == "*"]
    kernels = tuple((row["id"], made.errors[row["id"]]) for row in made.rows)
    tables = [
        Table("Formats by region", columns, tuple(rows)),
        Table("Sparse kernels", ("kernel", "error relative to float64"), kernels),
    ]
    if others:
        tables.append(Table("Regions without sparse kernels", ("region", "reason"), tuple(others)))
    regions = {row["region"] for row in made.rows}
    summary = f"{len(made.rows)} sparse kernels for {len(regions)} regions"
    return Report(
        summary if made.rows else "no region has a sparse kernel: dense is kept",
        {"sparsity/kernels": float(len(made.rows)), "sparsity/regions": float(len(regions))},
        tables=tuple(tables),
    )
