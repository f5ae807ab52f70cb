"""The same work for every engine: graphs of trivial steps, and what each step has to give.

A step folds its own number (its salt) with those of the steps that it needs into another number,
and writes that padded to 1 KB: a change anywhere shows in all that is below it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SIZE = 1024  # bytes of an output
Needs = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Shape:
    """A graph: step → steps that it needs, each after those; `root` and `leaf` are what changes."""

    name: str
    needs: Needs
    root: str
    leaf: str

    @property
    def sinks(self) -> list[str]:
        needed = {one for above in self.needs.values() for one in above}
        return [name for name in self.needs if name not in needed]

    def parts(self) -> list[Needs]:
        """The steps in pieces that read only their own steps and those of the piece before."""
        if self.name == "wide":
            return [self.needs]
        names = list(self.needs)
        first = 1 if self.name == "diamond" else 10
        bounds = [0, *range(first, len(names), 10), len(names)]
        return [
            {name: self.needs[name] for name in names[low:high]}
            for low, high in itertools.pairwise(bounds)
        ]

    def below(self, top: str) -> set[str]:
        """The step and all that depend on it: what a change of its salt makes stale."""
        found = {top}
        for name, above in self.needs.items():
            if found.intersection(above):
                found.add(name)
        return found


def chain(steps: int) -> Shape:
    names = [f"n{index:05}" for index in range(steps)]
    needs = {name: names[max(0, index - 1) : index] for index, name in enumerate(names)}
    return Shape("chain", needs, root=names[0], leaf=names[-1])


def wide(steps: int) -> Shape:
    """One root, `steps - 2` steps that need only it, one that needs all of those."""
    names = [f"n{index:05}" for index in range(steps)]
    root, *middle, join = names
    needs: dict[str, list[str]] = {root: []} | {name: [root] for name in middle}
    return Shape("wide", needs | {join: middle}, root=root, leaf=join)


def diamond(layers: int, width: int) -> Shape:
    """Layers below one root; each step needs two neighbours of the layer above it."""
    root = "root"
    needs: dict[str, list[str]] = {root: []}
    above = [root]
    for layer in range(layers):
        row = [f"l{layer:02}-{index}" for index in range(width - (layer == layers - 1))]
        for index, name in enumerate(row):
            needs[name] = list(
                dict.fromkeys([above[index % len(above)], above[(index + 1) % len(above)]])
            )
        above = row
    return Shape("diamond", needs, root=root, leaf=above[-1])


def shapes(steps: int = 300) -> dict[str, Shape]:
    found = (chain(steps), wide(steps), diamond(steps // 10, 10))
    return {shape.name: shape for shape in found}


def fold(salt: int, values: Sequence[int]) -> int:
    total = salt
    for value in values:
        total = (total * 131 + value + 7) % 1000003
    return total


def text(number: int) -> str:
    """What a step writes."""
    return f"{number:<{SIZE - 1}}\n"


def expected(shape: Shape, salts: Mapping[str, int]) -> dict[str, int]:
    """The number of every step."""
    found: dict[str, int] = {}
    for name, above in shape.needs.items():
        found[name] = fold(salts[name], [found[one] for one in above])
    return found
