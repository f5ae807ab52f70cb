"""What a run would do: each stage's key, whether its result is there, and why not. Runs nothing.

The executor resolves stages by the same `resolve` as their inputs become known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal

from . import keys
from .errors import RecipeError, nearest
from .explain import Change, Counted, Expected, Past
from .graph import Graph
from .recipe.positions import shorten
from .stage import Stage, functions, sources
from .store import Record, Store

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    state:      hit (its result is in the store) | run | pending (what it reads is not known yet)
    inputs:     input name → (step, output name)
    needs:      steps that come before it
    where:      where the result of a hit is: in the store, or in the shared cache
    outputs:    digests by output name, of a hit
    recipes:    names of those that it is a stage of
    changes:    differences from the nearest earlier result, of a stage that will run; `beside`:
                the recipe that this was made for, where none of its own has any
    expected:   what a stage that will run took on this machine before
    counted:    what the work inside it that can be counted will take
    """

    name: str
    stage: Stage
    state: Literal["hit", "run", "pending"]
    reason: str
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    needs: tuple[str, ...] = ()
    forced: str = ""
    key: str | None = None
    preimage: Mapping[str, Any] | None = None
    outputs: Mapping[str, str] | None = None
    record: Record | None = None
    recipes: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    beside: str = ""
    notes: tuple[str, ...] = ()
    expected: Expected | None = None
    counted: Counted | None = None
    where: Literal["local", "remote"] | None = None

    @property
    def seconds(self) -> float | None:
        """What it will take, as far as is known: counted work by its amount, the rest as before."""
        if self.counted is None:
            return None if self.expected is None else self.expected.seconds
        rest = 0.0 if self.expected is None else self.expected.seconds - self.counted.before_s
        return max(rest, 0.0) + self.counted.seconds

    @property
    def python(self) -> tuple[str, ...]:
        """Functions of the recipe's author that it runs: `/path/of/file.py:function`."""
        return tuple(f"{one.path}:{one.function}" for one in functions(self.stage).values())


@dataclass(frozen=True)
class Plan:
    """The steps of one recipe or of several, each after what it needs."""

    steps: tuple[Step, ...]

    @cached_property
    def _by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def __getitem__(self, name: str) -> Step:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def digraph(self) -> nx.DiGraph[str]:
        """The steps for networkx's algorithms; edges lead downstream."""
        import networkx as nx

        found: nx.DiGraph[str] = nx.DiGraph()
        found.add_nodes_from(step.name for step in self)
        found.add_edges_from((above, step.name) for step in self for above in step.needs)
        return found

    def to_data(self) -> list[dict[str, Any]]:
        """JSON-able rows: name, stage, state, reason, key, outputs, changes."""
        return [
            {
                "name": step.name,
                "stage": step.stage.name,
                "state": step.state,
                "where": step.where,
                "reason": step.reason,
                "key": step.key,
                "outputs": None if step.outputs is None else dict(step.outputs),
                "changes": [asdict(change) for change in step.changes],
                "beside": step.beside,
                "expected": None if step.expected is None else asdict(step.expected),
                "counted": None if step.counted is None else str(step.counted),
                "seconds": step.seconds,
                "notes": list(step.notes),
                "python": list(step.python),
            }
            for step in self.steps
        ]


def make(
    graph: Graph,
    store: Store,
    *,
    force: Iterable[str] = (),
    from_: Iterable[str] = (),
    to: Iterable[str] = (),
) -> Plan:
    """The plan of `graph`: what is there, what has to run, and why.

    In: `force`: run these again; `from_`: these and all below; `to`: only what these need.

    Raises: RecipeError when a name is no node of the graph.
    """
    needs = {name: tuple(graph.predecessors(name)) for name in graph.nodes}
    _check_names(needs, {"--force": force, "--from": from_, "--to": to})
    levels = list(_levels(needs))
    order = [name for level in levels for name in level]
    kept = _above(needs, to) if (to := tuple(to)) else set(order)
    forced = dict.fromkeys(force, "--force") | {
        name: f"--from {top}" for top in from_ for name in _below(needs, order, top)
    }
    past = Past(store)
    steps: dict[str, Step] = {}
    for level in levels:
        fresh = [
            Step(
                name=name,
                stage=graph.nodes[name]["stage"],
                state="pending",
                reason="",
                inputs=dict(graph.nodes[name]["inputs"]),
                needs=needs[name],
                forced=forced.get(name, ""),
                recipes=graph.nodes[name].get("recipes", ()),
            )
            for name in level
            if name in kept
        ]
        look_ahead(fresh, steps, past)
        for step in fresh:
            steps[step.name] = resolve(step, steps, past)
    return Plan(tuple(steps.values()))


def look_ahead(steps: Iterable[Step], known: Mapping[str, Step], past: Past) -> None:
    """Asks the shared cache at once for what `resolve` would ask it for one by one."""
    if (remote := past.store.remote) is None:
        return
    actions: list[tuple[str, str]] = []
    for step in steps:
        inputs, waiting = _inputs(step, known)
        if not waiting and not step.forced:
            key = keys.digest(keys.preimage(step.stage, inputs, past.packages))
            if past.store.lookup(step.stage.name, key) is None:
                actions.append((step.stage.name, key))
    remote.look_up(actions)


def resolve(step: Step, known: Mapping[str, Step], past: Past) -> Step:
    """The step with state, key and reason, as far as what the steps above it give is known."""
    inputs, waiting = _inputs(step, known)
    stage, preimage = step.stage, keys.preimage(step.stage, inputs, past.packages)
    if waiting:
        lower = {name for node in waiting for name in known[node].needs}  # wait themselves
        above = ", ".join(node for node in dict.fromkeys(waiting) if node not in lower)
        unknown = step.inputs.keys() - inputs
        earlier = past.nearest(preimage, sources(stage), step.recipes, unknown=unknown)
        return replace(
            step,
            state="pending",
            reason=f"below {above}",
            changes=earlier.changes,
            beside=earlier.beside,
            expected=earlier.expected,
            counted=past.counted(stage, earlier, inputs_known=False),
        )
    key = keys.digest(preimage)
    notes: list[str] = []
    where: Literal["local", "remote"] = "local"
    record = _whole(stage, past.store.lookup(stage.name, key, notes))
    if record is None and past.store.remote is not None and not step.forced:
        where = "remote"
        record = _whole(stage, past.store.remote.lookup(stage.name, key, notes))
        if record is not None:
            notes = []  # what is damaged here is whole there
    found = replace(step, key=key, preimage=preimage, notes=(*step.notes, *notes))
    if record is not None and not step.forced:
        return replace(
            found,
            state="hit",
            reason="cached" if where == "local" else "in the shared cache",
            where=where,
            outputs=record.outputs,
            record=record,
            changes=(),
            beside="",
            expected=None,
            counted=None,
        )
    earlier = past.nearest(preimage, sources(stage), step.recipes)
    if record is not None:
        reason = step.forced
    elif notes:
        reason = notes[0]
    elif earlier.record is None:
        reason = "never run"
    elif earlier.beside:
        reason = f"not run for this recipe before; {earlier.beside} has the nearest result"
    else:
        reason = "; ".join(map(str, earlier.changes)) or "its result was removed"
    return replace(
        found,
        state="run",
        reason=reason,
        changes=earlier.changes,
        beside=earlier.beside,
        expected=earlier.expected,
        counted=past.counted(stage, earlier, inputs_known=True),
    )


def _inputs(step: Step, known: Mapping[str, Step]) -> tuple[dict[str, str], list[str]]:
    """Digests of the inputs that are known, and the steps whose outputs are not."""
    given = {name: (known[node].outputs, output) for name, (node, output) in step.inputs.items()}
    inputs = {
        name: outputs[output] for name, (outputs, output) in given.items() if outputs is not None
    }
    return inputs, [node for node, _ in step.inputs.values() if known[node].outputs is None]


def _whole(stage: Stage, record: Record | None) -> Record | None:
    """The record, if it has all that the stage gives."""
    return record if record and set(stage.outputs) <= set(record.outputs) else None


def _check_names(known: Mapping[str, object], asked: Mapping[str, Iterable[str]]) -> None:
    for option, names in asked.items():
        for name in names:
            if name not in known:
                raise RecipeError(
                    message=f"{option}: no stage {shorten(name)} in this workflow",
                    hint=nearest(name, list(known)),
                )


def _levels(needs: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The steps in topological order, those together that wait for nothing but earlier ones."""
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    while sorter.is_active():
        level = sorter.get_ready()
        yield level
        sorter.done(*level)


def _above(needs: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> set[str]:
    """The named steps and all that they need."""
    found, todo = set[str](), list(names)
    while todo:
        if (name := todo.pop()) not in found:
            found.add(name)
            todo.extend(needs[name])
    return found


def _below(needs: Mapping[str, tuple[str, ...]], order: Iterable[str], top: str) -> set[str]:
    """The named step and all that need it."""
    found = {top}
    for name in order:
        if found.intersection(needs[name]):
            found.add(name)
    return found
