"""Several recipes as one plan: stages that are equal in everything run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .graph import Graph
from .recipe import Recipe
from .stage import Stage


def labels(recipes: Sequence[Recipe]) -> list[str]:
    """A unique name for each recipe of a batch: of its matrix's point, of the recipe, or both."""
    if len(recipes) == 1:
        return [""]
    several = len({one.name for one in recipes}) > 1
    found = [
        ",".join(part for part in (one.name if several else "", one.label) if part) or one.name
        for one in recipes
    ]
    count, seen = Counter(found), Counter[str]()
    for index, text in enumerate(found):
        if count[text] > 1:  # two files of one name
            seen[text] += 1
            found[index] = f"{text}-{seen[text]}"
    return found


def merge(graphs: Sequence[Graph], names: Sequence[str]) -> tuple[Graph, list[dict[str, str]]]:
    """One graph of all, and for each its nodes' names in it.

    Two nodes are one when their stages are equal and take the same inputs. A node keeps its name
    where no other has it; else what the labels of its graphs have in common is put behind an `@`.
    In: the nodes of each graph come after what they need, as `workflow.graph` gives them.
    """
    known: dict[object, int] = {}  # what makes a node → its number
    nodes: list[_Node] = []
    numbers: list[dict[str, int]] = []
    for which, graph in enumerate(graphs):
        own: dict[str, int] = {}
        for name in graph.nodes:
            stage: Stage = graph.nodes[name]["stage"]
            bound: dict[str, tuple[str, str]] = graph.nodes[name]["inputs"]
            inputs = {key: (own[node], output) for key, (node, output) in bound.items()}
            what = (name, type(stage), stage.model_dump_json(), tuple(sorted(inputs.items())))
            if what not in known:
                known[what] = len(nodes)
                nodes.append(_Node(name, stage, inputs))
            own[name] = known[what]
            nodes[own[name]].graphs.append(which)
        numbers.append(own)
    called = _names(nodes, names)
    merged = Graph()
    for text, node in zip(called, nodes, strict=True):
        bound = {key: (called[number], output) for key, (number, output) in node.inputs.items()}
        of = [graphs[which].nodes[node.name].get("recipes", ()) for which in node.graphs]
        recipes = dict.fromkeys(recipe for one in of for recipe in one)
        merged.add(text, node.stage, bound, tuple(recipes))
    steps = [{name: called[number] for name, number in own.items()} for own in numbers]
    return merged, steps


@dataclass(frozen=True)
class _Node:
    """A node of the merged graph, before it has its name; `graphs` are those that it stands for."""

    name: str
    stage: Stage
    inputs: dict[str, tuple[int, str]]
    graphs: list[int] = field(default_factory=list[int])


def _names(nodes: Sequence[_Node], labels: Sequence[str]) -> list[str]:
    """Unique names, as short as what tells the nodes apart allows."""
    short = [f"{one.name}@{_common([labels[which] for which in one.graphs])}" for one in nodes]
    alone, unique = Counter(one.name for one in nodes), Counter(short)
    return [
        one.name
        if alone[one.name] == 1
        else text
        if unique[text] == 1 and not text.endswith("@")
        else f"{one.name}@{labels[one.graphs[0]]}"
        for one, text in zip(nodes, short, strict=True)
    ]


def _common(labels: Sequence[str]) -> str:
    """The parts that labels share, in the first one's order: those of its matrix's fields."""
    rest = [set(label.split(",")) for label in labels[1:]]
    return ",".join(part for part in labels[0].split(",") if all(part in one for one in rest))
