"""What a look into a model gives: plain data, the same for every kind of file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

from ..formats.bounded import Tensor

Kind = Literal["onnx", "torch", "huggingface", "gguf", "safetensors", "bundle"]
Dim = int | str
_WHOLE = frozenset({"int32", "int64", "bool", "string"})


@dataclass(frozen=True)
class Value:
    """An input or output; a dim is a size or a name."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest size of a dim; None: the file does not say."""

    min: int | None = None
    max: int | None = None


@dataclass(frozen=True)
class Layer:
    """A weight that can be pruned, and the node that reads it; patterns of a recipe's
    `sparsity.layers` match either name.
    """

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """A node: what it reads and gives, and its multiply-adds; None where a size is unknown.

    `macs` is 0 for what does not multiply and add. `view`: what it gives are its input's bytes.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int | None = 0
    view: bool = False


@dataclass(frozen=True)
class Operators:
    """All nodes of one operator."""

    op: str
    count: int
    macs: int | None
    is_supported: bool


@dataclass(frozen=True)
class Cache:
    """Keys and values that a language model keeps for each token, in float32 as tapml does."""

    layers: int
    bytes_per_token: int
    context: int | None

    @property
    def nbytes(self) -> int | None:
        return None if self.context is None else self.bytes_per_token * self.context


@dataclass(frozen=True)
class Model:
    """What a model holds.

    facts:        what only this kind of file says (opset, architecture, quantisation)
    operators:    None where the file has no graph
    sizes:        of the dims, for which multiply-adds and activations are counted
    activations:  bytes alive at once, at most, were no two operators fused; None: not known
    states:       bytes that a bundle's caller keeps from call to call, at the largest sizes
    path:         of the file or folder; `name`: what the user called it
    """

    kind: Kind
    name: str
    path: Path
    tensors: tuple[Tensor, ...]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    dims: Mapping[str, Bounds] = field(default_factory=dict[str, Bounds])
    operators: tuple[Operators, ...] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    activations: int | None = None
    states: int | None = None
    cache: Cache | None = None
    prunable: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of the weights; whole numbers (shapes, positions) are none."""
        return sum(one.count for one in self.tensors if one.dtype not in _WHOLE)

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self.tensors)

    @property
    def memory(self) -> int | None:
        """Bytes that a bundle holds while it runs, the runtime's own apart; None: not known."""
        if self.kind != "bundle" or self.activations is None:
            return None
        return self.nbytes + (self.states or 0) + self.activations

    @property
    def by_dtype(self) -> dict[str, int]:
        """Bytes of the weights by dtype, most first."""
        found: Counter[str] = Counter()
        for one in self.tensors:
            found[one.dtype] += one.nbytes
        return dict(found.most_common())

    @property
    def macs(self) -> int | None:
        """Multiply-adds of the operators whose sizes are known; None without a graph."""
        return None if self.operators is None else sum(one.macs or 0 for one in self.operators)

    @property
    def unsupported(self) -> tuple[Operators, ...]:
        return tuple(one for one in self.operators or () if not one.is_supported)


def tally(operations: Iterable[Operation], supported: Iterable[str]) -> tuple[Operators, ...]:
    """Operators by count; `supported` are those that can be imported."""
    known = frozenset(supported)
    groups: dict[str, list[Operation]] = {}
    for one in operations:
        groups.setdefault(one.op, []).append(one)
    rows = [
        Operators(
            op,
            len(group),
            None if any(one.macs is None for one in group) else sum(one.macs or 0 for one in group),
            op in known,
        )
        for op, group in groups.items()
    ]
    return tuple(sorted(rows, key=lambda one: (-one.count, one.op)))


def peak(
    operations: Sequence[Operation], nbytes: Mapping[str, int | None], kept: Iterable[str]
) -> int | None:
    """Bytes of values alive at once, at most, in the order of the nodes; None if one is not known.

    In: `nbytes` of inputs and of what nodes give; `kept`: outputs, alive to the end
    """
    owner: dict[str, str] = {}  # what a view shows → the value that holds the bytes
    for one in operations:
        if one.view and one.inputs:
            held = owner.get(one.inputs[0], one.inputs[0])
            owner |= dict.fromkeys(one.outputs, held)
    last: dict[str, int] = {}
    for index, one in enumerate(operations):
        last |= {owner.get(name, name): index for name in (*one.outputs, *one.inputs)}
    last |= {owner.get(name, name): len(operations) for name in kept}
    made = {name for one in operations for name in one.outputs}
    alive = {name: size for name, size in nbytes.items() if name in last and name not in made}
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        ends.setdefault(index, []).append(name)
    now = most = sum(size or 0 for size in alive.values())
    unknown = None in alive.values()
    for index, one in enumerate(operations):
        for name in one.outputs:
            if name not in owner:
                size = nbytes.get(name)
                unknown = unknown or size is None
                alive[name] = size
                now += size or 0
        most = max(most, now)
        now -= sum(alive.pop(name, 0) or 0 for name in ends.get(index, ()))
    return None if unknown else most


def numel(shape: Iterable[Dim], sizes: Mapping[str, int]) -> int | None:
    """Elements of a shape at given sizes; None where one is not known."""
    known = [one if isinstance(one, int) else sizes.get(one) for one in shape]
    return None if None in known else prod(one or 0 for one in known)
