"""Runs of the tuning stage on kernels of shipped recipes at sizes of our choice, for the claims
about the tuning database.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from tapml.stage import Context, Device, File, Inputs, Target
from tapml.target import TargetSection, resolve
from tapml.tuning import database

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SHAPES: dict[str, dict[str, Any]] = {  # recipe → name of an input → shape at (batch, size)
    "minilm": {"input_ids": ("b", "n"), "attention_mask": ("b", "n")},
    "ocr_turn": {"x": ("b", 3, 48, "n")},
    "efficientnet_lite0": {"image": ("b", 3, "n", "n")},
}


@dataclass(frozen=True)
class Model:
    """A shipped recipe at one batch size and one other size: `minilm@1x64`; or at all sizes up to
    them, as one symbolic program: `minilm@~16x128`.
    """

    recipe: str
    batch: int
    size: int
    symbolic: bool = False

    @classmethod
    def of(cls, text: str) -> Model:
        recipe, _, sizes = text.partition("@")
        batch, _, size = sizes.removeprefix("~").partition("x")
        return cls(recipe, int(batch), int(size), sizes.startswith("~"))

    def __str__(self) -> str:
        return f"{self.recipe}@{'~' * self.symbolic}{self.batch}x{self.size}"

    def prepared(self, folder: Path, target: Target) -> Path:
        """A folder with the lowered program and its default records."""
        import tapml
        from tapml.store import Store

        named = {"b": self.batch, "n": self.size}
        sizes = {} if self.symbolic else named
        place = folder / str(self)
        if (place / "records.jsonl").exists():
            return place
        fixed = {
            name: [sizes.get(dim, dim) for dim in shape]
            for name, shape in SHAPES[self.recipe].items()
        }
        sets = [f"model.inputs.{name}.shape={json.dumps(shape)}" for name, shape in fixed.items()]
        dims = {dim: {"min": 1, "max": most} for dim, most in named.items() if self.symbolic}
        sets += [f"model.dims={json.dumps(dims)}", "model.buckets=[]", "tuning.trials=0"]
        sets += [f"target.device.threads={target.device.threads}"]
        recipe = ROOT / "recipes" / f"{self.recipe}.yaml"
        store = folder / "store"
        done = tapml.run(recipe, set=sets, to=["tensorir"], store=store, track="off")
        (outputs,) = [step.outputs for step in done.steps if step.name == "tensorir"]
        place.mkdir(parents=True)
        Store(store).materialise(outputs["program"], place / "program")
        Store(store).materialise(outputs["records"], place / "records.jsonl")
        return place


@dataclass(frozen=True)
class Outcome:
    """How a run of the stage ended.

    default_ms, shipped_ms: all calls, with default schedules and with those that won, timed side
                            by side in the same contests
    """

    default_ms: float
    shipped_ms: float
    won: int
    notes: tuple[str, ...]

    @property
    def speedup(self) -> float:
        return self.default_ms / self.shipped_ms


def here(threads: int) -> Target:
    found = resolve(TargetSection(preset="cpu"))
    return found.model_copy(update={"device": Device(kind="local", threads=threads)})


def tune(
    model: Model,
    folder: Path,
    target: Target,
    *,
    trials: int,
    db: Path,
    reuse: Path | None = None,
    **options: Any,
) -> Outcome:
    """Tunes a model with the database in `db`, or with what `reuse` (an export) has."""
    from tapml_stages import program, records
    from tapml_stages.metaschedule.kernels import find_kernels
    from tapml_stages.metaschedule.stage import MetaSchedule, Reused, Tuning

    inputs = model.prepared(folder, target)
    stage = MetaSchedule(
        target=target,
        tuning=Tuning(trials=trials, **options),
        reused=None if reuse is None else Reused(source=file(reuse)),
    )
    with tempfile.TemporaryDirectory() as work:
        context = Context(Path(work), logging.getLogger("benchmark"), db)
        given = {"program": inputs / "program", "records": inputs / "records.jsonl"}
        outputs = stage.run(Inputs(given), context)
        choices = records.load_choices(outputs.artifacts["choices"])
    defaults = records.load(inputs / "records.jsonl")
    kernels = {one.name: one for one in find_kernels(program.load(inputs / "program"), defaults)}
    default_ms = shipped_ms = 0.0
    won = 0
    for choice in choices.kernels:
        times = {one.id: one.ms for one in choice.candidates}
        default = times[kernels[choice.kernel].default.id]
        shipped = times[choice.record]
        assert default is not None
        assert shipped is not None
        default_ms += kernels[choice.kernel].calls * default
        shipped_ms += kernels[choice.kernel].calls * shipped
        won += choice.record != kernels[choice.kernel].default.id
    return Outcome(default_ms, shipped_ms, won, outputs.report.notes)


def export(folders: Sequence[Path], to: Path) -> Path:
    """One file of the searches of several databases."""
    to.unlink(missing_ok=True)
    database.export([one for path in folders for one in database.load(path).searches], to)
    return to


def file(path: Path) -> File:
    return File(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def geomean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
