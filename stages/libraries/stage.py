"""Declaration of `libraries`: installed libraries as alternatives of regions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field

from tapml.registry import extensions
from tapml.stage import Context, Frozen, Inputs, Kind, Outputs, Recipe, Report, Stage, Table, Target

from ..toolchain import compiler_version, demand_compiler


class UseLibraries(Frozen):
    """Whether libraries compete."""

    library: bool = Field(
        False,
        description="Let installed libraries compete with the kernels: one ships where it is "
        "measured to be faster",
    )


class Libraries(Stage):
    """Alternatives that call a library, beside those that there are.

    In:     program with regions; alternatives and structure, where there are sparse ones
    Out:    all of these; a kernel per library and region that its pattern matches;
            alternatives/libraries/ with the shims, compiled, and the shared libraries to ship
    Raises: EnvironmentalError when no library is installed, or there is no C compiler; StageError
            with the compiler's words when a shim does not compile.
    Source: Relax §4.6, partial library lowering; here nothing is replaced before it was measured.
    """

    name: ClassVar[str] = "libraries"
    version: ClassVar[int] = 2
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"tuning": UseLibraries}
    inputs: ClassVar[Mapping[str, Kind]] = {
        "program": "program",
        "alternatives": "alternatives",
        "structure": "structure",
    }
    optional: ClassVar[frozenset[str]] = frozenset({"alternatives", "structure"})
    outputs: ClassVar[Mapping[str, Kind]] = {
        "alternatives": "alternatives",
        "structure": "structure",
    }
    tools: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")

    target: Target

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(target=recipe.target)

    @classmethod
    def tool_versions(cls) -> Mapping[str, str]:
        from .library import GROUP, versions

        return {"compiler": compiler_version(), **versions(), **extensions(GROUP)}

    def check(self) -> None:
        from .library import libraries

        demand_compiler("shims of libraries are compiled with it")
        for library in libraries().values():
            library.found()

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        from .. import codec, program
        from ..compat import tvm
        from . import kernels
        from .library import libraries
        from .shim import build_shim

        folder, structure = ctx.workdir / "alternatives", ctx.workdir / "structure"
        index: dict[str, list[dict[str, Any]]] = {"alternatives": [], "declined": []}
        if "alternatives" in inputs:
            shutil.copytree(inputs["alternatives"], folder)
            shutil.copytree(inputs["structure"], structure)
            index = codec.read_json(folder / "index.json")
        else:
            folder.mkdir()
            structure.mkdir()
            codec.write_npz(structure / "structure.npz", {})
        source, rows = program.load(inputs["program"]), list[tuple[str, str, str]]()
        for number, (name, library) in enumerate(libraries().items()):
            ctx.progress(number, len(libraries()), name)
            files = build_shim(name, library, folder / "libraries")
            for made in kernels.make(source, name, library, self.target):
                rows.append((made.region, name, made.declined))
                if made.row is None:
                    declined = {"region": made.region, "format": name, "reason": made.declined}
                    index["declined"].append(declined)
                    continue
                mod = tvm.IRModule({made.row["kernel"]: made.func})
                codec.save_module(folder / f"{made.row['id']}.json", mod)
                if ctx.views is not None:
                    view = ctx.views / f"{made.row['id']}.py"
                    view.write_text(f"{mod.script()}\n", encoding="utf-8")
                index["alternatives"].append({**made.row, "files": files})
        codec.write_json(folder / "index.json", index)
        count = sum(not declined for *_, declined in rows)
        return Outputs(
            {"alternatives": folder, "structure": structure},
            Report(
                summary=f"{count} kernels of {', '.join(libraries())}",
                tables=(
                    Table("Libraries by region", ("region", "library", "left out"), tuple(rows)),
                ),
            ),
        )
