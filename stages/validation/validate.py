"""The walk of validation: carve, compare, judge by the recipe's metric, time; then write the
facts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tapml import host
from tapml.errors import StageError
from tapml.stage import Context, Inputs, Outputs, Report, Table

from .. import alternatives, codec, latency, params, program, records, reference_cases
from ..compat import tvm
from ..platforms.runner import Runner
from ..target import tvm_target
from . import carve, compare
from .metric import evaluate
from .stage import Validation

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One set of inputs: the recipe's own (`real`) or random ones, and what the reference gave.

    after: the case whose states the call goes on from, where it does not begin anew
    """

    id: str
    kind: str
    sizes: Mapping[str, int]
    inputs: Arrays
    original: Arrays
    pruned: Arrays
    unoptimized: Arrays
    after: str = ""


def validate(stage: Validation, inputs: Inputs, ctx: Context) -> Outputs:
    """Facts and carved tests of a bundle; see `Validation`."""
    source = program.load(inputs["program"])
    cases = load_cases(inputs["reference"])
    ctx.progress(0, 4, "carving")
    carved = _carve(stage, inputs, source, cases, ctx.workdir / "carved")
    peer, peer_model = reference_cases.peer(inputs["reference"])
    threads = stage.target.device.threads
    with Runner("bundle", inputs["bundle"], threads) as ours:
        ctx.progress(1, 4, "comparing")
        outputs = {case.id: ours.outputs(case.inputs, goes_on=bool(case.after)) for case in cases}
        try:
            errors = _errors(cases, outputs)
        except StageError as error:
            raise StageError(message=error.message, hint=_blame(carved)) from error
        metric = _metric(stage, cases, outputs)
        ctx.progress(2, 4, "timing")
        latencies = _latencies(stage, ours, peer_model, _timed_cases(cases, source.io), ctx)
    facts = {
        "metric": metric,
        "error": _error_facts(errors),
        "latency": [
            {
                "sizes": dict(one.sizes),
                "threads": threads,
                "ours_ms": asdict(one.ours),
                "peer": peer,
                "peer_ms": asdict(one.theirs) if one.theirs else None,
                "ratio": one.ratio,
            }
            for one in latencies
        ],
        "carve": _carve_facts(carved),
        "bundle_mib": sum(p.stat().st_size for p in inputs["bundle"].iterdir()) / 2**20,
        "kernels": _kernels(inputs, source),
        "host": host.fingerprint(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    codec.write_json(ctx.workdir / "facts.json", facts)
    ctx.progress(4, 4)
    artifacts = {"facts": ctx.workdir / "facts.json", "carved": ctx.workdir / "carved"}
    judged = bool(metric) or stage.metric is None
    return Outputs(artifacts, _report(facts, judged=judged))


def load_cases(folder: Path) -> list[Case]:
    """Cases of the reference, with its outputs on original, pruned and unoptimised weights."""
    outputs = {
        kind: codec.read_npz(folder / f"outputs_{kind}.npz")
        for kind in ("original", "pruned", "unoptimized")
    }

    def of(case: str, kind: str) -> Arrays:
        prefix = f"{case}/"
        return {k[len(prefix) :]: v for k, v in outputs[kind].items() if k.startswith(prefix)}

    return [
        Case(
            id=row["id"],
            kind=row["kind"],
            sizes=row["sizes"],
            inputs=arrays,
            original=of(row["id"], "original"),
            pruned=of(row["id"], "pruned"),
            unoptimized=of(row["id"], "unoptimized"),
            after=row["after"],
        )
        for row, arrays in reference_cases.read(folder)
    ]


def _distinct_sizes(cases: Sequence[Case]) -> list[Case]:
    """One case per size, the recipe's own first."""
    found: dict[tuple[tuple[str, int], ...], Case] = {}
    for case in sorted(cases, key=lambda case: case.kind != "real"):
        found.setdefault(tuple(sorted(case.sizes.items())), case)
    return list(found.values())


def _timed_cases(cases: Sequence[Case], io: program.Io) -> list[Case]:
    """One case per bucket, and the smallest of a size that no bucket has. With states every size:
    one token, then prompts.
    """
    distinct = _distinct_sizes(cases)
    if io.states:
        return sorted(distinct, key=lambda case: math.prod(case.sizes.values()))
    exact = [c for bucket in io.buckets for c in distinct if dict(c.sizes) == dict(bucket)]
    other = [c for c in distinct if all(dict(c.sizes) != dict(b) for b in io.buckets)]
    return exact + sorted(other, key=lambda c: math.prod(c.sizes.values()))[:1]


def _carve(
    stage: Validation, inputs: Inputs, source: program.Program, cases: Sequence[Case], folder: Path
) -> list[carve.Carved]:
    weights = codec.read_weights(inputs["weights"])
    target = tvm_target(stage.target)
    packed = params.pack(source, weights, tvm_target(stage.target, 0))
    chosen = _carved_cases(cases, source.io)
    with np.load(inputs["bundle"] / "params.npz", allow_pickle=False) as data:
        manifest = codec.read_json(inputs["bundle"] / "manifest.json")
        tensors = {name: tvm.runtime.tensor(data[name]) for name in data.files}
        shipped = [tensors[name] for name in manifest["params"]["names"]]

    def run(arguments: Sequence[Any]) -> Any:
        return lambda machine: machine["main"](*arguments, *shipped)

    library = inputs["bundle"] / "lib.so"
    runs = [run(arguments) for arguments in _arguments(source.io, chosen).values()]
    kernels = carve.shipped_kernels(library, runs)
    shared = manifest["shared_kernels"].items()
    kernels |= {name: kernels[twin] for name, twin in shared if twin in kernels}
    substitutes = _substitutes(inputs, weights)
    arguments = _arguments(source.io, chosen)
    found = carve.carve(source, packed, arguments, kernels, substitutes, target, folder)
    carve.write_index(folder, found)
    return found


def _carved_cases(cases: Sequence[Case], io: program.Io) -> list[Case]:
    """The cases whose kernels are carved. With states: the first call, and the one after it."""
    return list(cases[:2]) if io.states else _timed_cases(cases, io)


def _arguments(io: program.Io, cases: Sequence[Case]) -> dict[str, list[Any]]:
    """What `main` takes before its weights, by case; calls that go on from each other share states,
    which are poisoned at first.
    """
    found: dict[str, list[Any]] = {}
    states: list[Any] = []
    for case in cases:
        if not case.after:
            shapes = [(program.concrete_shape(s, dict(case.sizes)), s.dtype) for s in io.states]
            empty = [carve.poisoned(np.zeros(shape, dtype)) for shape, dtype in shapes]
            states = [tvm.runtime.tensor(array) for array in empty]
        inputs = [tvm.runtime.tensor(case.inputs[spec.name]) for spec in io.inputs]
        found[case.id] = [*inputs, *states]
    return found


def _substitutes(inputs: Inputs, weights: Mapping[str, np.ndarray]) -> dict[str, carve.Substitute]:
    choices = records.load_choices(inputs["choices"])
    chosen = [region for region in choices.regions if region.chosen != "dense"]
    if not chosen:
        return {}
    known = alternatives.load(inputs["alternatives"], inputs["structure"])
    substitutes = {}
    for region in chosen:
        arguments = known[region.chosen].arguments(weights)
        substitutes[region.kernel] = carve.Substitute(
            known[region.chosen].kernel,
            tuple(a if isinstance(a, int) else a.value for a in arguments),
        )
    return substitutes


def _blame(carved: Sequence[carve.Carved]) -> str:
    failed = [one for one in carved if not one.passed]
    if not failed:
        return (
            "every carved kernel agrees with its unscheduled form: look at the packing of weights"
        )
    first = failed[0]
    source = ", ".join(first.nodes) or "-"
    return (
        f"first carved kernel that differs: {first.shipped} (source: {source}), "
        f"relative error {first.relative:.1e}"
    )


def _metric(
    stage: Validation, cases: Sequence[Case], outputs: Mapping[str, Arrays]
) -> dict[str, float]:
    real = [case for case in cases if case.kind == "real"]
    if stage.metric is None or not real:
        return {}
    return evaluate(
        stage.metric,
        [outputs[c.id] for c in real],
        [c.original for c in real],
        [c.inputs for c in real],
    )


def _latencies(
    stage: Validation, ours: Runner, peer_model: Path | None, cases: Sequence[Case], ctx: Context
) -> list[latency.Latency]:
    def all_of(peer: Runner | None) -> list[latency.Latency]:
        rows = []
        for case in cases:
            note = ", ".join(f"{name} {size}" for name, size in case.sizes.items())
            ctx.progress(2, 4, f"timing {note}")
            rows.append(
                latency.measure(
                    ours,
                    peer,
                    case.inputs,
                    case.sizes,
                    repeats=stage.repeats,
                    max_seconds=stage.max_seconds,
                )
            )
        return rows

    if peer_model is None:
        return all_of(None)
    with Runner("onnx", peer_model, stage.target.device.threads) as peer:
        return all_of(peer)


def _error_facts(errors: Sequence[compare.CaseError]) -> dict[str, Any]:
    """All cases, and the one that comes nearest to what it is allowed."""
    worst = max(errors, key=lambda error: error.relative / error.allowed)
    return {
        "max_abs": max(error.max_abs for error in errors),
        "relative": worst.relative,
        "tolerance": worst.allowed,
        "reason": compare.reason(worst),
        "passed": all(error.passed for error in errors),
        "cases": [
            {
                "id": error.id,
                "sizes": dict(error.sizes),
                "relative": error.relative,
                "allowed": error.allowed,
            }
            for error in errors
        ],
    }


def _errors(cases: Sequence[Case], outputs: Mapping[str, Arrays]) -> list[compare.CaseError]:
    own = [compare.case_error(c.id, c.sizes, c.unoptimized, c.pruned).relative for c in cases]
    errors = [compare.case_error(c.id, c.sizes, outputs[c.id], c.pruned) for c in cases]
    return [
        replace(error, allowed=compare.tolerance(here, max(own)))
        for error, here in zip(errors, own, strict=True)
    ]


def _carve_facts(carved: Sequence[carve.Carved]) -> dict[str, Any]:
    def row(one: carve.Carved) -> dict[str, Any]:
        relative = one.relative if math.isfinite(one.relative) else None
        return {
            "kernel": one.shipped,
            "nodes": list(one.nodes),
            "case": one.case,
            "relative": relative,
        }

    return {
        "checked": len(carved),
        "tolerance": compare.FLOOR,
        "worst": [row(one) for one in carve.worst(carved, 5)],
        "failed": [row(one) for one in carved if not one.passed],
        "rounded": [row(one) for one in carved if one.rounded],
    }


def _kernels(inputs: Inputs, source: program.Program) -> list[dict[str, Any]]:
    """Kernels of the first bucket (or of `main`) by their share of its time, as metaschedule
    timed them.
    """
    rules = {record.id: record.rule for record in records.load(inputs["records"])}
    choices = records.load_choices(inputs["choices"])
    chosen = {choice.kernel: choice for choice in choices.kernels}
    regions = {region.kernel: region for region in choices.regions}
    sites = next(iter(source.call_sites().values()), [])
    calls = Counter(site["kernel"] for site in sites)
    rows = []
    for kernel, count in calls.items():
        if kernel not in chosen:
            continue
        region = regions.get(kernel)
        if region is not None and region.chosen != "dense":
            candidate = next(c for c in region.candidates if c.id == region.chosen)
            rule = region.chosen
        else:
            choice = chosen[kernel]
            candidate = next((c for c in choice.candidates if c.id == choice.record), None)
            rule = rules.get(choice.record, "")
        ms = candidate.ms * count if candidate is not None and candidate.ms is not None else None
        kind = candidate.kind if candidate is not None else "default"
        rows.append({"kernel": kernel, "rule": rule, "kind": kind, "ms": ms, "calls": count})
    total = sum(row["ms"] or 0.0 for row in rows)
    for row in rows:
        row["share"] = row["ms"] / total if row["ms"] is not None and total else None
    return sorted(rows, key=lambda row: -(row["ms"] or 0.0))


def _report(facts: Mapping[str, Any], *, judged: bool) -> Report:
    error, carved = facts["error"], facts["carve"]
    metrics = {"error/relative": error["relative"], "error/max_abs": error["max_abs"]}
    metrics |= {f"metric/{name}": value for name, value in facts["metric"].items()}
    worst = tuple(
        (row["kernel"], ", ".join(row["nodes"])[:80], row["case"], row["relative"])
        for row in carved["worst"]
    )
    failed = len(carved["failed"])
    unjudged = "" if judged else "; metric not judged: it needs real `validation.inputs`"
    return Report(
        summary=f"error {error['relative']:.1e} (allowed {error['tolerance']:.1e}), "
        f"{carved['checked']} carved tests, {failed} failed{unjudged}",
        metrics=metrics,
        notes=tuple(
            f"kernel {row['kernel']} differs from its unscheduled form"
            for row in carved["failed"][:5]
        ),
        tables=(
            Table(
                "Carved tests, worst first", ("kernel", "source nodes", "case", "relative"), worst
            ),
        ),
    )
