"""What a run would do: each stage's key, whether its result is there, and why not. Runs nothing.

The executor resolves stages by the same `resolve` as their inputs become known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from . import keys
from .errors import RecipeError, nearest
from .recipe.positions import shorten
from .stage import PythonFunction, Stage
from .store import Record, Store

ChangeKind = Literal["version", "param", "python", "file", "input", "tool", "package", "host"]
_CANDIDATES = 64  # newest earlier records that a stage is compared with


class Graph(Protocol):
    """What is used of a networkx DiGraph.

    A node has the attributes `stage` and `inputs`: name → (node, output).
    """

    @property
    def nodes(self) -> Mapping[str, Mapping[str, Any]]: ...
    def predecessors(self, n: str, /) -> Iterable[str]: ...


@dataclass(frozen=True)
class Change:
    """One difference from an earlier result of the same stage; `old` and `new` are short texts."""

    kind: ChangeKind
    field: str
    old: str
    new: str

    def __str__(self) -> str:
        match self.kind:
            case "input":
                return f"input {self.field} changed"
            case "python":
                return f"{self.field}: its Python changed"
            case "file":
                return f"{self.field}: the file changed"
            case "package":
                return "the stage's own package changed"
            case _:
                return f"{self.field} {self.old} → {self.new}"


@dataclass(frozen=True)
class Step:
    """One stage of a plan.

    state:      hit (its result is in the store) | run | pending (what it reads is not known yet)
    inputs:     input name → (step, output name)
    needs:      steps that come before it
    outputs:    digests by output name, of a hit
    changes:    differences from the nearest earlier result, of a stage that will run
    expected_s: what that earlier result took
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
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    expected_s: float | None = None

    @property
    def python(self) -> tuple[str, ...]:
        """Functions of the recipe's author that it runs: `/path/of/file.py:function`."""
        return tuple(f"{one.path}:{one.function}" for one in _functions(self.stage))


@dataclass(frozen=True)
class Plan:
    """The steps of one recipe, each after what it needs."""

    steps: tuple[Step, ...]

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def to_data(self) -> list[dict[str, Any]]:
        """JSON-able rows: name, stage, state, reason, key, outputs, changes."""
        return [
            {
                "name": step.name,
                "stage": step.stage.name,
                "state": step.state,
                "reason": step.reason,
                "key": step.key,
                "outputs": None if step.outputs is None else dict(step.outputs),
                "changes": [vars(change) for change in step.changes],
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
    order = tuple(TopologicalSorter(needs).static_order())
    kept = _above(needs, to) if (to := tuple(to)) else set(order)
    forced = dict.fromkeys(force, "--force") | {
        name: f"--from {top}" for top in from_ for name in _below(needs, order, top)
    }
    steps: dict[str, Step] = {}
    for name in order:
        if name in kept:
            node = graph.nodes[name]
            step = Step(
                name=name,
                stage=node["stage"],
                state="pending",
                reason="",
                inputs=dict(node["inputs"]),
                needs=needs[name],
                forced=forced.get(name, ""),
            )
            steps[name] = resolve(step, steps, store)
    return Plan(tuple(steps.values()))


def resolve(step: Step, known: Mapping[str, Step], store: Store) -> Step:
    """The step with state, key and reason, as far as what the steps above it give is known."""
    sources = {name: (known[node].outputs, output) for name, (node, output) in step.inputs.items()}
    inputs = {
        name: outputs[output] for name, (outputs, output) in sources.items() if outputs is not None
    }
    preimage = keys.preimage(step.stage, inputs)
    if waiting := [node for node, _ in step.inputs.values() if known[node].outputs is None]:
        above = ", ".join(dict.fromkeys(waiting))
        changes, _ = explain(preimage, store, partial=True)
        return replace(step, state="pending", reason=f"below {above}", changes=changes)
    key = keys.digest(preimage)
    notes: list[str] = []
    record = store.lookup(step.stage.name, key, notes)
    if record is not None and not set(step.stage.outputs) <= set(record.outputs):
        record = None
    found = replace(step, key=key, preimage=preimage, notes=(*step.notes, *notes))
    if record is not None and step.forced:
        return replace(
            found, state="run", reason=step.forced, expected_s=record.seconds, changes=()
        )
    if record is not None:
        return replace(
            found,
            state="hit",
            reason="cached",
            outputs=record.outputs,
            record=record,
            changes=(),
            expected_s=0.0,
        )
    changes, nearest_record = explain(preimage, store)
    if notes:
        reason = notes[0]
    elif nearest_record is None:
        reason = "never run"
    else:
        reason = "; ".join(map(str, changes)) or "its result was removed"
    expected = None if nearest_record is None else nearest_record.seconds
    return replace(found, state="run", reason=reason, changes=changes, expected_s=expected)


def explain(
    preimage: Mapping[str, Any], store: Store, *, partial: bool = False
) -> tuple[tuple[Change, ...], Record | None]:
    """The differences from the earlier record of the stage that has the fewest, and it.

    In: `partial`: some inputs are not known yet and do not count.
    """
    best: tuple[tuple[Change, ...], Record | None] = ((), None)
    for record in store.newest(preimage["stage"], _CANDIDATES):
        changes = tuple(differences(record.preimage, preimage, partial=partial))
        if best[1] is None or len(changes) < len(best[0]):
            best = (changes, record)
    return best


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, partial: bool = False
) -> Iterator[Change]:
    """What differs between the preimages of two results of one stage.

    In: `partial`: inputs that `new` lacks are not known yet and do not count.
    """
    if old["version"] != new["version"]:
        yield Change(
            "version", f"{new['stage']}'s version", str(old["version"]), str(new["version"])
        )
    before, after = dict(_flat(old["params"])), dict(_flat(new["params"]))
    for name in sorted(before.keys() | after.keys()):
        if (a := before.get(name, "–")) != (b := after.get(name, "–")):
            yield _param_change(name, a, b, after if name in after else before)
    sections: tuple[tuple[ChangeKind, str], ...] = (
        ("input", "inputs"),
        ("tool", "tools"),
        ("host", "host"),
    )
    for kind, section in sections:
        rows, others = old.get(section, {}), new.get(section, {})
        names = others.keys() if partial and kind == "input" else rows.keys() | others.keys()
        for name in sorted(names):
            if (a := str(rows.get(name, "–"))) != (b := str(others.get(name, "–"))):
                yield Change(kind, name, a, b)
    if (a := old.get("package", "–")) != (b := new.get("package", "–")):
        yield Change("package", "package", a, b)


def _param_change(name: str, old: str, new: str, params: Mapping[str, str]) -> Change:
    owner, _, last = name.rpartition(".")
    if last == "sha256":  # a File or a PythonFunction of tapml.stage
        return Change("python" if f"{owner}.function" in params else "file", owner, old, new)
    return Change("param", name, old, new)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted fields of plain data, scalars as text; a list of scalars is one field."""
    match value:
        case dict() if value:
            for name, one in cast("dict[str, Any]", value).items():
                yield from _flat(one, f"{path}.{name}" if path else name)
        case list() | tuple():
            rows = cast("list[Any]", value)
            if any(isinstance(one, dict) for one in rows):
                for index, one in enumerate(rows):
                    yield from _flat(one, f"{path}[{index}]")
            else:
                yield path, "[" + ", ".join(map(str, rows)) + "]"
        case _:
            yield path, str(value)


def _functions(value: object) -> Iterator[PythonFunction]:
    """The recipe's Python in the parameters of a stage."""
    match value:
        case PythonFunction():
            yield value
        case BaseModel():
            for name in type(value).model_fields:
                yield from _functions(getattr(value, name))
        case tuple() | list():
            for one in cast("tuple[object, ...]", value):
                yield from _functions(one)
        case dict():
            for one in cast("dict[str, object]", value).values():
                yield from _functions(one)
        case _:
            pass


def _check_names(known: Mapping[str, object], asked: Mapping[str, Iterable[str]]) -> None:
    for option, names in asked.items():
        for name in names:
            if name not in known:
                raise RecipeError(
                    message=f"{option}: no stage {shorten(name)} in this workflow",
                    hint=nearest(name, list(known)),
                )


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
