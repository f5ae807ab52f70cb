"""All that is decided before anything runs: recipes, settings, the store, and one plan of all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import batch, estimate, gates, plan, recipe, remote, shipped, workflow
from .admission import slots
from .errors import RecipeError, RecipeErrors, nearest
from .estimate import Estimate
from .facts import Facts
from .graph import Graph
from .plan import Plan
from .recipe import Recipe
from .recipe.loader import combined
from .recipe.positions import shorten
from .settings import Engine, Track, Tracking, remote_cache, with_environment
from .settings import store_root as named_store
from .settings import tracking as named_tracking
from .store import Store
from .workflow import Workflows

Overrides = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One recipe of a plan.

    label:     what tells it from the others, short; empty when it is alone
    steps:     its own names of stages → steps of the plan, in the plan's order
    workflows: the file that its graph comes from
    other:     what the run that a gate compares with has measured
    """

    recipe: Recipe
    label: str
    steps: Mapping[str, str]
    workflows: Path
    other: Facts | None = None


@dataclass(frozen=True)
class Prepared:
    """Recipes with their store and their plan, in which equal stages are one."""

    members: tuple[Member, ...]
    engine: Engine
    store: Store
    plan: Plan
    graph: Graph = field(repr=False)
    which: Mapping[str, tuple[str, ...]] = field(repr=False)

    def again(self) -> Prepared:
        """The same with a new look at the store."""
        return replace(self, plan=plan.make(self.graph, self.store, **self.which))

    def estimate(self, jobs: int | None = None) -> Estimate:
        """What it will take on this machine."""
        return estimate.estimate(
            self.plan, slots(self.plan, self.engine.jobs if jobs is None else jobs)
        )

    def warnings(self, jobs: int | None = None) -> list[str]:
        """What of that does not fit this machine."""
        return estimate.warnings(self.estimate(jobs), self.store.root)

    def tracking(self, mode: Track | None = None) -> Tracking:
        """How to track it; `mode` is the command line's."""
        return named_tracking(self.engine, self.members[0].workflows, mode)

    def to_data(self) -> dict[str, Any]:
        """The plan as JSON-able data, with what each recipe has of it."""
        return {
            "store": str(self.store.root),
            "recipes": [
                {"recipe": one.recipe.name, "label": one.label, "steps": dict(one.steps)}
                for one in self.members
            ],
            "stages": self.plan.to_data(),
            "estimate": asdict(self.estimate()),
            "warnings": self.warnings(),
        }

    def named(self, stage: str) -> tuple[str, ...]:
        """Steps that a name means: a step of the plan, or a stage of any of the recipes.

        Raises: RecipeError when there is none.
        """
        return _named(stage, self.members, self.graph)


def prepare(
    paths: Sequence[str | Path],
    *,
    set: Overrides = (),
    to: Sequence[str] = (),
    force: Sequence[str] = (),
    from_: Sequence[str] = (),
    store: str | Path | None = None,
    workflows: str | Path | None = None,
) -> Prepared:
    """What a run of the recipes, each with all points of its matrix, would do.

    Runs nothing, imports no TVM. Raises: RecipeError for every mistake in any of them.
    """
    explicit = Path(workflows) if workflows else None
    files = [workflow.find(Path(path), explicit) for path in paths]
    known = {path: workflow.load(path) for path in dict.fromkeys(files)}
    errors: list[RecipeError] = []
    found: list[tuple[Recipe, Path, Graph]] = []
    for path, file in zip(paths, files, strict=True):
        try:
            found += _load(Path(path), file, known[file], _texts(set))
        except RecipeError as error:
            errors += error.errors if isinstance(error, RecipeErrors) else (error,)
    if errors:
        raise combined(errors)
    roots = {_root(store, file, known[file].file.engine) for _, file, _ in found}
    if len(roots) > 1:
        where = ", ".join(sorted(map(str, roots)))
        raise RecipeError(
            message=f"these recipes have stores of their own: {where}",
            hint="choose one by --store DIR, or run them one by one",
        )
    engine, root = with_environment(known[files[0]].file.engine), roots.pop()
    shared = remote.connect(remote_cache(engine, files[0]), root)
    kept = Store(root, engine.durability, remote=shared)
    labels = batch.labels([one for one, _, _ in found])
    graph, steps = batch.merge([graph for _, _, graph in found], labels)
    members = [
        Member(one, label, own, file, _other(one, kept))
        for (one, file, _), label, own in zip(found, labels, steps, strict=True)
    ]
    which = {
        option: tuple(step for name in names for step in _named(name, members, graph, option))
        for option, names in (("to", to), ("force", force), ("from_", from_))
    }
    made = plan.make(graph, kept, **which)
    there = {step.name for step in made}
    members = [
        replace(one, steps={name: step for name, step in one.steps.items() if step in there})
        for one in members
    ]
    return Prepared(tuple(members), engine, kept, made, graph, which)


def store_root(
    explicit: str | Path | None = None,
    recipe_path: Path | None = None,
    workflows: Path | None = None,
) -> Path:
    """The store: `explicit`, `TAPML_STORE`, what `engine:` says in a workflow file that is named or
    above the recipe (or the working folder), else `artifacts/` beside that file, else
    `./artifacts`. Absolute.
    """
    start = recipe_path.resolve().parent if recipe_path else Path.cwd()
    above = (folder / workflow.FILE for folder in (start, *start.parents))
    path = workflows or next((path for path in above if path.is_file()), shipped.workflows())
    return _root(explicit, path, _engine(path))


def tracking() -> Tracking:
    """How to track, as a command about runs takes it: of the working folder's workflow file."""
    path = workflow.find(Path.cwd() / workflow.FILE)
    return named_tracking(_engine(path), path)


def _engine(workflows: Path) -> Engine:
    return workflow.load(workflows).file.engine if workflows.is_file() else Engine()


def _root(explicit: str | Path | None, workflows: Path, engine: Engine) -> Path:
    if chosen := explicit or os.environ.get("TAPML_STORE"):
        return Path(chosen).expanduser().resolve()
    if named := named_store(engine, workflows):
        return named
    folder = Path.cwd() if workflows == shipped.workflows() else workflows.resolve().parent
    return folder / "artifacts"


def _load(
    path: Path, file: Path, workflows: Workflows, overrides: Sequence[str]
) -> list[tuple[Recipe, Path, Graph]]:
    """The recipes of a file with their graphs. Raises: RecipeError with all mistakes in them."""
    found: list[tuple[Recipe, Path, Graph]] = []
    errors: list[RecipeError] = []
    for one in recipe.load_all(path, overrides, env=workflows.file.engine.env):
        try:
            found.append((one, file, workflow.graph(one, workflows)))
        except RecipeError as error:
            errors += error.errors if isinstance(error, RecipeErrors) else (error,)
    if errors:
        raise combined(errors)
    return found


def _other(one: Recipe, store: Store) -> Facts | None:
    try:
        return gates.other(one.gates, store.root, one.name)
    except RecipeError as error:
        raise one.locate(error) from error


def _named(
    stage: str, members: Sequence[Member], graph: Graph, option: str = ""
) -> tuple[str, ...]:
    own = dict.fromkeys(one.steps[stage] for one in members if stage in one.steps)
    if own or stage in graph.nodes:
        return tuple(own) or (stage,)
    names = list(dict.fromkeys(name for one in members for name in one.steps))
    at = f"--{option.strip('_')}: " if option else ""
    raise RecipeError(
        message=f"{at}no stage {shorten(stage)} in this workflow", hint=nearest(stage, names)
    )


def _texts(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
    return list(overrides)
