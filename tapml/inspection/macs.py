"""Multiply-adds of the operators that have most of them, from shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

Shape = Sequence[int]
_MOST = 1 << 124  # of one operator; what is more was made up


def known(count: Callable[[], int | None]) -> int | None:
    """What `count` gives; None where a shape is not known, or is none that the operator takes."""
    try:
        found = count()
    except (LookupError, TypeError, ValueError):
        return None
    return None if found is None or found > _MOST else found


def matmul(left: Shape, out: Shape) -> int:
    """Each element of the output sums over the last axis of the left operand."""
    return prod(out) * left[-1] if left else prod(out)


def conv(weight: Shape, out: Shape) -> int:
    """Weight: [out channels, in channels of a group, *kernel]."""
    return prod(out) * prod(weight[1:])


def conv_transpose(weight: Shape, data: Shape) -> int:
    """Weight: [in channels, out channels of a group, *kernel]; every input element meets it."""
    return prod(data) * prod(weight[1:])


def attention(query: Shape, key: Shape, value: Shape) -> int:
    """Queries [..., l, e] with keys [..., s, e], then with values [..., s, v]."""
    return prod(query) * key[-2] + prod(query[:-1]) * key[-2] * value[-1]


def recurrent(weights: Sequence[Shape], steps: int) -> int:
    """Matrices of an LSTM or GRU, all gates together, each used once a step (of each row)."""
    return steps * sum(prod(one) for one in weights if len(one) >= 2)


def einsum(equation: str, operands: Sequence[Shape]) -> int | None:
    """Sizes of all indices, once each; None with an ellipsis or no plain equation."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != len(operands) or "." in equation:
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=True):
        if len(term) != len(shape):
            return None
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return prod(sizes.values()) if len(operands) > 1 else 0
