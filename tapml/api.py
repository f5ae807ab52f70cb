"""The Python entry points, and what every command is made of: load, plan, run, judge, report,
track.

import tapml
result = tapml.run("recipes/magika.yaml", set={"tuning.trials": 8})
outputs = tapml.load(result)(bytes=array)
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from . import bundle as bundles
from . import (
    disk,
    events,
    executor,
    facts,
    gates,
    host,
    plan,
    recipe,
    report,
    runs,
    shipped,
    workflow,
)
from .errors import EnvironmentalError, RecipeError, TrackingError
from .plan import Graph, Plan
from .recipe import Recipe
from .runs import RunResult, Scalar
from .store import Store

Overrides = Sequence[str] | Mapping[str, Any]
Track = Literal["off", "auto", "required"]
_VERSIONS = ("tapml", "apache-tvm", "apache-tvm-ffi", "numpy", "onnxruntime", "mlflow")
_GIT_S = 5.0


@dataclass(frozen=True)
class Prepared:
    """A recipe with its graph, its store and its plan: all that is decided before anything runs.

    other: what the run that a gate compares with has measured
    """

    recipe: Recipe
    workflows: Path
    graph: Graph
    store: Store
    plan: Plan
    other: facts.Facts | None = None


def prepare(
    path: str | Path,
    *,
    set: Overrides = (),
    to: Sequence[str] = (),
    force: Sequence[str] = (),
    from_: Sequence[str] = (),
    store: str | Path | None = None,
    workflows: str | Path | None = None,
) -> Prepared:
    """What a run of the recipe would do. Runs nothing, imports no TVM. Raises: RecipeError for
    every mistake in it.
    """
    path = Path(path)
    loaded = recipe.load(path, _texts(set))
    explicit = Path(workflows) if workflows else None
    found = workflow.find(path, explicit)
    graph = cast(
        "Graph", workflow.graph(loaded, found)
    )  # networkx's views are no Mapping to the checker
    root = Store(store_root(store, path, explicit))
    try:
        other = gates.other(loaded.gates, root.root, loaded.name)
    except RecipeError as error:
        raise loaded.locate(error) from error
    made = plan.make(graph, root, force=force, from_=from_, to=to)
    return Prepared(loaded, found, graph, root, made, other)


def run(
    path: str | Path,
    *,
    set: Overrides = (),
    to: Sequence[str] = (),
    force: Sequence[str] = (),
    from_: Sequence[str] = (),
    jobs: int | None = None,
    threads: int | None = None,
    fail_fast: bool = False,
    dump_ir: bool = False,
    out: str | Path | None = None,
    store: str | Path | None = None,
    workflows: str | Path | None = None,
    track: Track = "auto",
    check: bool = True,
    watch: Callable[[events.Event], None] = lambda event: None,
) -> RunResult:
    """Builds, tunes, validates and measures what the recipe says; what is cached is not done again.

    In:     `set`: fields to change, `["a.b=1"]` or `{"a.b": 1}`; `to`: stop after these stages;
            `force`: run these again; `from_`: these and all below; `out`: copy the bundle there;
            `watch`: called with each event.
    Raises: RecipeError and EnvironmentalError before anything runs. With `check` (as in
            `subprocess.run`) also what made the exit code other than 0: the first failed stage's
            StageError, or GateError. With `check=False` the result is returned whatever happened:
            look at `exit_code`, or call `raise_for_failure()`.
    """

    def decide() -> Prepared:
        return prepare(
            path, set=set, to=to, force=force, from_=from_, store=store, workflows=workflows
        )

    prepared = decide()
    if _rotted(prepared):
        prepared = decide()  # what was damaged is set aside, so that its stage runs again
    if out is not None:
        _check_destination(Path(out))
    reasons: dict[str, str] = {}

    def tell(event: events.Event) -> None:
        if isinstance(event, events.StageStarted):
            reasons[event.stage] = event.reason
        watch(event)

    options = executor.Options(jobs=jobs, threads=threads, fail_fast=fail_fast, views=dump_ir)
    done = executor.run(prepared.plan, prepared.recipe, prepared.store, options, tell)
    with disk.guarded(done.folder):
        result = _conclude(prepared, done, reasons)
        if result.bundle and out is not None and result.exit_code == 0:
            export(result, Path(out))
        if track != "off":
            result = _track(result, prepared.store, required=track == "required")
    if check:
        result.raise_for_failure()
    return result


def load(source: str | Path | RunResult, *, store: str | Path | None = None) -> bundles.Bundle:
    """The callable library of a run or of a bundle folder: one array per input in, one array per
    output out.

    In:     a RunResult, a run's id (or its start, or `last`), a run folder or a bundle folder.
    Raises: RecipeError when there is no such bundle; EnvironmentalError when it is damaged.
    """
    return bundles.load(bundle_of(source, store=store))


def bundle_of(source: str | Path | RunResult, *, store: str | Path | None = None) -> Path:
    """The bundle folder of a run or the bundle folder itself. Raises: RecipeError when there is
    none.
    """
    if not isinstance(source, RunResult):
        if (Path(source) / bundles.MANIFEST).is_file():
            return Path(source)
        source = runs.find(source, store_root(store))
    if source.bundle is None or not (source.bundle / bundles.MANIFEST).is_file():
        raise RecipeError(message=f"run {source.run_id} has no bundle: it ended {source.state}")
    return source.bundle


def export(
    source: str | Path | RunResult, folder: Path, *, store: str | Path | None = None
) -> Path:
    """Copies a bundle to `folder`, files of its own; returns the folder.

    Raises: RecipeError when something else is there; EnvironmentalError when the bundle is damaged
            or the disk is.
    """
    import shutil

    found = bundle_of(source, store=store).resolve()
    bundles.verify(found)
    _check_destination(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.copytree(found, draft, copy_function=shutil.copyfile)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise EnvironmentalError(
            message=f"cannot write {folder}: {error.strerror}",
            hint="free space, or name another folder",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder.resolve()


def store_root(
    explicit: str | Path | None = None,
    recipe_path: Path | None = None,
    workflows: Path | None = None,
) -> Path:
    """The store: `explicit`, `TAPML_STORE`, `artifacts/` beside a workflow file that is named or
    above the recipe
    (or the working folder), else `./artifacts`. Absolute.
    """
    if chosen := explicit or os.environ.get("TAPML_STORE"):
        return Path(chosen).expanduser().resolve()
    if workflows is not None:
        return workflows.resolve().parent / "artifacts"
    start = recipe_path.resolve().parent if recipe_path else Path.cwd()
    for folder in (start, *start.parents):
        if (folder / workflow.FILE).is_file() and folder / workflow.FILE != shipped.workflows():
            return folder / "artifacts"
    return Path.cwd() / "artifacts"


def _texts(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
    return list(overrides)


def _check_destination(folder: Path) -> None:
    """Refuses to write a bundle over anything but a bundle."""
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / bundles.MANIFEST).is_file():
            raise RecipeError(
                message=f"{folder} is not empty and no bundle", hint="name a new folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise RecipeError(message=f"{folder} is no folder", hint="name a new folder")


def _conclude(prepared: Prepared, done: executor.Result, reasons: Mapping[str, str]) -> RunResult:
    """The result with facts, verdicts, bundle and report, all in the run's folder."""
    loaded, store, folder = prepared.recipe, prepared.store, done.folder
    measured, foreign, bundle = None, False, None
    verdicts: tuple[gates.Verdict, ...] = ()
    if found := _output(prepared.plan, done, "facts"):
        step, digest = found
        measured = facts.load(store.materialise(digest, folder / runs.FACTS, copy=True))
        foreign = done.steps[step].foreign or gates.is_foreign(measured)
        verdicts = gates.judge(loaded.gates, measured, foreign=foreign, other=prepared.other)
    if found := _output(prepared.plan, done, "bundle"):
        bundle = store.materialise(found[1], folder / runs.BUNDLE)
    failed_gate = gates.error(verdicts)
    result = RunResult(
        run_id=done.run_id,
        recipe=loaded.name,
        recipe_path=str(loaded.path),
        workflow=f"{loaded.workflow} of {prepared.workflows}",
        started=_started(folder),
        seconds=done.seconds,
        folder=folder,
        exit_code=done.exit_code or (failed_gate.exit_code if failed_gate else 0),
        steps=tuple(done.steps.values()),
        reasons=reasons,
        facts=measured,
        foreign=foreign,
        verdicts=verdicts,
        bundle=bundle,
        fields=loaded.dotted(),
        environment=_environment(loaded),
        tags=loaded.tags,
    )
    report.write(result)
    runs.save(result)
    return result


def _rotted(prepared: Prepared) -> bool:
    """Whether anything cached that the end of a run reads is damaged, as no stage would notice."""
    read = [
        digest
        for step in prepared.plan
        for name, digest in (step.outputs or {}).items()
        if step.state == "hit" and step.stage.outputs[name] in ("bundle", "facts")
    ]
    return bool([digest for digest in read if not prepared.store.reads_whole(digest)])


def _output(plan: Plan, done: executor.Result, kind: str) -> tuple[str, str] | None:
    """Step and digest of the last output of a kind that the run has."""
    found = [
        (step.name, done.steps[step.name].outputs[name])
        for step in plan
        for name, of in step.stage.outputs.items()
        if of == kind and name in done.steps[step.name].outputs
    ]
    return found[-1] if found else None


def _started(folder: Path) -> float:
    with (folder / "events.jsonl").open(encoding="utf-8") as journal:
        return float(json.loads(journal.readline())["time"])


def _track(result: RunResult, store: Store, *, required: bool) -> RunResult:
    from . import tracking

    if not required:
        tracking.start(result.folder, store.root)
        return result
    try:
        tracking.sync(store.root, [result.folder])
    except TrackingError as error:
        code = result.exit_code or error.exit_code
        result = replace(result, untracked=error.message, exit_code=code)
        runs.save(result)
    return result


def _environment(loaded: Recipe) -> dict[str, Scalar]:
    """What this run was made with: CPU, threads, versions, git commit of the recipe."""
    found: dict[str, Scalar] = {
        "cpu": host.fingerprint()["cpu"],
        "cores": host.fingerprint()["cores"],
        "threads": loaded.target.device.threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git(loaded.path.parent, "rev-parse", "HEAD")
    if commit:
        dirty = _git(loaded.path.parent, "status", "--porcelain", "--untracked-files=no")
        found["git"] = f"{commit[:12]}{' +dirty' if dirty else ''}"
    return found


def _git(folder: Path, *arguments: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
