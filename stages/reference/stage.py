"""Declaration of `reference`: what the source framework answers, on real and on random inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field

from tapml.stage import (
    Context,
    File,
    Frozen,
    Inputs,
    Kind,
    Outputs,
    PythonFunction,
    PythonRef,
    Recipe,
    Report,
    Resources,
    Stage,
    Table,
)

from ..model_source import ModelSource, SourceName


class ReferenceInputs(Frozen):
    """Realistic inputs. Without them only random ones are used, and no metric can be judged."""

    inputs: PythonRef | str | None = Field(
        None,
        description="Function that returns {input: array} or a list of them, or an .npz file",
        examples=["inputs.npz", {"python": "inputs.py:files"}],
    )
    random: dict[str, tuple[float, float]] = Field(
        {},
        description="Least and largest random value, by input; else as in the real inputs",
        examples=[{"image": [0.0, 1.0]}],
        json_schema_extra={"unit": "the input's"},
    )


_RUN_BY: dict[SourceName, tuple[str, ...]] = {  # by model.source
    "onnx": ("onnx", "onnxruntime"),
    "torch": ("torch",),
    "huggingface": ("torch", "transformers"),
    "gguf": ("torch", "transformers"),
    "relax": ("apache-tvm",),
    "operator": ("apache-tvm",),  # its Python makes a module too
}
_UNDEFINED = (
    "the model itself gives them: look at its weights, or give `validation.inputs` "
    "or `validation.random` ranges where it is defined"
)


class Reference(Stage):
    """Inputs, and what the source framework makes of them with the original and the pruned weights.

    In:     source (with its signature), both weights in source names
    Out:    inputs.npz and cases.json: real inputs in chunks, random ones at every bucket and two
            other sizes; outputs_original.npz, outputs_pruned.npz (the numeric reference),
            outputs_unoptimized.npz (the same computed another way: how far rounding goes);
            source_pruned/ to be timed; meta.json
    Raises: StageError when the input function raises or its arrays do not fit the signature
    """

    name: ClassVar[str] = "reference"
    version: ClassVar[int] = 2
    sections: ClassVar[Mapping[str, type[Frozen]]] = {"validation": ReferenceInputs}
    inputs: ClassVar[Mapping[str, Kind]] = {
        "source": "source",
        "original": "weights",
        "weights": "weights",
    }
    outputs: ClassVar[Mapping[str, Kind]] = {"reference": "reference"}
    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    # onnxruntime's threads and the user's imports die with the worker
    resources: ClassVar[Resources] = Resources(fresh_process=True)

    source: SourceName
    function: PythonFunction | None = None
    arrays: File | None = None
    random: dict[str, tuple[float, float]] = Field(default_factory=dict)
    threads: int

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        section = recipe.section("validation", ReferenceInputs)
        function, arrays = None, None
        match section.inputs:
            case PythonRef() as ref:
                function = recipe.python(ref, field="validation.inputs.python")
            case str(path):
                arrays = recipe.file(path, field="validation.inputs")
            case None:
                pass
        threads = recipe.target.device.threads
        return cls(
            source=recipe.section("model", ModelSource).source,
            function=function,
            arrays=arrays,
            random=section.random,
            threads=threads,
        )

    def uses(self) -> tuple[str, ...]:
        return (*self.tools, *_RUN_BY[self.source])

    def run(self, inputs: Inputs, ctx: Context) -> Outputs:
        import numpy as np

        from .. import codec
        from ..program import io_from_json
        from . import cases, sequences
        from .runners import runner as runners

        facts = codec.read_json(inputs["source"] / "source.json")
        real = cases.real_inputs(self.function, self.arrays)
        io = io_from_json({**facts["io"], "params": []})
        every = (
            sequences.make(io, real) if io.states else cases.make(facts["io"], real, self.random)
        )
        original = codec.read_weights(inputs["original"])
        pruned = codec.read_weights(inputs["weights"])
        folder = ctx.workdir / "reference"
        folder.mkdir()
        runner = runners.make(facts, inputs["source"], self.threads)
        runner.save(pruned, folder / "source_pruned")
        same = all(np.array_equal(pruned[name], original[name]) for name in original)
        answers: dict[str, dict[str, np.ndarray]] = {}
        jobs = [("unoptimized", pruned), ("pruned", pruned)]
        jobs += [] if same else [("original", original)]
        done, total = 0, len(jobs) * len(every)
        for name, weights in jobs:
            optimize = name != "unoptimized"
            run = runner(weights, optimize=optimize)
            answers[name] = {}
            for chain in sequences.chains(every):
                ctx.progress(done, total, f"{name} weights, {chain[0].id}")
                if io.states:
                    given = sequences.answers(run, chain, io.outputs[0].name)
                elif optimize:
                    given = [run(chain[0].inputs)]
                else:
                    given = [cases.one_by_one(run, chain[0], facts["io"])]
                for case, outputs in zip(chain, given, strict=True):
                    for output, value in outputs.items():
                        what = f"{runner.meta['peer'] or 'NumPy'}, {case.id}: output {output!r}"
                        cases.demand_finite(what, value, _UNDEFINED)
                        answers[name][f"{case.id}/{output}"] = value
                done += len(chain)
        answers.setdefault("original", answers["pruned"])
        for name, arrays in answers.items():
            codec.write_npz(folder / f"outputs_{name}.npz", arrays)
        cases.save(folder, every)
        codec.write_json(folder / "meta.json", runner.meta)
        count = {kind: sum(one.kind == kind for one in every) for kind in ("real", "random")}
        rows = tuple((one.id, str(one.sizes)) for one in every)
        return Outputs(
            {"reference": folder},
            Report(
                summary=f"{count['real']} real and {count['random']} random cases, "
                f"{runner.meta['peer'] or 'NumPy in float64'}",
                tables=(Table("Cases", ("case", "sizes"), rows),),
            ),
        )
