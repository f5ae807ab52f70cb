"""Several recipes as one plan: stages that are equal in everything run once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .plan import Graph
from .recipe import Recipe

if TYPE_CHECKING:
    import networkx as nx

    from .stage import Stage


@dataclass(frozen=True)
class Member:
    """One recipe of a batch.

    label:     what tells it from the others, short; empty when it is alone
    steps:     its own names of stages → steps of the batch's plan
    workflows: the workflow file that its graph comes from
    """

    recipe: Recipe
    label: str
    steps: Mapping[str, str]
    workflows: Path


def labels(recipes: Sequence[Recipe]) -> list[str]:
    """A unique name for each recipe of a batch: of its matrix's point, of the recipe, or both."""
    if len(recipes) == 1:
        return [""]
    several = len({one.name for one in recipes}) > 1
    found = [
        ",".join(part for part in (one.name if several else "", one.label) if part) or one.name
        for one in recipes
    ]
    return [
        text if found.count(text) == 1 else f"{text}-{found[:index].count(text) + 1}"
        for index, text in enumerate(found)
    ]


def merge(
    graphs: Sequence[nx.DiGraph[str]], names: Sequence[str]
) -> tuple[Graph, list[dict[str, str]]]:
    """One graph of all, and for each its nodes' names in it.

    Two nodes are one when their stages are equal and take the same inputs. A node keeps its name
    where no other has it; else the label of its graph is put behind an `@`.
    """
    import networkx as nx

    known: dict[object, int] = {}  # what makes a node → its number
    nodes: list[tuple[str, int, Stage, dict[str, tuple[int, str]]]] = []
    numbers: list[dict[str, int]] = []
    for which, graph in enumerate(graphs):
        own: dict[str, int] = {}
        for name in nx.topological_sort(graph):
            stage = cast("Stage", graph.nodes[name]["stage"])
            bound = cast("dict[str, tuple[str, str]]", graph.nodes[name]["inputs"])
            inputs = {key: (own[node], output) for key, (node, output) in bound.items()}
            what = (name, type(stage), stage.model_dump_json(), tuple(sorted(inputs.items())))
            if what not in known:
                known[what] = len(nodes)
                nodes.append((name, which, stage, inputs))
            own[name] = known[what]
        numbers.append(own)
    count: dict[str, int] = {}
    for name, *_ in nodes:
        count[name] = count.get(name, 0) + 1
    called = [name if count[name] == 1 else f"{name}@{names[which]}" for name, which, *_ in nodes]
    merged: nx.DiGraph[str] = nx.DiGraph()
    for text, (_, _, stage, inputs) in zip(called, nodes, strict=True):
        bound = {key: (called[number], output) for key, (number, output) in inputs.items()}
        merged.add_node(text, stage=stage, inputs=bound)
        merged.add_edges_from((node, text) for node, _ in bound.values())
    steps = [{name: called[number] for name, number in own.items()} for own in numbers]
    return cast("Graph", merged), steps  # networkx's views are no Mapping to the checker
