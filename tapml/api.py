"""The Python entry points, and what every command is made of: load, plan, run, judge, report,
track.

import tapml
result = tapml.run("recipes/magika.yaml", set={"tuning.trials": 8})
outputs = tapml.load(result)(bytes=array)
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, Unpack, cast

from . import bundle as bundles
from . import disk, events, executor, facts, gates, host, report, requirements, runs
from .errors import EnvironmentalError, RecipeError, TrackingError
from .plan import Plan
from .prepare import Member, Overrides, Prepared, prepare, store_root
from .recipe import Recipe
from .report import sweep
from .runs import RunResult, Scalar
from .settings import Track, Tracking
from .store import Store

__all__ = ["RunResult", "execute", "export", "load", "prepare", "run", "run_all", "store_root"]
_VERSIONS = ("tapml", "apache-tvm", "apache-tvm-ffi", "numpy", "onnxruntime", "mlflow")
_GIT_S = 5.0


class Which(TypedDict, total=False):
    """What to do: the options of `prepare`."""

    set: Overrides
    to: Sequence[str]
    force: Sequence[str]
    from_: Sequence[str]
    store: str | Path | None
    workflows: str | Path | None


class How(TypedDict, total=False):
    """How to do it: the options of `execute`."""

    jobs: int | None
    threads: int | None
    fail_fast: bool
    timeout_s: float | None
    dump_ir: bool
    out: str | Path | None
    track: Track | None
    check: bool
    watch: Callable[[events.Event], None]


class Options(Which, How):
    """The options of `run` and `run_all`."""


def run(path: str | Path, **options: Unpack[Options]) -> RunResult:
    """Builds, tunes, validates and measures what one recipe says, as `run_all`.

    Raises: RecipeError also when the recipe has a matrix that makes several.
    """
    which, how = _split(options)
    prepared = prepare([path], **which)
    if len(prepared.members) > 1:
        raise RecipeError(
            where=str(path),
            field="matrix",
            message=f"the matrix makes {len(prepared.members)} recipes, and this returns one",
            hint="call tapml.run_all, or fix the fields of the matrix by `set`",
        )
    return execute(prepared, **how)[0]


def run_all(paths: Sequence[str | Path], **options: Unpack[Options]) -> tuple[RunResult, ...]:
    """Builds what several recipes say, each with all points of its matrix: one plan, and what they
    share is done once. One result per recipe and point.

    In: the options of `prepare` (`set`, `to`, `force`, `from_`, `store`, `workflows`) and those of
        `execute`.
    """
    which, how = _split(options)
    return execute(prepare(paths, **which), **how)


def execute(
    prepared: Prepared,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    fail_fast: bool = False,
    timeout_s: float | None = None,
    dump_ir: bool = False,
    out: str | Path | None = None,
    track: Track | None = None,
    check: bool = True,
    watch: Callable[[events.Event], None] = lambda event: None,
) -> tuple[RunResult, ...]:
    """Runs what is prepared; what is cached is not done again. One result for each recipe.

    In:     `out`: copy the bundle there, of several recipes each below its own name; `watch`:
            called with each event; `track`: MLflow not at all (off), in the background (auto), or
            waited for (required).
    Raises: RecipeError and EnvironmentalError before anything runs. With `check` (as in
            `subprocess.run`) also what made the exit code other than 0: the first failed stage's
            StageError, or GateError. With `check=False` the results are returned whatever
            happened: look at `exit_code`, or call `raise_for_failure()`.
    """
    if _rotted(prepared):
        prepared = prepared.again()  # what was damaged is set aside, so that its stage runs again
    for member in prepared.members:
        if any(prepared.plan[step].state != "hit" for step in member.steps.values()):
            requirements.check(member.recipe.requires)
    places = _destinations(out, prepared.members)
    where = prepared.tracking(track)
    reasons: dict[str, str] = {}

    def tell(event: events.Event) -> None:
        if isinstance(event, events.StageStarted):
            reasons[event.stage] = event.reason
        watch(event)

    options = executor.Options(
        executor=prepared.engine.executor,
        jobs=prepared.engine.jobs if jobs is None else jobs,
        threads=threads,
        fail_fast=fail_fast,
        timeout_s=timeout_s,
        views=dump_ir,
    )
    parts = [executor.Part(one.recipe, one.steps, one.label) for one in prepared.members]
    done = executor.run_batch(prepared.plan, parts, prepared.store, options, tell)
    results: list[RunResult] = []
    for member, one, place in zip(prepared.members, done, places, strict=True):
        with disk.guarded(one.folder):
            result = _conclude(prepared, member, one, reasons)
        if result.bundle and place is not None and result.exit_code == 0:
            export(result, place)
        results.append(result)
    with disk.guarded(prepared.store.root):
        if results[0].sweep:
            sweep.write(results[0].sweep, results, prepared.store.root)
        if where.mode != "off":
            results = _track(results, prepared.store, where)
    if check:
        for result in results:
            result.raise_for_failure()
    return tuple(results)


def _split(options: Options) -> tuple[Which, How]:
    which = {name: value for name, value in options.items() if name in Which.__annotations__}
    how = {name: value for name, value in options.items() if name not in which}
    return cast(Which, which), cast(How, how)


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


def _destinations(out: str | Path | None, members: Sequence[Member]) -> list[Path | None]:
    """Where the bundle of each recipe is copied to. Raises: RecipeError when it cannot be."""
    if out is None:
        return [None] * len(members)
    found = [Path(out) / one.label if one.label else Path(out) for one in members]
    for path in found:
        _check_destination(path)
    return list(found)


def _check_destination(folder: Path) -> None:
    """Refuses to write a bundle over anything but a bundle."""
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / bundles.MANIFEST).is_file():
            raise RecipeError(
                message=f"{folder} is not empty and no bundle", hint="name a new folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise RecipeError(message=f"{folder} is no folder", hint="name a new folder")


def _conclude(
    prepared: Prepared, member: Member, done: executor.Result, reasons: Mapping[str, str]
) -> RunResult:
    """The result with facts, verdicts, bundle and report, all in the run's folder."""
    loaded, store, folder = member.recipe, prepared.store, done.folder
    measured, foreign, bundle = None, False, None
    verdicts: tuple[gates.Verdict, ...] = ()
    if found := _output(prepared.plan, member, done, "facts"):
        step, digest = found
        measured = facts.load(store.materialise(digest, folder / runs.FACTS, copy=True))
        foreign = done.steps[step].foreign or gates.is_foreign(measured)
        verdicts = gates.judge(loaded.gates, measured, foreign=foreign, other=member.other)
    if found := _output(prepared.plan, member, done, "bundle"):
        bundle = store.materialise(found[1], folder / runs.BUNDLE)
    failed_gate = gates.error(verdicts)
    result = RunResult(
        run_id=done.run_id,
        recipe=loaded.name,
        recipe_path=str(loaded.path),
        workflow=f"{loaded.workflow} of {member.workflows}",
        started=done.started,
        seconds=done.seconds,
        folder=folder,
        exit_code=done.exit_code or (failed_gate.exit_code if failed_gate else 0),
        steps=tuple(done.steps.values()),
        reasons={name: reasons[step] for name, step in member.steps.items() if step in reasons},
        facts=measured,
        foreign=foreign,
        verdicts=verdicts,
        bundle=bundle,
        fields=loaded.dotted(),
        environment=_environment(loaded),
        tags=loaded.tags,
        label=member.label,
        sweep=done.sweep,
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
    prepared.store.bring(read)
    return bool([digest for digest in read if not prepared.store.reads_whole(digest)])


def _output(plan: Plan, member: Member, done: executor.Result, kind: str) -> tuple[str, str] | None:
    """Stage and digest of the last output of a kind that the run has."""
    found = [
        (name, done.steps[name].outputs[output])
        for name, step in member.steps.items()
        for output, of in plan[step].stage.outputs.items()
        if of == kind and output in done.steps[name].outputs
    ]
    return found[-1] if found else None


def _track(results: list[RunResult], store: Store, where: Tracking) -> list[RunResult]:
    from . import tracking

    folders = [result.folder for result in results]
    if where.mode == "auto":
        tracking.start(store.root, folders, where)
        return results
    try:
        tracking.sync(store.root, folders, where)
    except TrackingError as error:
        for index, result in enumerate(results):
            if tracking.place(result.folder) is None:
                code = result.exit_code or error.exit_code
                results[index] = replace(result, untracked=error.message, exit_code=code)
                runs.save(results[index])
    return results


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
    found |= {f"env.{name}": value for name, value in loaded.env_used.items()}
    if state := _git_state(loaded.path.parent):
        found["git"] = state
    return found


def _git_state(folder: Path) -> str:
    """`<commit>` or `<commit> +dirty`; nothing where there is no git, repository or commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch", "-uno"],
            capture_output=True,
            text=True,
            timeout=_GIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    told = re.match(r"# branch.oid ([0-9a-f]{12})", done.stdout)
    if done.returncode != 0 or told is None:
        return ""
    changed = any(not line.startswith("#") for line in done.stdout.splitlines())
    return told[1] + " +dirty" * changed
