"""What a run looks like in MLflow, as plain data: parameters, metrics, tags, files.

Parameters are what a recipe says, metrics what was measured, tags what identifies. Nothing here
holds what looks like a secret, nor a control character.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from click import unstyle

from .. import bundle, runs
from ..mask import mask
from ..runs import RunResult
from ..terminal import printable

Point = tuple[str, float, int, int]  # name, value, time in ms, step

LATENCY = "latency/p50_ms"  # at the first size: the headline
BUNDLE_MIB = 32.0  # a larger bundle is tracked by manifest and path
_LINES = 24  # of one stage's curves
_LONGEST_PARAMETER, _LONGEST_TAG = 6000, 5000
_LONGEST_LOG = 2**20  # characters of one stage's log, from its end


def parameters(run: RunResult) -> dict[str, str]:
    """The recipe's dotted fields; compared and charted in MLflow."""
    return {
        sanitised(name): _said(name, value)[:_LONGEST_PARAMETER]
        for name, value in run.fields.items()
    }


def metrics(run: RunResult, ended: Mapping[str, float], finished: float) -> list[Point]:
    """All points, the headline first. In: when each stage, and the run, ended (Unix time)."""
    end = ms(finished)
    points = [(name, value, end, 0) for name, value in _headline(run)]
    for step in run.steps:
        if step.state in ("ran", "hit"):
            at = ms(ended.get(step.name, finished))
            points.append((f"stage_s/{step.name}", step.seconds, at, 0))
            points.append((f"rss_mib/{step.name}", step.rss_mib, at, 0))
            points += [(name, value, at, 0) for name, value in step.report.metrics.items()]
            lines = [
                (f"{curve.title}/{curve.y_label}_{name}".lower().replace(" ", "_"), line)
                for curve in step.report.curves
                for name, line in curve.lines.items()
            ]
            points += [(name, y, at, int(x)) for name, line in lines[:_LINES] for x, y in line]
    return [
        (sanitised(name), value, at, n) for name, value, at, n in points if math.isfinite(value)
    ]


def _headline(run: RunResult) -> Iterator[tuple[str, float]]:
    facts = run.facts
    if facts is None:
        return
    for index, row in enumerate(facts.latency):
        at = "" if index == 0 else "_".join(f"{name}_{size}_" for name, size in row.sizes.items())
        yield f"latency/{at}p50_ms" if at else LATENCY, row.ours.p50
        if row.ratio:
            yield f"speedup/{at}vs_{(row.peer.split() or ['peer'])[0]}", 1 / row.ratio
    yield from ((f"quality/{name}", value) for name, value in facts.metric.items())
    if facts.error is not None:
        for name in ("relative", "max_abs"):
            value: float | None = getattr(facts.error, name)
            if value is not None:
                yield f"error/{name}", value
        if facts.error.relative:  # MLflow shows two decimals
            yield "error/log10_relative", math.log10(facts.error.relative)
    if facts.bundle_mib is not None:
        yield "size/bundle_mib", facts.bundle_mib


def tags(run: RunResult) -> dict[str, str]:
    """What identifies a run but is no parameter: digests, versions, machine, states."""
    found = {
        **run.tags,
        "mlflow.runName": name(run),
        "mlflow.source.name": run.recipe_path,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user(),
        "mlflow.note.content": _note(run),
        "tapml.run_uid": run.run_id,
        "tapml.state": run.state,
        "tapml.exit_code": str(run.exit_code),
        "tapml.folder": str(run.folder),
        "tapml.cached": ", ".join(step.name for step in run.cached) or "none",
        "tapml.foreign_timings": str(run.foreign).lower(),
    }
    if run.sweep:
        found |= {"tapml.sweep": run.sweep, "tapml.label": run.label}
    found |= {f"tapml.env.{name}": str(value) for name, value in run.environment.items()}
    found |= {f"tapml.key.{step.name}": step.key for step in run.steps if step.key}
    for step in run.steps:
        found |= {
            f"tapml.digest.{step.name}.{name}": digest for name, digest in step.outputs.items()
        }
    for verdict in run.verdicts:
        found[f"tapml.gate.{verdict.gate}"] = "passed" if verdict.passed else f"FAILED: {verdict}"
    for step in run.steps:
        for name_, value in step.report.metrics.items():
            if not math.isfinite(value):
                found[f"tapml.not_finite.{name_}"] = str(value)
    return {sanitised(name_): _said(name_, value)[:_LONGEST_TAG] for name_, value in found.items()}


def write_files(run: RunResult, folder: Path) -> None:
    """Puts what MLflow keeps of the run's files into `folder`: few, as a server takes them one by
    one.
    """
    if run.report.is_file():  # was written without secrets
        shutil.copyfile(run.report, folder / runs.REPORT)
    for name_ in (runs.RECIPE, "plan.json", runs.FACTS):
        _copy(run.folder / name_, folder / name_)
    if logs := _logs(run):
        (folder / "log.txt").write_text(logs, encoding="utf-8")
    for path in (run.folder / runs.VIEWS).rglob("*"):
        if path.is_file():
            _copy(path, folder / path.relative_to(run.folder))
    columns = ("stage", "state", "seconds", "rss_mib", "key", "summary")
    rows = [
        [s.name, s.state, s.seconds, s.rss_mib, s.key, text(s.report.summary)] for s in run.steps
    ]
    table = json.dumps({"columns": columns, "data": rows})
    (folder / "stages.json").write_text(table, encoding="utf-8")
    _write_bundle(run, folder / "bundle")


def _write_bundle(run: RunResult, folder: Path) -> None:
    source = run.bundle
    if source is None or not (source / bundle.MANIFEST).is_file():
        return
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 2**20
    if size <= float(os.environ.get("TAPML_TRACK_BUNDLE_MIB", BUNDLE_MIB)):
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        return
    folder.mkdir()
    shutil.copyfile(source / bundle.MANIFEST, folder / bundle.MANIFEST)
    (folder / "path.txt").write_text(f"{source}\n", encoding="utf-8")


def _logs(run: RunResult) -> str:
    """The logs of all stages, one below the other."""
    parts: list[str] = []
    for step in run.steps:
        path = run.folder / "logs" / f"{step.name}.log"
        if path.is_file() and (said := path.read_text(encoding="utf-8", errors="replace")):
            parts.append(f"=== {step.name}\n{said[-_LONGEST_LOG:].rstrip()}\n")
    return text("\n".join(parts))


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        said = source.read_text(encoding="utf-8", errors="replace")
        target.write_text(text(said), encoding="utf-8")


def name(run: RunResult) -> str:
    """What tells a run from those beside it: its label in a sweep, else when it began."""
    began = time.strftime("%m-%d %H:%M:%S", time.localtime(run.started))
    return run.label if run.sweep and run.label else f"{began} {run.run_id[-4:]}"


def _note(run: RunResult) -> str:
    from ..report import sentence

    gates = "".join(f"\n- {'✓' if verdict.passed else '✗'} {verdict}" for verdict in run.verdicts)
    where = f"Report: artifact `{runs.REPORT}`, or `{run.report}`"
    return f"**{run.recipe}** – {sentence(run)}\n{gates}\n\n{where}"


def sanitised(name: str) -> str:
    """A name that MLflow takes: its characters only, no relative part, at most 250."""
    found = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)
    parts = [re.sub(r"^\.+$", "_", part) for part in found.split("/") if part]
    return "/".join(parts)[:250] or "_"


def _said(name: str, value: object) -> str:
    """A value as text; its name may tell that it is a secret."""
    return text(f"{name}={value}").partition("=")[2]


def text(value: str) -> str:
    """Free of colours, which hide where a secret begins, of secrets and of control characters."""
    return printable(mask(unstyle(value)), keep="\n")


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user, as in a container run with a foreign uid
        return str(os.getuid())


def ms(seconds: float) -> int:
    return round(seconds * 1000)
