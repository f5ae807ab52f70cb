"""The graph of stages that a recipe's workflow describes.

An input of a stage binds to the node in `needs` that gives its kind; where two do and one feeds the
other, to the later. A node whose `when` section (or `section.field`) the recipe lacks is left out:
what it would replace passes through it.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, Field, ValidationError, create_model

from . import shipped
from .errors import RecipeError, RecipeErrors, nearest
from .graph import Graph
from .recipe import Recipe, text
from .recipe.loader import combined, error_at
from .recipe.positions import Node as Tree
from .recipe.positions import Path as FieldPath
from .recipe.positions import find as find_node
from .recipe.positions import locate, shorten
from .recipe.validate import explain, validate
from .settings import Engine
from .stage import Frozen, Kind, Stage

FILE = "workflows.yaml"
_NAME = re.compile(r"[a-z0-9_-]{1,64}")

Output = tuple[str, str]  # (node, name of an output of its stage)
Bindings = dict[str, Output]  # input of a stage → what it is given


class Node(Frozen):
    """A stage's place in a workflow."""

    stage: str | None = Field(
        default=None, description="Name of the stage; the node's own when left out"
    )
    needs: tuple[str, ...] | dict[str, str] = Field(
        default=(), description="Nodes that it takes its inputs from, or input → node"
    )
    when: str | None = Field(
        default=None, description="Section, or field of one, without which the node is left out"
    )
    params: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="Parameters of the stage, over the recipe's"
    )

    @property
    def upstream(self) -> tuple[str, ...]:
        needs = self.needs.values() if isinstance(self.needs, dict) else self.needs
        return tuple(dict.fromkeys(needs))


class File(Frozen):
    """A `workflows.yaml`."""

    workflows: dict[str, dict[str, Node]] = Field(description="Workflows by name, nodes by name")
    engine: Engine = Field(default_factory=Engine, description="Settings of the engine")


@dataclass(frozen=True)
class Workflows:
    """A workflow file that holds what its schema demands, with the places of its values."""

    path: Path
    file: File
    tree: Tree = field(repr=False)

    def error(self, path: FieldPath, message: str, hint: str = "") -> RecipeError:
        """An error at a value, or at the key of a mapping."""
        return error_at(locate(self.tree, path), path, message, hint)


def find(recipe_path: Path, explicit: Path | None = None) -> Path:
    """`explicit`, else the nearest one in a folder above the recipe, else the packaged one."""
    if explicit is not None:
        return explicit
    above = (folder / FILE for folder in recipe_path.resolve().parents)
    return next((path for path in above if path.is_file()), shipped.workflows())


def load(path: Path) -> Workflows:
    """A workflow file. Raises: RecipeError with every mistake of its form."""
    document = text.read(path)
    file, errors = validate(File, document.root, broken=document.broken)
    errors = [*document.errors, *errors]
    if file is not None:
        found = Workflows(path.resolve(), file, document.root)
        errors += [
            found.error(("workflows", name, node), message)
            for name, nodes in file.workflows.items()
            for node in nodes
            if not _NAME.fullmatch(node)
            for message in ["the name of a node is made of a-z, 0-9, _ and -, at most 64 of them"]
        ]
        if not errors:
            return found
    raise combined(errors)


def graph(recipe: Recipe, workflows: Workflows) -> Graph:
    """The stages that the recipe's workflow runs, as instances, each after what it needs.

    Raises: RecipeError with every mistake of the workflow, or else every mistake that the stages
            find in the recipe.
    """
    name = recipe.workflow
    if name not in workflows.file.workflows:
        known = list(workflows.file.workflows)
        hint = nearest(name, known, noun=f"workflows of {workflows.path}")
        message = f"unknown workflow {shorten(name)}"
        raise recipe.locate(RecipeError(field="workflow", message=message, hint=hint))
    binder = _Binder(recipe, workflows, name)
    bindings = binder.bind()
    built = Graph()
    errors: list[RecipeError] = []
    for node, inputs in bindings.items():
        try:
            built.add(node, binder.instance(node), inputs, (recipe.name,))
        except RecipeErrors as error:
            errors += error.errors
        except RecipeError as error:
            errors.append(error)
    if errors:
        raise combined(errors)
    return built


class _Binder:
    """Binds the inputs of the nodes of one workflow to outputs."""

    def __init__(self, recipe: Recipe, workflows: Workflows, name: str) -> None:
        self.recipe, self.workflows, self.name = recipe, workflows, name
        self.nodes = workflows.file.workflows[name]
        self.classes: dict[str, type[Stage]] = {}
        self.ancestors: dict[str, set[str]] = {}
        self.errors: list[RecipeError] = []

    def bind(self) -> dict[str, Bindings]:
        """Bindings of every node that is not left out, in topological order."""
        self.check_nodes()
        if self.errors:
            raise combined(self.errors)
        self.order = self.topological_order()
        bindings: dict[str, Bindings] = {}
        for node in self.order:
            needs = self.nodes[node].needs
            by_name = self.bind_named if isinstance(needs, dict) else self.bind_listed
            bindings[node] = by_name(node, bindings)
        if self.errors:
            raise combined(self.errors)
        return {node: inputs for node, inputs in bindings.items() if not self.is_left_out(node)}

    def check_nodes(self) -> None:
        """Every stage, need and section that the workflow names is there."""
        for name, node in self.nodes.items():
            stage = node.stage or name
            try:
                self.classes[name] = self.recipe.registry.stage_class(stage)
            except RecipeError as error:
                self.report((name, "stage"), error.message, error.hint)
            spots = node.needs.items() if isinstance(node.needs, dict) else enumerate(node.needs)
            for spot, need in spots:
                if need not in self.nodes:
                    hint = nearest(need, list(self.nodes), noun="nodes")
                    self.report((name, "needs", spot), f"unknown node {shorten(need)}", hint)
            if node.when is not None:
                self.check_when(name, node.when)

    def check_when(self, node: str, when: str) -> None:
        """A section, or a field of one, that some stage has."""
        section, _, field = when.partition(".")
        sections = self.recipe.schema.sections
        if section not in sections:
            message = f"no stage has a section {shorten(section)}"
            self.report((node, "when"), message, nearest(section, list(sections)))
        elif field and field not in (known := sections[section].model_fields):
            message = f"section {section!r} has no field {shorten(field)}"
            self.report((node, "when"), message, nearest(field, list(known)))

    def topological_order(self) -> list[str]:
        """The nodes, each after what it needs, else in the file's order."""
        names = list(self.nodes)
        place = {name: index for index, name in enumerate(names)}
        sorter = TopologicalSorter({name: node.upstream for name, node in self.nodes.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            cycle = cast("list[str]", error.args[1])[1:]  # it begins and ends with the same
            first = cycle.index(min(cycle))
            path = [*cycle[first:], *cycle[:first], cycle[first]]
            message = f"nodes need each other in a circle: {' → '.join(path)}"
            raise self.workflows.error(self.at(path[0], "needs"), message) from None
        ready: list[int] = []
        order: list[str] = []
        while sorter.is_active():
            for name in sorter.get_ready():
                heappush(ready, place[name])
            order.append(names[heappop(ready)])
            sorter.done(order[-1])
        return order

    def above(self, node: str) -> set[str]:
        """All that a node needs, directly or not."""
        if node not in self.ancestors:
            found, todo = set[str](), [node]
            while todo:
                new = set(self.nodes[todo.pop()].upstream) - found
                found |= new
                todo.extend(new)
            self.ancestors[node] = found
        return self.ancestors[node]

    def is_left_out(self, node: str) -> bool:
        when = self.nodes[node].when
        return when is not None and not self.recipe.has(when)

    def offers(self, node: str, kind: Kind, bindings: dict[str, Bindings]) -> list[Output]:
        """Outputs of a kind that a node gives; when it is left out, what it would have replaced."""
        cls = self.classes[node]
        outputs = [name for name, given in cls.outputs.items() if given == kind]
        if not self.is_left_out(node):
            return [(node, name) for name in outputs]
        taken = [name for name, wanted in cls.inputs.items() if wanted == kind]
        replaced = [bindings[node][name] for name in taken if name in bindings[node]]
        return list(dict.fromkeys(replaced)) if outputs else []

    def bind_named(self, node: str, bindings: dict[str, Bindings]) -> Bindings:
        """Bindings of a node whose `needs` says which node each input comes from."""
        needs, inputs = self.nodes[node].needs, self.classes[node].inputs
        assert isinstance(needs, dict)
        bound: Bindings = {}
        for name, source in needs.items():
            at = (node, "needs", name)
            if name not in inputs:
                message = f"stage {self.classes[node].name!r} has no input {shorten(name)}"
                self.report(at, message, nearest(name, list(inputs), noun="inputs"))
                continue
            self.take(node, name, self.offers(source, inputs[name], bindings), at, bound)
            if name not in bound and not self.is_left_out(source):
                self.report(at, *self.gives(source, f"no {inputs[name]!r}"))
        self.require_inputs(node, bound)
        return bound

    def bind_listed(self, node: str, bindings: dict[str, Bindings]) -> Bindings:
        """Bindings of a node whose `needs` is a list."""
        upstream, inputs = self.nodes[node].upstream, self.classes[node].inputs
        bound: Bindings = {}
        for name, kind in inputs.items():
            found = [one for up in upstream for one in self.offers(up, kind, bindings)]
            self.take(node, name, found, (node, "needs"), bound)
        for index, up in enumerate(self.nodes[node].needs):
            if not set(self.classes[up].outputs.values()) & set(inputs.values()):
                message, hint = self.gives(up, f"nothing that {self.classes[node].name!r} takes")
                self.report((node, "needs", index), message, hint)
        self.require_inputs(node, bound)
        return bound

    def take(
        self, node: str, name: str, found: list[Output], at: FieldPath, bound: Bindings
    ) -> None:
        """Binds an input to the latest of the outputs that were found for it."""
        unique = list(dict.fromkeys(found))
        latest = unique
        if len(unique) > 1:
            latest = [
                one for one in unique if not any(one[0] in self.above(other) for other, _ in unique)
            ]
        if latest:
            bound[name] = latest[0]
        if len(latest) > 1:
            candidates = ", ".join(f"{source}.{output}" for source, output in latest)
            message = f"input {name!r} of {node!r} may be any of {candidates}"
            self.report(at, message, "name one: needs: {input: node}")

    def require_inputs(self, node: str, bound: Bindings) -> None:
        cls = self.classes[node]
        if self.is_left_out(node):
            return
        for name, kind in cls.inputs.items():
            if name in bound or name in cls.optional or self.has_error(node):
                continue
            above = [up for up in self.nodes[node].upstream if self.is_left_out(up)]
            dropped = [up for up in above if kind in self.classes[up].outputs.values()]
            givers = [n for n, other in self.classes.items() if kind in other.outputs.values()]
            if dropped:
                message = (
                    f"input {name!r} ({kind}) comes from {dropped[0]!r}, which is left out because "
                    f"the recipe has no section {self.nodes[dropped[0]].when!r}"
                )
                self.report((node, "needs"), message)
            else:
                hint = f"{' and '.join(givers)} would" if givers else ""
                message = f"no node in `needs` gives input {name!r} ({kind}) of {node!r}"
                self.report((node, "needs"), message, hint)

    def has_error(self, node: str) -> bool:
        """Whether a mistake in its needs was reported, from which a missing input may follow."""
        prefix = ".".join(self.at(node, "needs"))
        return any(error.field.startswith(f"{prefix}.") for error in self.errors)

    def gives(self, node: str, what: str) -> tuple[str, str]:
        outputs = ", ".join(f"{name} ({kind})" for name, kind in self.classes[node].outputs.items())
        return f"node {node!r} gives {what}", f"it gives: {outputs or 'nothing'}"

    def instance(self, node: str) -> Stage:
        """The node's stage, parameters from the recipe and from `with`. Raises: RecipeError."""
        cls = self.classes[node]
        try:
            stage = cls.from_recipe(self.recipe)
        except RecipeError as error:
            raise self.recipe.locate(error) from error
        params = find_node(self.workflows.tree, self.at(node, "with"))
        return stage if params is None else self.overridden(stage, params, self.at(node, "with"))

    def overridden(self, stage: Stage, params: Tree, at: FieldPath) -> Stage:
        cls = type(stage)
        given, errors = validate(_partial(cls), params, at=at)
        if given is None:
            raise combined(errors)
        values = {name: getattr(stage, name) for name in cls.model_fields}
        values |= {name: getattr(given, name) for name in given.model_fields_set}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise combined(explain(cls, params, error, at=at)) from error

    def at(self, *path: str | int) -> tuple[str, ...]:
        return ("workflows", self.name, *map(str, path))

    def report(self, path: FieldPath, message: str, hint: str = "") -> None:
        whole: FieldPath = ("workflows", self.name, *path)
        self.errors.append(self.workflows.error(whole, message, hint))


class _Partial(Frozen):
    """Base of a stage's parameters of which any may be left out."""

    model_config = ConfigDict(validate_default=False)


@cache
def _partial(cls: type[Stage]) -> type[_Partial]:
    """The model of the parameters of a stage of which any may be left out."""
    fields: dict[str, Any] = {}
    for name, info in cls.model_fields.items():
        optional = copy(info)
        optional.default, optional.default_factory = None, None
        fields[name] = (info.annotation, optional)
    return create_model(cls.__name__, __base__=_Partial, **fields)
