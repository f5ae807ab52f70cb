"""Three small stages of another package: a weight, a bundle around it, facts measured on that."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field

from tapml import bundle, host
from tapml.errors import StageError
from tapml.stage import (
    Context,
    Curve,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    Recipe,
    Report,
    Stage,
    Table,
)


class Scaling(Frozen):
    """What the little library multiplies by."""

    factor: float = Field(2.0, description="The factor")
    shipped: float | None = Field(None, description="Ship this factor instead, which is a fault")


class Scale(Stage):
    name: ClassVar[str] = "scale"
    version: ClassVar[int] = 1
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"scaling": Scaling}
    outputs: ClassVar[Mapping[str, Kind]] = {"weights": "weights"}

    factor: float

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(factor=recipe.section("scaling", Scaling).factor)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        if self.factor == 0:
            raise StageError(message="a factor of 0 loses everything", hint="take another")
        for done in range(1, 4):
            ctx.progress(done, 3, f"best {10 / done:.1f} ms")
        path = ctx.workdir / "weights.json"
        path.write_text(json.dumps({"factor": self.factor}))
        if ctx.views is not None:
            (ctx.views / "scaled.py").write_text(f"x * {self.factor}\n")
        curve = Curve("search", "trial", "ms", {"best_ms": ((1, 10.0), (2, 5.0), (3, 10 / 3))})
        table = Table("a <b> table", ("name", "value"), (("<script>alert(1)</script>", 1.5),))
        report = Report(
            "one weight", {"scale/factor": self.factor}, ("a note",), (table,), (curve,)
        )
        return Outputs({"weights": path}, report)


class Pack(Stage):
    name: ClassVar[str] = "pack"
    version: ClassVar[int] = 1
    inputs: ClassVar[Mapping[str, Kind]] = {"weights": "weights"}
    outputs: ClassVar[Mapping[str, Kind]] = {"bundle": "bundle"}

    shipped: float | None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(shipped=recipe.section("scaling", Scaling).shipped)

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        folder = ctx.workdir / "bundle"
        folder.mkdir()
        weights = json.loads(inputs["weights"].read_text())
        wanted = weights["factor"]
        (folder / "params.json").write_text(
            json.dumps(
                {"factor": wanted if self.shipped is None else self.shipped, "wanted": wanted}
            )
        )
        shutil.copyfile(Path(__file__).with_name("runner.py"), folder / "run.py")
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
        }
        manifest = {"format": 1, "kind": "vm-library", "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Outputs({"bundle": folder}, Report("a bundle"))


class Judge(Stage):
    name: ClassVar[str] = "judge"
    version: ClassVar[int] = 1
    inputs: ClassVar[Mapping[str, Kind]] = {"bundle": "bundle"}
    outputs: ClassVar[Mapping[str, Kind]] = {"facts": "facts"}
    measures: ClassVar[bool] = True

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        import numpy as np

        library = bundle.load(inputs["bundle"])
        wanted = json.loads((inputs["bundle"] / "params.json").read_text())["wanted"]
        x = np.linspace(1, 2, 1000)
        got, right = library(x=x)["y"], x * wanted
        relative = float(np.max(np.abs(got - right)) / np.max(np.abs(right)))
        ours, theirs = _timed(lambda: library(x=x)), _timed(lambda: np.multiply(x, wanted))
        size = sum(path.stat().st_size for path in inputs["bundle"].iterdir()) / 2**20
        facts = {
            "metric": {"same": float(np.mean(np.isclose(got, right)))},
            "error": {
                "max_abs": float(np.max(np.abs(got - right))),
                "relative": relative,
                "tolerance": 1e-4,
                "reason": "of the range",
                "passed": relative <= 1e-4,
                "cases": [],
            },
            "latency": [
                {
                    "sizes": {"n": 1000},
                    "threads": 1,
                    "ours_ms": ours,
                    "peer": f"numpy {np.__version__}",
                    "peer_ms": theirs,
                    "ratio": ours["p50"] / theirs["p50"],
                }
            ],
            "carve": {
                "checked": 1,
                "worst": [{"kernel": "multiply", "relative": relative}],
                "failed": [],
            },
            "bundle_mib": size,
            "kernels": [
                {
                    "kernel": "multiply",
                    "rule": "injective",
                    "kind": "default",
                    "ms": ours["p50"],
                    "share": 1.0,
                }
            ],
            "host": host.fingerprint(),
            "date": "2026-11-22T21:00:00+00:00",
        }
        path = ctx.workdir / "facts.json"
        path.write_text(json.dumps(facts))
        return Outputs({"facts": path}, Report(f"error {relative:.1e}"))


def _timed(call: Callable[[], object]) -> dict[str, float]:
    times: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return {"p50": statistics.median(times), "low": min(times), "high": max(times), "n": len(times)}
