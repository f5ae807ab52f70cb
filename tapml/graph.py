"""Stages, and what each takes from which: the graph between a workflow and a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .stage import Stage

Bindings = Mapping[str, tuple[str, str]]  # input of a stage → (node, name of its output)


class Graph:
    """The part of networkx's DiGraph that planning needs: importing the whole takes longer than a
    run in which everything is cached. A DiGraph does as well; `Plan.digraph` gives one.

    nodes: name → attributes `stage`, `inputs` and `recipes` (names of those that it is of); each
           comes after those that it needs
    """

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def add(self, name: str, stage: Stage, inputs: Bindings, recipes: tuple[str, ...] = ()) -> None:
        self.nodes[name] = {"stage": stage, "inputs": inputs, "recipes": recipes}

    def predecessors(self, name: str, /) -> tuple[str, ...]:
        """The nodes that it takes its inputs from."""
        return tuple(dict.fromkeys(node for node, _ in self.nodes[name]["inputs"].values()))
