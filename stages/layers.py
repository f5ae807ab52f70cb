"""Which weights a recipe's layer patterns mean, by the source's names of nodes and weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from tapml.errors import RecipeError, RecipeErrors

from .program import Origin

MULTIPLYING = frozenset(
    {
        *("MatMul", "Gemm", "Conv", "ConvTranspose"),
        *("relax.matmul", "relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d"),
        *("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose"),
        *("linear", "matmul", "mm", "bmm", "addmm", "convolution"),  # torch's
    }
)


@dataclass(frozen=True)
class Layer:
    """A weight that a pattern may name, and the source node that multiplies by it."""

    node: str
    weight: str
    shape: tuple[int, ...]


def prunable(
    provenance: Iterable[Origin], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Layer, ...]:
    """The matrices and filters that multiplications read, in the program's order, each once.

    A bias that a Gemm or Conv reads has at most one dim above 1, so it is no layer.
    """
    layers: dict[str, Layer] = {}
    for origin in provenance:
        for weight in origin.weights if origin.op in MULTIPLYING else ():
            if sum(dim > 1 for dim in shapes[weight]) >= 2:
                layers.setdefault(weight, Layer(origin.nodes[0], weight, shapes[weight]))
    return tuple(layers.values())


def match(
    patterns: Sequence[str], layers: Sequence[Layer], *, field: str, can: str
) -> tuple[Layer, ...]:
    """The layers that any pattern names, in the program's order.

    field: the recipe's, that holds the patterns; can: what can be done to layers ("be pruned")

    Raises: RecipeError(s) for every pattern that matches none.
    """
    errors: list[RecipeError] = []
    for index, pattern in enumerate(patterns):
        if not any(_fits(pattern, layer) for layer in layers):
            errors.append(
                RecipeError(
                    field=f"{field}.{index}",
                    message=f"pattern {pattern!r} matches no layer",
                    hint=_hint(pattern, layers, can),
                )
            )
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RecipeErrors(errors=tuple(errors), message=f"{len(errors)} patterns match no layer")
    return tuple(layer for layer in layers if any(_fits(one, layer) for one in patterns))


def _fits(pattern: str, layer: Layer) -> bool:
    return fnmatchcase(layer.node, pattern) or fnmatchcase(layer.weight, pattern)


def _hint(pattern: str, layers: Sequence[Layer], can: str) -> str:
    names = {name for layer in layers for name in (layer.node, layer.weight)}
    stem = pattern.strip("*")
    parts = {part: name for name in sorted(names) for part in (*name.split("/"), name)}
    close = [parts[part] for part in get_close_matches(stem, list(parts), n=3, cutoff=0.5)]
    lines = [f"nearest: {', '.join(dict.fromkeys(close))}"] if close else []
    lines += [f"layers that can {can} (node: weight):"]
    lines += [f"  {layer.node}: {layer.weight} {list(layer.shape)}" for layer in layers] or [
        "  none"
    ]
    return "\n  ".join(lines)
