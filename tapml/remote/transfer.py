"""Results moved to the shared cache and from it by hand: `tapml cache push` and `pull`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .. import remote, runs, settings, workflow
from ..errors import EnvironmentalError, RecipeError
from ..plan import Plan
from ..store import Store
from ..store.record import Record
from . import Action, Remote
from .outbox import Outbox


@dataclass(frozen=True)
class Pulled:
    """How many results were downloaded, were in the store before, and could not be had."""

    fetched: int = 0
    here: int = 0
    lacking: int = 0


def connected(root: Path, folder: Path) -> Store:
    """The store with the shared cache that is set for `folder`. Raises: RecipeError without one."""
    file = workflow.find(folder / "recipe.yaml")
    cache = settings.remote_cache(workflow.load(file).file.engine, file)
    store = Store(root, remote=remote.connect(cache, root))
    _remote(store)
    return store


def chosen(store: Store, names: Sequence[str]) -> Iterator[Record]:
    """The records of stages and runs; without names all of the store, but for those of memos.

    Raises: RecipeError when a name is neither.
    """
    stages = {path.name for path in (store.root / "ac").glob("*")}
    for name in names or sorted(one for one in stages if not one.startswith("memo.")):
        if name in stages:
            yield from store.newest(name, 1 << 30)
        else:
            found = (store.lookup(*action) for action in of_run(store, name))
            yield from (record for record in found if record is not None)


def push(store: Store, records: Iterable[Record]) -> int:
    """Uploads the newest result of each action; how many are there now.

    Raises: EnvironmentalError when the shared cache takes no uploads, or not all of them.
    """
    place = _remote(store)
    if place.refuses:
        raise EnvironmentalError(
            message=f"the shared cache {place.address} is read-only here",
            hint="TAPML_REMOTE_MODE=read-write, or `engine: cache: mode:`",
        )
    place.tidy()
    outbox = Outbox(store)
    outbox.resume()
    for record in {(one.stage, one.key): one for one in records}.values():
        outbox.add(record)
    outbox.finish()
    if place.down() or place.refuses:
        raise EnvironmentalError(
            message=f"{outbox.sent} results went to {place.address}, the others did not",
            hint="push again, or let the next run do it",
        )
    return outbox.sent


def of_run(store: Store, name: str) -> list[Action]:
    """Stage and key of every result that a run had."""
    run = runs.find(name, store.root)
    rows = json.loads((run.folder / "plan.json").read_text(encoding="utf-8"))
    stages = {row["name"]: row["stage"] for row in rows}
    return [(stages[step.name], step.key) for step in run.steps if step.key]


def pull_plan(store: Store, plan: Plan) -> Pulled:
    """Downloads what the plan would take from the shared cache."""
    actions = [(step.stage.name, step.key) for step in plan if step.where == "remote" and step.key]
    pulled = pull(store, actions)
    here = sum(step.where == "local" for step in plan)
    lacking = sum(step.state != "hit" for step in plan)
    return replace(pulled, here=pulled.here + here, lacking=pulled.lacking + lacking)


def pull(store: Store, actions: Sequence[Action]) -> Pulled:
    """Downloads results with all their blobs, so that they are hits without the shared cache.

    Raises: EnvironmentalError when it does not answer.
    """
    place = _remote(store)
    store.prepare()
    missing = [action for action in actions if store.lookup(*action) is None]
    place.look_up(missing)
    found = [record for one in missing if (record := place.lookup(*one)) is not None]
    store.bring(digest for one in found for digest in (*one.outputs.values(), *_sides(one)))
    fetched = sum(_keep(store, record) for record in found)
    if place.down():
        raise EnvironmentalError(
            message=f"{fetched} results came from {place.address}, the others did not",
            hint="pull again",
        )
    return Pulled(fetched, len(actions) - len(missing), len(missing) - fetched)


def _keep(store: Store, record: Record) -> bool:
    """Publishes a downloaded result, if all of it came; log and views may be lost."""
    if not all(map(store.intact, record.outputs.values())):
        return False
    if not all(map(store.intact, _sides(record))):
        record = replace(record, log="", views="")
    store.publish(record)
    return True


def _sides(record: Record) -> list[str]:
    return [digest for digest in (record.log, record.views) if digest]


def _remote(store: Store) -> Remote:
    if store.remote is None:
        raise RecipeError(
            message="no shared cache is set",
            hint="TAPML_REMOTE=s3://bucket/prefix or a folder, or `engine: cache:` in "
            "workflows.yaml",
        )
    return store.remote
